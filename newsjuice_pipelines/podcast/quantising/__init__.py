"""Making the small form of the student that a CPU runs fast, and judging whether it is still the student."""
