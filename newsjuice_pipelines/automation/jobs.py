"""Jobs: the selections that people and schedules run by name."""

from typing import Any

import dagster as dg

from newsjuice_pipelines.automation.partitions import classifier_models, daily

BY_HAND = ("promoted_model",)  # what only a person materialises

daily_scripts = dg.define_asset_job(
    "daily_scripts",
    selection=dg.AssetSelection.assets("article_chunks", "teacher_scripts"),
    partitions_def=daily,
    description="One day's chunks and their teacher scripts. Costs money when the teacher is Gemini.",
)

train_student = dg.define_asset_job(
    "train_student",
    selection=dg.AssetSelection.groups("podcast") - dg.AssetSelection.assets("article_chunks", "teacher_scripts", *BY_HAND),
    description="From the scripts that are there to a student model, its reports and the decision.",
)

prepare_topics = dg.define_asset_job(
    "prepare_topics",
    selection=dg.AssetSelection.assets("huffpost_articles", "taxonomy", "balanced_split", "overlap_report"),
    description="Reads the headlines, maps their sections to classes and splits them.",
)

train_classifier = dg.define_asset_job(
    "train_classifier",
    selection=dg.AssetSelection.assets(
        "classifier_checkpoint", "classifier_eval_report", "exported_classifier", "external_predictions"
    ),
    partitions_def=classifier_models,
    description="Trains, evaluates, exports and applies one classifier model; backfill it over models.",
)

compare_classifiers = dg.define_asset_job(
    "compare_classifiers",
    selection=dg.AssetSelection.assets("model_leaderboard", "classifier_decision"),
    description="Compares the models that were evaluated and decides.",
)

JOBS = [daily_scripts, train_student, prepare_topics, train_classifier, compare_classifiers]


def within_budget(budget_usd: float) -> dict[str, Any]:
    """Run configuration under which the teacher stops before `budget_usd` is passed; what is left over waits for another run."""
    return {"ops": {"teacher_scripts": {"config": {"max_budget_usd": budget_usd}}}}
