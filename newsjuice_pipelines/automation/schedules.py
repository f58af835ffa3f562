"""Schedules, all stopped until a person starts them. Each description says what a tick costs."""

from datetime import UTC, timedelta

import dagster as dg

from newsjuice_pipelines.automation.failures import PERMANENT_TAG
from newsjuice_pipelines.automation.jobs import daily_scripts, prepare_topics, train_student, within_budget
from newsjuice_pipelines.automation.partitions import daily
from newsjuice_pipelines.automation.retraining import new_scripts
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.settings import load_settings

SCRIPTS_TAG = "newsjuice/scripts"  # on a training: the state of all days that it was requested for
NEW_SCRIPTS_TAG = "newsjuice/new_scripts"


@dg.schedule(
    job=daily_scripts,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Yesterday's chunks and scripts, at 02:00 UTC. Free with the extractive teacher; with Gemini a tick costs at "
    "most NEWSJUICE_NIGHTLY_BUDGET_USD (5 US dollars by default), and what does not fit into it is left out and counted.",
)
def every_night(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One run for the day before the tick, within the nightly budget."""
    day = (context.scheduled_execution_time.astimezone(UTC) - timedelta(days=1)).date().isoformat()
    if day not in daily.get_partition_keys():
        return dg.SkipReason(f"{day} is before the first day (NEWSJUICE_FIRST_DAY).")
    budget_usd = load_settings().nightly_budget_usd
    return dg.RunRequest(partition_key=day, run_key=day, run_config=within_budget(budget_usd))


@dg.schedule(
    job=train_student,
    cron_schedule="0 4 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Retrains the student and decides about it, Mondays at 04:00 UTC, when NEWSJUICE_RETRAIN_AFTER_SCRIPTS (200 by "
    "default) new scripts came since the last training. Costs one GPU for the length of a training, or a paid job on Vertex AI "
    "where that is set; a tick that skips costs nothing.",
)
def every_week(context: dg.ScheduleEvaluationContext, artifacts: Artifacts) -> dg.RunRequest | dg.SkipReason:
    """A training when there is enough to learn; never again by itself from scripts on which it failed for good."""
    wanted, found = load_settings().retrain_after_scripts, new_scripts(artifacts.store())
    if found.count < wanted:
        return dg.SkipReason(
            f"{found.count:,} new scripts came since the last training, and {wanted:,} are wanted "
            "(NEWSJUICE_RETRAIN_AFTER_SCRIPTS)."
        )
    state = {SCRIPTS_TAG: found.state}
    failed = context.instance.get_runs(
        filters=dg.RunsFilter(
            job_name=train_student.name, statuses=[dg.DagsterRunStatus.FAILURE], tags={**state, PERMANENT_TAG: "true"}
        ),
        limit=1,
    )
    if failed:
        return dg.SkipReason(
            f"The training from these scripts failed for good in run {failed[0].run_id}: mend the cause and launch "
            f"{train_student.name} by hand."
        )
    return dg.RunRequest(tags={**state, NEW_SCRIPTS_TAG: str(found.count)})


every_month = dg.ScheduleDefinition(
    job=prepare_topics,
    name="every_month",
    cron_schedule="0 5 1 * *",
    execution_timezone="UTC",
    description="Re-reads and splits the headlines, on the 1st at 05:00 UTC: seconds of CPU. With the sensor new_split on, each "
    "model is then trained on a split that changed, and with new_evaluation on, the models are compared.",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)

SCHEDULES = [every_night, every_week, every_month]
