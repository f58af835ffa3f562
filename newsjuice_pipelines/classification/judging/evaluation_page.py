"""The page and the plots of one classifier's evaluation, made from its results. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.judging.report import heatmap, interval, percent
from newsjuice_pipelines.runtime.reports import PALETTE, cell, markdown_table, new_figure, save_figure

HEADLINE_METRICS = (
    ("accuracy", "accuracy"),
    ("macro_precision", "macro precision"),
    ("macro_recall", "macro recall"),
    ("macro_f1", "macro F1"),
    ("weighted_precision", "weighted precision"),
    ("weighted_recall", "weighted recall"),
    ("weighted_f1", "weighted F1"),
)
CERTIFICATES = (
    ("certified", "the class", "the classifier's confidence"),
    ("certified_parent", "the parent, where it holds several classes,", "the sum over the parent's classes"),
    ("certified_top3", "the first three classes together", "the sum over the three"),
)
ANSWERS = (
    ("filed", "filed under a class"),
    ("parent", "filed under a parent"),
    ("top-3", "three classes offered"),
    ("abstained", "left to a person"),
)


def write_evaluation_page(results: Mapping[str, Any], out: Path) -> None:
    """Write `report.md`, `confusion.png`, `reliability.png` and `risk_coverage.png` to `out`."""
    (out / "report.md").write_text(evaluation_page(results), encoding="utf-8")
    shares = [[count / max(1, sum(row)) for count in row] for row in results["confusion"]]
    heatmap(shares, results["classes"], out / "confusion.png", "share of the true class", "predicted", "true")
    bins = results["calibration"]["bins"]
    reliability_plot(bins["before"], bins["after"], out / "reliability.png")
    risk_coverage_plot(results, out / "risk_coverage.png")


def evaluation_page(results: Mapping[str, Any]) -> str:
    """The page of one classifier's evaluation."""
    metrics = [
        (title, percent(results["metrics"][name]["value"]), interval(results["metrics"][name]["interval"]))
        for name, title in HEADLINE_METRICS
    ]
    return "\n".join(
        [
            f"# Evaluation: {cell(results['model'])}",
            "",
            f"{results['test_rows']:,} test texts in {len(results['classes'])} classes, not seen in training or calibration. The "
            f"intervals hold 95 % of {results['bootstrap_draws']:,} bootstrap draws of groups of near-duplicates.",
            "",
            *_warnings(results),
            markdown_table(("measure", "value", "95 % interval"), metrics),
            "",
            f"The right class is among the first three for {percent(results['top3_accuracy'])} of the texts, the right parent is "
            f"the likeliest one for {percent(results['parent_accuracy'])}. On the {results['validation']['rows']:,} validation "
            f"texts, by which the leaderboard chooses, the accuracy is {percent(results['validation']['accuracy'])}.",
            "",
            f"{results['texts_per_s']:,.0f} texts a second on {cell(results['device'])}; checkpoint "
            f"{results['size_bytes'] / 1e6:,.1f} MB.",
            "",
            *_calibration_section(results),
            *_risk_section(results["risk_coverage"]),
            *_answers_section(results),
            *_sets_section(results),
            *_classes_section(results),
        ]
    )


def _warnings(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the numbers."""
    warnings = []
    if results["test_readings"] > 1:
        warnings.append(
            f"**The test part was read {results['test_readings']} times** for checkpoints of this model, on request. Where the "
            "readings led to choices, these scores are too good."
        )
    if results["selected_on"] == "test":
        warnings.append(
            "**The test part selected this checkpoint**, as the original experiment did: these scores are too good, and the "
            "leaderboard does not let it win."
        )
    return [line for warning in warnings for line in (warning, "")]


def _calibration_section(results: Mapping[str, Any]) -> list[str]:
    calibration = results["calibration"]
    rows = [
        (title, calibration[name]["before"], calibration[name]["after"])
        for name, title in (("ece", "expected calibration error"), ("brier", "Brier score"), ("nll", "negative log-likelihood"))
    ]
    error, chance = calibration["ece"], calibration["ece"]["of_a_calibrated_one"]
    return [
        "## Can its confidence be trusted?",
        "",
        f"Temperature {results['temperature']:.3f}, fitted on {results['calibration_rows']:,} calibration texts; measured on the "
        "test part. 0 is best in each row.",
        "",
        markdown_table(("measure", "as trained", "calibrated"), rows),
        "",
        f"The calibration error is the mean gap between confidence and accuracy over bins of equally many texts; calibrated, its "
        f"95 % interval is {_bounds(error['interval'])}. Of few texts it is biased upwards, since chance alone opens gaps: a "
        f"perfectly calibrated classifier with these confidences would show {chance['mean']:.3f} on average, and up to "
        f"{chance['high']:.3f} in 95 % of such tests.",
        "",
        "![Reliability](reliability.png)",
        "",
    ]


def _risk_section(risk: Mapping[str, Any]) -> list[str]:
    return [
        "## How wrong, at every share of answers",
        "",
        f"When only the texts it is surest of are answered, errors become fewer. The area under that curve is {risk['aurc']:.4f} "
        f"(95 % interval {_bounds(risk['aurc_interval'])}); a perfect order of the same errors gives "
        f"{risk['aurc_of_perfect_order']:.4f}, a confidence that says nothing {risk['aurc_of_no_order']:.4f}.",
        "",
        "![Error against the share answered](risk_coverage.png)",
        "",
    ]


def _answers_section(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, title in ANSWERS:
        answer = results["cascade"][name]
        precision = answer.get("precision", {"value": None, "interval": None})
        right = "–" if precision["value"] is None else percent(precision["value"])
        bounds = "–" if precision["interval"] is None else interval(precision["interval"])
        rows.append(
            (title, answer["rows"], percent(answer["share"]["value"]), interval(answer["share"]["interval"]), right, bounds)
        )
    header = ("answer", "test texts", "share", "95 % interval", "right", "95 % interval")
    return [
        "## What it may say alone",
        "",
        f"Thresholds were certified on {results['calibration_groups']:,} calibration texts, one of every group of "
        "near-duplicates. Every promise is about the texts that the answers before it left over.",
        "",
        *[f"- {_certified_text(what, sum_of, results[name])}" for name, what, sum_of in CERTIFICATES],
        "",
        "On the test part:",
        "",
        markdown_table(header, rows),
        "",
    ]


def _certified_text(what: str, probability: str, certified: Mapping[str, Any]) -> str:
    """What a certified threshold promises, and what the test part shows."""
    promise = f"{percent(certified['target_precision'])} precision with {percent(certified['certainty'])} certainty"
    if certified["threshold"] is None:
        return (
            f"No threshold certifies {what} at {promise} on the {certified['calibration_rows']:,} calibration texts left: this "
            "answer is never given. A better classifier or more calibration texts may change it."
        )
    text = (
        f"A probability of {certified['threshold']:.3f} ({probability}) certifies {what} at {promise}: "
        f"{percent(certified['coverage'])} of the calibration texts get this answer and {percent(certified['precision'])} of "
        f"those are right (at least {percent(certified['precision_low'])})."
    )
    test = certified["test"]
    if test["precision"] is None:
        return f"{text} No test text gets it."
    return f"{text} On the test part {percent(test['precision'])} are right ({interval(test['precision_interval'])})."


def _sets_section(results: Mapping[str, Any]) -> list[str]:
    conformal = results["conformal"]
    rows = [
        (
            name if number else f"{name} (served)",
            percent(found["coverage"]),
            percent(found["lowest_class_coverage"]),
            found["mean_size"],
            percent(found["share_of_one"]),
            percent(found["share_empty"]),
        )
        for number, (name, found) in enumerate(conformal["methods"].items())
    ]
    header = ("sets", "hold the right class", "in the weakest class", "mean classes", "one class", "none")
    few = conformal["classes_with_too_few_rows"]
    missing = f" Too few calibration texts, so always in the set: {', '.join(cell(name) for name in few)}." if few else ""
    return [
        "## Prediction sets",
        "",
        f"A conformal set names the classes that a text may have. It promises to hold the right one for "
        f"{percent(conformal['target_coverage'])} of the texts of every class; on few texts a class the share that is seen "
        f"scatters around that.{missing}",
        "",
        markdown_table(header, rows),
        "",
    ]


def _classes_section(results: Mapping[str, Any]) -> list[str]:
    per_class = [
        (
            row["label"],
            row["support"],
            percent(row["precision"]),
            percent(row["recall"]),
            percent(row["f1"]),
            row["filed"],
            "–" if row["filed_precision"] is None else percent(row["filed_precision"]),
            percent(row["set_coverage"]),
        )
        for row in sorted(results["per_class"], key=lambda row: (row["f1"] is None, row["f1"] or 0.0, row["label"]))
    ]
    confused = [
        (
            f"{pair['true']} read as {pair['predicted']}",
            pair["rows"],
            percent(pair["share"]),
            " / ".join(example["text"] for example in pair["examples"]),
        )
        for pair in results["confused"]
    ]
    header = ("class", "test texts", "precision", "recall", "F1", "filed", "of these right", "in its set")
    pairs = markdown_table(("pair", "texts", "share of the true class", "examples, the surest first"), confused)
    return [
        "## Classes, weakest first",
        "",
        "What is certified holds for all filed texts together: those filed under one class may be right less often.",
        "",
        markdown_table(header, per_class),
        "",
        "## Most confused",
        "",
        pairs if confused else "No text was misread.",
        "",
        "![Confusion matrix](confusion.png)",
        "",
    ]


def _bounds(bounds: Sequence[float]) -> str:
    """An interval of numbers that are no shares."""
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def reliability_plot(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy, with its 95 % interval, against confidence, as trained and calibrated; a dot stands for equally many texts."""
    figure, axes = new_figure(8.0, 3.8, columns=2)
    for axis, bins, title, colour in zip(axes, (before, after), ("as trained", "calibrated"), PALETTE, strict=False):
        axis.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle="--")
        x, y = [item["confidence"] for item in bins], [item["accuracy"] for item in bins]
        errors = [[max(0.0, item["accuracy"] - item["interval"][0]) for item in bins]]
        errors.append([max(0.0, item["interval"][1] - item["accuracy"]) for item in bins])
        axis.errorbar(x, y, yerr=errors, color=colour, linewidth=1, marker="o", markersize=4, ecolor="#9ca3af", capsize=2)
        axis.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.05))
    save_figure(figure, path)


def risk_coverage_plot(results: Mapping[str, Any], path: Path) -> None:
    """The error among the surest texts against the share answered, the error that the certificate allows, and what is filed."""
    figure, (axis,) = new_figure(6.4, 3.6)
    curve, allowed = results["risk_coverage"]["curve"], 1 - results["certified"]["target_precision"]
    axis.plot([point["coverage"] for point in curve], [point["error"] for point in curve], color=PALETTE[0])
    axis.axhline(allowed, color=PALETTE[1], linewidth=1, linestyle="--", label=f"{100 * allowed:.0f} % errors")
    filed = results["cascade"]["filed"]["share"]["value"]
    if filed:
        axis.axvline(filed, color=PALETTE[2], linewidth=1, linestyle=":", label=f"filed: {100 * filed:.1f} %")
    axis.set(xlabel="share of the test texts answered, the surest first", ylabel="share of errors among them", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    save_figure(figure, path)
