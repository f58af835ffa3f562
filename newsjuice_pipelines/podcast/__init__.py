"""The podcast domain: articles, teacher scripts, the student model and its evaluation. Free of Dagster."""
