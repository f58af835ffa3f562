"""Sensors, all stopped until a person starts them. They look and request runs; they never do the work themselves."""

from datetime import UTC, datetime

import dagster as dg

from newsjuice_pipelines.automation.jobs import compare_classifiers, daily_scripts
from newsjuice_pipelines.automation.partitions import daily
from newsjuice_pipelines.podcast.sampling.chunk_table import days_with_new_chunks
from newsjuice_pipelines.resources.postgres import ArticleDatabase


@dg.sensor(
    job=daily_scripts,
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Requests a run for each finished day that got new chunks; the cursor is the last chunk id that was dealt with. "
    "Free with the extractive teacher, paid with Gemini.",
)
def new_chunks(context: dg.SensorEvaluationContext, database: ArticleDatabase) -> dg.SensorResult:
    """One run request a day with new chunks; the same rows never request two runs."""
    with database.read_only() as connection:
        days, cursor = days_with_new_chunks(connection, database.chunks_table, int(context.cursor or 0), datetime.now(UTC).date())
    known = set(daily.get_partition_keys())
    requests = [
        dg.RunRequest(partition_key=day.isoformat(), run_key=f"{day}:{highest_id}")
        for day, highest_id in days.items()
        if day.isoformat() in known
    ]
    return dg.SensorResult(run_requests=requests, cursor=str(cursor))


@dg.asset_sensor(
    asset_key=dg.AssetKey("classifier_eval_report"),
    job=compare_classifiers,
    minimum_interval_seconds=120,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Compares the classifiers again when one of them was evaluated. Seconds of CPU.",
)
def new_evaluation(_context: dg.SensorEvaluationContext, asset_event: dg.EventLogEntry) -> dg.RunRequest:
    """One comparison for each run that evaluated a model."""
    return dg.RunRequest(run_key=asset_event.run_id)


SENSORS = [new_chunks, new_evaluation]
