"""Answers for new headlines: loading a trained classifier, other sources' articles and their labels. Free of Dagster."""
