"""Answers for new headlines, files of articles and other sources, by a checkpoint or its exported form. Free of Dagster."""
