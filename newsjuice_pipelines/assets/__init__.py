"""Assets: read inputs, call one domain function, write, describe. `ALL_ASSETS` is the registry of the two groups."""

import warnings

import dagster as dg

# Backfill policies are marked beta, and every command would say so several times.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from newsjuice_pipelines.assets.classification import (  # noqa: E402
    balanced_split,
    classifier_checkpoint,
    classifier_decision,
    classifier_eval_report,
    exported_classifier,
    external_predictions,
    huffpost_articles,
    model_leaderboard,
    overlap_report,
    taxonomy,
)
from newsjuice_pipelines.assets.judging import (  # noqa: E402
    base_scripts,
    latency_report,
    podcast_decision,
    promoted_model,
    script_quality_report,
    student_scripts,
)
from newsjuice_pipelines.assets.podcast import article_chunks, base_model, student_dataset, teacher_scripts  # noqa: E402
from newsjuice_pipelines.assets.student import lora_adapter, merged_model, quantised_base, quantised_model  # noqa: E402

ALL_ASSETS = [
    article_chunks,
    teacher_scripts,
    base_model,
    student_dataset,
    lora_adapter,
    merged_model,
    quantised_model,
    quantised_base,
    student_scripts,
    base_scripts,
    latency_report,
    script_quality_report,
    podcast_decision,
    promoted_model,
    huffpost_articles,
    taxonomy,
    balanced_split,
    overlap_report,
    classifier_checkpoint,
    classifier_eval_report,
    exported_classifier,
    external_predictions,
    model_leaderboard,
    classifier_decision,
]
