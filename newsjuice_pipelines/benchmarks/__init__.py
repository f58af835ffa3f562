"""Benchmarks: measurements of the pipeline, and the local servers that they run against."""
