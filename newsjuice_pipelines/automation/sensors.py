"""Sensors, all stopped until a person starts them. They look, request runs and tell people; they never do the work themselves."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from newsjuice_pipelines.automation.failures import ERROR
from newsjuice_pipelines.automation.jobs import compare_classifiers, daily_scripts, train_classifier, within_budget
from newsjuice_pipelines.automation.notifications import tell
from newsjuice_pipelines.automation.partitions import daily, models_at_hand
from newsjuice_pipelines.automation.spending import paid_usd
from newsjuice_pipelines.podcast.sampling.chunk_table import days_with_new_chunks
from newsjuice_pipelines.resources.postgres import ArticleDatabase
from newsjuice_pipelines.settings import load_settings

_OWN = "newsjuice_pipelines."
_MOST_STEPS = 3


@dg.sensor(
    job=daily_scripts,
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Requests a run for each finished day that got new chunks; the cursor is the last chunk id that was dealt with. "
    "Free with the extractive teacher; with Gemini each of these runs costs at most NEWSJUICE_NIGHTLY_BUDGET_USD.",
)
def new_chunks(context: dg.SensorEvaluationContext, database: ArticleDatabase) -> dg.SensorResult:
    """One run request a day with new chunks; the same rows never request two runs."""
    with database.read_only() as connection:
        days, cursor = days_with_new_chunks(connection, database.chunks_table, int(context.cursor or 0), datetime.now(UTC).date())
    known = set(daily.get_partition_keys())
    config = within_budget(load_settings().nightly_budget_usd)
    requests = [
        dg.RunRequest(partition_key=day.isoformat(), run_key=f"{day}:{highest_id}", run_config=config)
        for day, highest_id in days.items()
        if day.isoformat() in known
    ]
    return dg.SensorResult(run_requests=requests, cursor=str(cursor))


@dg.asset_sensor(
    asset_key=dg.AssetKey("balanced_split"),
    job=train_classifier,
    minimum_interval_seconds=120,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Trains and evaluates each classifier whose weights are on this machine when the headlines were split anew. "
    "Costs a training a model: seconds for the linear one, a GPU for minutes to hours for the others.",
)
def new_split(_context: dg.SensorEvaluationContext, asset_event: dg.EventLogEntry) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run a model; a split that was materialised again and did not change requests none."""
    materialization = asset_event.asset_materialization
    version = materialization.metadata["version"].value if materialization else asset_event.run_id
    models = models_at_hand()
    for model in models:
        yield dg.RunRequest(partition_key=model, run_key=f"{version}:{model}")
    if not models:
        yield dg.SkipReason("The weights of no classifier are on this machine.")


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


@dg.asset_sensor(
    asset_key=dg.AssetKey("promoted_model"),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Tells the log and the webhook which model a person put into service, or took back. Costs nothing.",
)
def new_promotion(_context: dg.SensorEvaluationContext, asset_event: dg.EventLogEntry) -> dg.SkipReason:
    """Told once for each change of the model in service."""
    materialization = asset_event.asset_materialization
    facts = {name: value.value for name, value in materialization.metadata.items()} if materialization else {}
    if facts.get("reused"):
        return dg.SkipReason("The same model was promoted again: there is nothing to tell.")
    return dg.SkipReason(
        tell(
            f"NewsJuice: the podcast model {facts.get('merged_model')} is in service, by run {asset_event.run_id}. "
            f"It was judged in run {facts.get('run_id')}; decision: {facts.get('decision')}."
        )
    )


@dg.run_failure_sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Tells the log and the webhook which run failed, at which step and why, and whether it is tried again. Runs of "
    "`newsjuice run` say so in the terminal instead. Costs nothing.",
)
def failed_run(context: dg.RunFailureSensorContext) -> None:
    """Told once for each failed run."""
    run = context.dagster_run
    steps = [_step_failure(event) for event in context.get_step_failure_events()]
    listed = "; ".join(steps[:_MOST_STEPS]) or "before its first step, or because its process ended"
    more = f"; and {len(steps) - _MOST_STEPS} more steps" if len(steps) > _MOST_STEPS else ""
    again = "It is tried again." if run.tags.get("dagster/will_retry") == "true" else "It is not tried again by itself."
    outcome = tell(f"NewsJuice: {_named(run)} failed: {listed}{more}. {again}")
    context.log.info(outcome)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Tells the log and the webhook which finished run spent more than NEWSJUICE_EXPENSIVE_RUN_USD on paid calls. "
    "Costs nothing.",
)
def expensive_run(context: dg.RunStatusSensorContext) -> None:
    """Told once for each finished run above the limit."""
    spent_usd, limit_usd = paid_usd(context.instance, context.dagster_run.run_id), load_settings().expensive_run_usd
    if spent_usd > limit_usd:
        outcome = tell(
            f"NewsJuice: {_named(context.dagster_run)} spent up to ${spent_usd:,.2f} on paid calls, more than "
            f"${limit_usd:,.2f} (NEWSJUICE_EXPENSIVE_RUN_USD)."
        )
        context.log.info(outcome)


def _named(run: dg.DagsterRun) -> str:
    partition = run.tags.get("dagster/partition") or run.tags.get("dagster/asset_partition_range_start")
    return f"run {run.run_id} of {run.job_name}{f' ({partition})' if partition else ''}"


def _step_failure(event: dg.DagsterEvent) -> str:
    """The step and what stopped it. Only our own errors are quoted: the words of others may hold article text or a secret."""
    data = event.step_failure_data
    failure = data.user_failure_data
    if failure is not None:
        name = failure.metadata[ERROR].value if ERROR in failure.metadata else None
        if failure.description and (name is None or str(name).startswith(_OWN)):
            return f"{event.step_key}: {failure.description}"
        return f"{event.step_key}: {str(name).rpartition('.')[2]}"
    error = data.error
    while error is not None and error.cause is not None:  # Dagster wraps what was raised
        error = error.cause
    return f"{event.step_key}: {error.cls_name if error else 'no reason given'}"


SENSORS = [new_chunks, new_split, new_evaluation, new_promotion, failed_run, expensive_run]
