"""Classifiers: which there are, how they are trained, and what a trained one's folder holds. Free of Dagster."""
