"""The two ways in which assets are partitioned."""

from datetime import date

import dagster as dg

from newsjuice_pipelines.classification.training.models import OURS, available_offline, catalogue
from newsjuice_pipelines.settings import load_settings

# Days of `fetched_at`, UTC. The first day is read once, when the code location loads.
daily = dg.DailyPartitionsDefinition(start_date=load_settings().first_day.isoformat(), timezone="UTC")

# One partition a classifier model, so that a backfill trains and reports on any set of them. Models that a setting adds are read
# once, when the code location loads.
CLASSIFIERS = catalogue(load_settings().classifiers)
classifier_models = dg.StaticPartitionsDefinition(list(CLASSIFIERS))


def days_of(context: dg.AssetExecutionContext) -> list[date]:
    """The days that this run covers, in order: one, or all of a range when the run is a single-run backfill."""
    return [date.fromisoformat(key) for key in context.partition_keys]


def models_at_hand() -> list[str]:
    """The classifier models of our own recipe whose weights are on this machine, in the order of the table."""
    return [name for name, model in CLASSIFIERS.items() if model.recipe == OURS and available_offline(model)]
