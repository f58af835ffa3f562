"""Labelled headlines: reading them, the classes of their sections, duplicates, and the split into parts. Free of Dagster."""
