"""The student's scripts, how good and how fast they are, and the decision."""
