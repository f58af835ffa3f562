"""Checks of the classification group. Blocking ones stop what is downstream in the same run."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from newsjuice_pipelines.checks.podcast import evaluate_verdict
from newsjuice_pipelines.checks.result import CheckOutcome, as_result
from newsjuice_pipelines.classification.judging.in_force import current_evaluations, current_external_predictions
from newsjuice_pipelines.resources.artifacts import Artifacts

DUPLICATE_REASONS = ("duplicate_text", "duplicate_text_other_category")
UNUSABLE_LINES_LIMIT = 0.05
UNKNOWN_SECTIONS_LIMIT = 0.05
MAPPED_LABELS_LIMIT = 0.95


def evaluate_headlines(counts: Mapping[str, int]) -> CheckOutcome:
    """Whether most lines of the file could be used; a text that occurs again is not held against it."""
    lines, kept = counts["lines"], counts["kept"]
    duplicates = sum(counts.get(f"dropped_{reason}", 0) for reason in DUPLICATE_REASONS)
    unusable = 1 - (kept + duplicates) / max(lines, 1)
    sentence = (
        f"{kept:,} of {lines:,} lines are kept; {unusable:.1%} could not be used (at most {UNUSABLE_LINES_LIMIT:.0%} is fine)."
    )
    return CheckOutcome(unusable <= UNUSABLE_LINES_LIMIT, sentence, {"counts": dict(counts)})


def evaluate_sections(unknown_rows: int, known_rows: int, unknown: Mapping[str, int]) -> CheckOutcome:
    """Whether the taxonomy knows the sections of the data."""
    share = unknown_rows / max(unknown_rows + known_rows, 1)
    names = ", ".join(sorted(unknown, key=lambda name: -unknown[name])[:5])
    sentence = (
        "Every section has a class." if not unknown else f"{share:.1%} of the rows are in sections without a class: {names}."
    )
    return CheckOutcome(share <= UNKNOWN_SECTIONS_LIMIT, sentence, {"unknown_categories": dict(unknown)})


def evaluate_leaks(shared_texts: int, shared_groups: int, rows_per_part: Mapping[str, int]) -> CheckOutcome:
    """No text and no group of duplicates in two parts, and rows in every part."""
    figures: dict[str, Any] = {"shared_texts": shared_texts, "shared_groups": shared_groups, **rows_per_part}
    empty = [part for part, rows in rows_per_part.items() if rows == 0]
    if empty:
        return CheckOutcome(False, f"No rows in {', '.join(empty)}.", figures)
    if shared_texts or shared_groups:
        return CheckOutcome(False, f"{shared_texts} texts and {shared_groups} groups of duplicates are in two parts.", figures)
    return CheckOutcome(True, "No text and no group of duplicates is in two parts.", figures)


def evaluate_against_chance(evaluations: Mapping[str, Mapping[str, Any]], classes: int) -> CheckOutcome:
    """Whether each model is better than guessing, with 95 % confidence."""
    if not evaluations:
        return CheckOutcome(False, "No model was evaluated on the split in force: materialise classifier_eval_report again.")
    lower = {model: facts["accuracy_interval"][0] for model, facts in evaluations.items()}
    guessing = sorted(model for model, bound in lower.items() if bound <= 1 / classes)
    if guessing:
        return CheckOutcome(False, f"No better than guessing one of {classes} classes: {', '.join(guessing)}.", {"lower": lower})
    return CheckOutcome(True, f"Better than guessing one of {classes} classes: {', '.join(sorted(lower))}.", {"lower": lower})


def evaluate_labels(facts: Mapping[str, Mapping[str, Any]]) -> CheckOutcome:
    """Whether the crosswalk knows the foreign labels: a comparison with unknown ones says nothing."""
    if not facts:
        return CheckOutcome(False, "No predictions of a checkpoint in force: materialise external_predictions again.")
    shares = {model: found["mapped_share"] for model, found in facts.items()}
    unmapped = {label for found in facts.values() for label in found["unmapped_labels"]}
    if any(share is None for share in shares.values()):
        return CheckOutcome(False, "The articles carry no labels, so nothing could be compared.", {"mapped_share": shares})
    lowest = min(shares.values())
    sentence = f"{lowest:.1%} of the labels have a counterpart (at least {MAPPED_LABELS_LIMIT:.0%} is asked)."
    if unmapped:
        sentence += f" Without one: {', '.join(sorted(unmapped)[:10])}."
    return CheckOutcome(lowest >= MAPPED_LABELS_LIMIT, sentence, {"mapped_share": shares})


@dg.asset_check(asset="huffpost_articles")
def most_lines_are_usable(artifacts: Artifacts) -> dg.AssetCheckResult:
    """Broken and empty lines are few; exact duplicates are not held against the file."""
    return as_result(evaluate_headlines(artifacts.store().open("huffpost_articles").facts["counts"]), warn_only=True)


@dg.asset_check(asset="taxonomy")
def every_section_has_a_class(artifacts: Artifacts) -> dg.AssetCheckResult:
    """Rows in sections that the taxonomy does not name are few."""
    facts = artifacts.store().open("taxonomy").facts
    return as_result(evaluate_sections(facts["unknown_rows"], facts["row_count"], facts["unknown_categories"]), warn_only=True)


@dg.asset_check(asset="balanced_split", blocking=True)
def no_text_in_two_parts(artifacts: Artifacts) -> dg.AssetCheckResult:
    """Train, validation, calibration and test share no text and no group of duplicates."""
    from newsjuice_pipelines.classification.corpus.split import count_shared

    parts = artifacts.store().open("balanced_split")
    shared = count_shared(parts.path)
    return as_result(evaluate_leaks(shared["text"], shared["group"], parts.facts["rows_per_part"]))


@dg.asset_check(asset="classifier_eval_report")
def classifiers_beat_guessing(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The interval of each model's accuracy, on the split in force, lies above one over the number of classes."""
    store = artifacts.store()
    evaluations = {model: report.facts for model, report in current_evaluations(store).items()}
    return as_result(evaluate_against_chance(evaluations, store.open("balanced_split").facts["class_count"]), warn_only=True)


@dg.asset_check(asset="external_predictions")
def foreign_labels_are_known(artifacts: Artifacts) -> dg.AssetCheckResult:
    """At least 95 % of the foreign labels have a counterpart in the crosswalk, for the checkpoints in force."""
    facts = {model: found.facts for model, found in current_external_predictions(artifacts.store()).items()}
    return as_result(evaluate_labels(facts), warn_only=True)


@dg.asset_check(asset="classifier_decision")
def classifier_is_worth_adopting(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The verdict of the decision: a warning when it is "do not adopt"."""
    return as_result(evaluate_verdict(artifacts.store().open("classifier_decision").facts), warn_only=True)


CLASSIFICATION_CHECKS = [
    most_lines_are_usable,
    every_section_has_a_class,
    no_text_in_two_parts,
    classifiers_beat_guessing,
    foreign_labels_are_known,
    classifier_is_worth_adopting,
]
