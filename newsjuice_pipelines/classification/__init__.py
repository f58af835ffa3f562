"""News-topic classification: HuffPost data, taxonomies, splits, models, calibration, evaluation. Free of Dagster."""
