"""Schedules, all stopped until a person starts them. Each description says what a tick costs."""

import dagster as dg

from newsjuice_pipelines.automation.jobs import daily_scripts, prepare_topics, train_student

every_night = dg.build_schedule_from_partitioned_job(
    daily_scripts,
    name="every_night",
    hour_of_day=2,
    minute_of_hour=0,
    description="Yesterday's chunks and scripts, at 02:00 UTC. Free with the extractive teacher, paid with Gemini.",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)

every_week = dg.ScheduleDefinition(
    job=train_student,
    name="every_week",
    cron_schedule="0 4 * * 1",
    execution_timezone="UTC",
    description="Retrains the student from all scripts, Mondays at 04:00 UTC. Costs one GPU for the length of a training.",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)

every_month = dg.ScheduleDefinition(
    job=prepare_topics,
    name="every_month",
    cron_schedule="0 5 1 * *",
    execution_timezone="UTC",
    description="Re-reads and splits the headlines, on the 1st at 05:00 UTC. Seconds of CPU; backfill the models after it.",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)

SCHEDULES = [every_night, every_week, every_month]
