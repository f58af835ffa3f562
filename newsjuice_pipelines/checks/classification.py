"""Checks of the classification group. Blocking ones stop what is downstream in the same run."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from newsjuice_pipelines.checks.podcast import evaluate_verdict
from newsjuice_pipelines.checks.result import CheckOutcome, as_result
from newsjuice_pipelines.classification.judging.in_force import current_evaluations, current_exports, current_external_predictions
from newsjuice_pipelines.classification.serving.external import judge_crosswalk
from newsjuice_pipelines.resources.artifacts import Artifacts

DUPLICATE_REASONS = ("duplicate_text", "duplicate_text_other_category")
UNUSABLE_LINES_LIMIT = 0.05
UNKNOWN_SECTIONS_LIMIT = 0.05


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


def evaluate_split(problems: Mapping[str, Sequence[str]], rows_per_part: Mapping[str, int]) -> CheckOutcome:
    """Whether a split is as promised: no text or near-duplicate on two sides, the counts of its preset, whole columns."""
    found = [problem for group in problems.values() for problem in group]
    if found:
        return CheckOutcome(False, " ".join(found[:5]), {**{name: len(of) for name, of in problems.items()}, **rows_per_part})
    return CheckOutcome(True, "No text and no near-duplicate is in two parts, and every class has its rows.", {**rows_per_part})


def evaluate_against_chance(evaluations: Mapping[str, Mapping[str, Any]], classes: int) -> CheckOutcome:
    """Whether each model is better than guessing, with 95 % confidence."""
    if not evaluations:
        return CheckOutcome(False, "No model was evaluated on the split in force: materialise classifier_eval_report again.")
    lower = {model: facts["accuracy_interval"][0] for model, facts in evaluations.items()}
    guessing = sorted(model for model, bound in lower.items() if bound <= 1 / classes)
    if guessing:
        return CheckOutcome(False, f"No better than guessing one of {classes} classes: {', '.join(guessing)}.", {"lower": lower})
    return CheckOutcome(True, f"Better than guessing one of {classes} classes: {', '.join(sorted(lower))}.", {"lower": lower})


def evaluate_certificates(evaluations: Mapping[str, Mapping[str, Any]]) -> CheckOutcome:
    """Whether the test part contradicts a certified precision: a promise is broken when its interval lies below the target."""
    if not evaluations:
        return CheckOutcome(False, "No model was evaluated on the split in force: materialise classifier_eval_report again.")
    given = {
        f"{model}, {stage}": promise
        for model, facts in evaluations.items()
        for stage, promise in facts["certificates"].items()
        if promise["threshold"] is not None
    }
    if not given:
        return CheckOutcome(True, "No threshold could be certified, so nothing is filed and there is nothing to hold it against.")
    broken = {
        name: promise["precision_interval"]
        for name, promise in given.items()
        if promise["precision_interval"] is not None and promise["precision_interval"][1] < promise["target_precision"]
    }
    if broken:
        return CheckOutcome(
            False, f"Less precise on the test part than certified: {'; '.join(sorted(broken))}.", {"broken": broken}
        )
    return CheckOutcome(True, f"The test part agrees with every certified threshold: {'; '.join(sorted(given))}.")


def evaluate_crosswalk(results: Mapping[str, Mapping[str, Any]]) -> CheckOutcome:
    """Whether the crosswalk knows the foreign labels: a comparison with unknown ones says nothing."""
    if not results:
        return CheckOutcome(False, "No predictions of a checkpoint in force: materialise external_predictions again.")
    verdicts = {model: judge_crosswalk(found) for model, found in results.items()}
    shares = {model: found["mapped_share"] for model, found in results.items()}
    failed = [sentence for passed, sentence in verdicts.values() if not passed]
    sentence = failed[0] if failed else next(iter(verdicts.values()))[1]
    return CheckOutcome(not failed, sentence, {"mapped_share": shares})


def evaluate_export(facts: Mapping[str, Mapping[str, Any]]) -> CheckOutcome:
    """Whether every exported model may be served: those that lost too much are served by PyTorch instead."""
    if not facts:
        return CheckOutcome(False, "No export of a checkpoint in force: materialise exported_classifier again.")
    failed = sorted(model for model, found in facts.items() if found["passed"] is False)
    reasons = {model: found["reason"] for model, found in facts.items()}
    if failed:
        return CheckOutcome(
            False, f"Not served in 8 bits: {'; '.join(f'{model}: {reasons[model]}' for model in failed)}.", reasons
        )
    return CheckOutcome(True, "; ".join(f"{model}: {reason}" for model, reason in reasons.items()) + ".", reasons)


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
def split_is_as_promised(artifacts: Artifacts) -> dg.AssetCheckResult:
    """Parts share no text and no near-duplicate, every class has the rows that the preset promises, and the columns are whole."""
    from newsjuice_pipelines.classification.corpus.split_checks import split_problems

    parts = artifacts.store().open("balanced_split")
    return as_result(evaluate_split(split_problems(parts.path), parts.facts["rows_per_part"]))


@dg.asset_check(asset="classifier_eval_report")
def classifiers_beat_guessing(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The interval of each model's accuracy, on the split in force, lies above one over the number of classes."""
    store = artifacts.store()
    evaluations = {model: report.facts for model, report in current_evaluations(store).items()}
    return as_result(evaluate_against_chance(evaluations, store.open("balanced_split").facts["class_count"]), warn_only=True)


@dg.asset_check(asset="classifier_eval_report")
def certificates_hold_on_test(artifacts: Artifacts) -> dg.AssetCheckResult:
    """What is filed alone, under a parent or among three is as precise on the test part as certified, by model."""
    evaluations = {model: report.facts for model, report in current_evaluations(artifacts.store()).items()}
    return as_result(evaluate_certificates(evaluations), warn_only=True)


@dg.asset_check(asset="exported_classifier")
def export_is_as_accurate(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The 8-bit model loses at most 0.3 points of accuracy on the validation part; otherwise PyTorch serves."""
    facts = {model: exported.facts for model, exported in current_exports(artifacts.store()).items()}
    return as_result(evaluate_export(facts), warn_only=True)


@dg.asset_check(asset="external_predictions")
def foreign_labels_are_known(artifacts: Artifacts) -> dg.AssetCheckResult:
    """At least 95 % of the foreign labels have a counterpart in the crosswalk, for the checkpoints in force."""
    facts = {model: found.facts for model, found in current_external_predictions(artifacts.store()).items()}
    return as_result(evaluate_crosswalk(facts))


@dg.asset_check(asset="classifier_decision")
def classifier_is_worth_adopting(artifacts: Artifacts) -> dg.AssetCheckResult:
    """The verdict of the decision: a warning when it is "do not adopt"."""
    return as_result(evaluate_verdict(artifacts.store().open("classifier_decision").facts), warn_only=True)


CLASSIFICATION_CHECKS = [
    most_lines_are_usable,
    every_section_has_a_class,
    split_is_as_promised,
    classifiers_beat_guessing,
    certificates_hold_on_test,
    export_is_as_accurate,
    foreign_labels_are_known,
    classifier_is_worth_adopting,
]
