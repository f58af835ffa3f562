"""News-topic classification, from labelled headlines to a classifier that says when it does not know. Free of Dagster."""
