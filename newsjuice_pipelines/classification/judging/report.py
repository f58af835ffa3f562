"""Markdown pages and plots of the classification reports, made from their results. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.reports import NOT_MEASURED, PALETTE, cell, markdown_table, new_figure, save_figure

HEADLINE_METRICS = (
    ("accuracy", "accuracy"),
    ("macro_precision", "macro precision"),
    ("macro_recall", "macro recall"),
    ("macro_f1", "macro F1"),
    ("weighted_precision", "weighted precision"),
    ("weighted_recall", "weighted recall"),
    ("weighted_f1", "weighted F1"),
)


def percent(share: float | None) -> str:
    """A share as a percentage, or "not measured"."""
    return NOT_MEASURED if share is None else f"{100 * share:.2f} %"


def interval(bounds: Sequence[float] | None) -> str:
    """An interval of shares as percentages."""
    return NOT_MEASURED if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def evaluation_page(results: Mapping[str, Any]) -> str:
    """The page of one classifier's evaluation."""
    metrics = [
        (title, percent(results["metrics"][name]["value"]), interval(results["metrics"][name]["interval"]))
        for name, title in HEADLINE_METRICS
    ]
    calibration = [
        (title, results["calibration"][name]["before"], results["calibration"][name]["after"])
        for name, title in (("ece", "expected calibration error"), ("brier", "Brier score"), ("nll", "negative log-likelihood"))
    ]
    per_class = [
        (row["label"], row["support"], percent(row["precision"]), percent(row["recall"]), percent(row["f1"]))
        for row in sorted(results["per_class"], key=lambda row: (row["f1"] is None, row["f1"], row["label"]))
    ]
    confused = [
        (f"{pair['true']} read as {pair['predicted']}", pair["rows"], percent(pair["share"])) for pair in results["confused"]
    ]
    return "\n".join(
        [
            f"# Evaluation: {cell(results['model'])}",
            "",
            f"{results['test_rows']:,} test texts in {len(results['classes'])} classes, not seen in training, selection or "
            f"calibration. The intervals hold 95 % of {results['bootstrap_draws']:,} bootstrap draws of duplicate groups.",
            "",
            markdown_table(("measure", "value", "95 % interval"), metrics),
            "",
            f"The right class is among the first three for {percent(results['top3_accuracy'])} of the texts. "
            f"{results['texts_per_s']:,.0f} texts a second on {cell(results['device'])}; checkpoint "
            f"{results['size_bytes'] / 1e6:,.1f} MB.",
            "",
            "## Can its confidence be trusted?",
            "",
            f"Temperature {results['temperature']:.3f}, fitted on {results['calibration_rows']:,} calibration texts; "
            "measured on the test part. 0 is best in each row.",
            "",
            markdown_table(("measure", "as trained", "calibrated"), calibration),
            "",
            "![Reliability](reliability.png)",
            "",
            "## What it may file alone",
            "",
            _certified_text("the class", results["certified"]),
            "",
            _certified_text("the first three classes", results["certified_top3"]),
            "",
            "## Classes, weakest first",
            "",
            markdown_table(("class", "test texts", "precision", "recall", "F1"), per_class),
            "",
            "## Most confused",
            "",
            markdown_table(("pair", "texts", "share of the true class"), confused) if confused else "No text was misread.",
            "",
            "![Confusion matrix](confusion.png)",
            "",
        ]
    )


def _certified_text(what: str, certified: Mapping[str, Any]) -> str:
    """What a certified threshold promises, and what the test part shows."""
    promise = f"{percent(certified['target_precision'])} precision with {percent(certified['certainty'])} certainty"
    if certified["threshold"] is None:
        return (
            f"No threshold certifies {what} at {promise} on {certified['calibration_rows']:,} calibration texts: nothing is "
            "filed without a person, or more calibration texts are needed."
        )
    text = (
        f"A confidence of {certified['threshold']:.3f} certifies {what} at {promise}: on the calibration part "
        f"{percent(certified['coverage'])} of the texts reach it and {percent(certified['precision'])} of those are right "
        f"(at least {percent(certified['precision_low'])})."
    )
    test = certified["test"]
    if test["precision"] is None:
        return f"{text} No test text reaches it."
    return (
        f"{text} On the test part {percent(test['coverage'])} reach it and {percent(test['precision'])} are right "
        f"({interval(test['precision_interval'])})."
    )


def confusion_plot(shares: Sequence[Sequence[float]], classes: Sequence[str], path: Path) -> None:
    """The confusion matrix, each row divided by its sum."""
    _heatmap(shares, classes, path, "share of the true class", "predicted", "true")


def class_heatmap(cosines: Sequence[Sequence[float]], classes: Sequence[str], path: Path) -> None:
    """The similarity of every two classes."""
    _heatmap(cosines, classes, path, "cosine of the class means", "", "")


def _heatmap(values: Sequence[Sequence[float]], classes: Sequence[str], path: Path, title: str, x_name: str, y_name: str) -> None:
    """A square heat map with a name on every row and column."""
    side = max(5.0, 0.26 * len(classes) + 2.5)
    figure, (axis,) = new_figure(side + 0.6, side)
    image = axis.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0)
    axis.grid(False)
    ticks = range(len(classes))
    labels = [name.replace("$", r"\$") for name in classes]  # a dollar sign would start a formula
    axis.set_xticks(ticks, labels, rotation=90, fontsize=7)
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.set_xlabel(x_name)
    axis.set_ylabel(y_name)
    figure.colorbar(image, ax=axis, shrink=0.7, label=title)
    save_figure(figure, path)


def reliability_plot(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against confidence, as trained and calibrated; the area of a dot follows its rows."""
    figure, axes = new_figure(8.0, 3.8, columns=2)
    for axis, bins, title, colour in zip(axes, (before, after), ("as trained", "calibrated"), PALETTE, strict=False):
        rows = sum(item["rows"] for item in bins)
        axis.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle="--")
        x, y = [item["confidence"] for item in bins], [item["accuracy"] for item in bins]
        axis.plot(x, y, color=colour, linewidth=1)
        axis.scatter(x, y, s=[20 + 400 * item["rows"] / rows for item in bins], color=colour, alpha=0.7)
        axis.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.05))
    save_figure(figure, path)


def overlap_page(results: Mapping[str, Any]) -> str:
    """The page of a split's overlap report."""
    examples = [
        (
            f"{pair['texts'][0][:100]} / {pair['texts'][1][:100]}",
            " / ".join(pair["parts"]),
            " / ".join(pair["labels"]),
            pair["cosine"],
        )
        for pair in results["near_duplicate_examples"]
    ]
    similar = [(" / ".join(pair["classes"]), pair["cosine"]) for pair in results["similar_classes"]]
    scope = "every row" if results["checked_every_row"] else "a seeded sample"
    leaks = [
        ("texts in more than one part (must be 0)", results["shared_texts"]),
        ("duplicate groups in more than one part (must be 0)", results["shared_groups"]),
        (f"near-duplicate pairs (cosine of at least {results['near_duplicate_cosine']})", results["near_duplicate_pairs"]),
        ("held-out texts in such a pair", results["near_duplicate_rows"]),
    ]
    return "\n".join(
        [
            "# Overlap between the parts and between the classes",
            "",
            f"Near-duplicates were looked for in {scope}: {results['checked_held_out_rows']:,} held-out texts against "
            f"{results['checked_against_rows']:,} texts, by character 3- to 5-grams.",
            "",
            markdown_table(("leak", "count"), leaks),
            "",
            *([markdown_table(("texts", "parts", "classes", "cosine"), examples), ""] if examples else []),
            "## Classes that read alike",
            "",
            "The cosine of two classes' mean TF-IDF vectors. Classes that read alike limit what any classifier can reach.",
            "",
            markdown_table(("classes", "cosine"), similar),
            "",
            "![Similarity of the classes](class_similarity.png)",
            "",
        ]
    )


def external_page(results: Mapping[str, Any]) -> str:
    """The page of predictions on another source."""
    counts = [(name.replace("_", " "), value) for name, value in results["counts"].items()]
    unmapped = [(label, rows) for label, rows in results["unmapped_labels"].items()]
    shares = [
        ("labels with a counterpart", percent(results["mapped_share"]), NOT_MEASURED),
        ("predictions that match, over those", percent(results["match_rate"]), interval(results["match_interval"])),
        ("the same, filed ones only", percent(results["filed_match_rate"]), interval(results["filed_match_interval"])),
    ]
    return "\n".join(
        [
            f"# Another source: {cell(results['model'])}",
            "",
            f"{results['rows']:,} articles, compared through the crosswalk {cell(results['crosswalk'])}. A label without a "
            "counterpart among the classes counts neither as a match nor as a miss.",
            "",
            markdown_table(
                ("measure", "value", "95 % interval"),
                [(row[0], row[1], "" if i == 0 else row[2]) for i, row in enumerate(shares)],
            ),
            "",
            markdown_table(("articles", "count"), counts),
            "",
            *(["## Labels without a counterpart", "", markdown_table(("label", "articles"), unmapped), ""] if unmapped else []),
        ]
    )


def leaderboard_page(results: Mapping[str, Any]) -> str:
    """The page that ranks the models."""
    rows = [
        (
            entry["model"],
            percent(entry["accuracy"]),
            interval(entry["accuracy_interval"]),
            percent(entry["macro_f1"]),
            entry["ece"],
            entry["texts_per_s"],
            entry["size_bytes"] / 1e6,
            _p_value(entry),
        )
        for entry in results["ranking"]
    ]
    header = ("model", "accuracy", "95 % interval", "macro F1", "ECE", "texts/s", "MB", "worse than the best? (p)")
    return "\n".join(
        [
            "# Leaderboard",
            "",
            f"{results['test_rows']:,} test texts, the same for every model. The last column is McNemar's exact test of each "
            "model against the best on these texts, Holm-corrected: below 0.05 the difference is unlikely to be chance.",
            "",
            markdown_table(header, rows),
            "",
            "Speeds were measured when each model was evaluated, on the device named in its own report.",
            "",
            "![Accuracy of the models](leaderboard.png)",
            "",
        ]
    )


def _p_value(entry: Mapping[str, Any]) -> str:
    """A corrected p-value as text; the best model is compared with nothing."""
    if entry["p_corrected"] is None:
        return "best"
    return "< 0.0001" if entry["p_corrected"] < 1e-4 else f"{entry['p_corrected']:.4f}"


def leaderboard_plot(ranking: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy of every model with its interval."""
    figure, (axis,) = new_figure(7.0, 1.6 + 0.4 * len(ranking))
    for place, entry in enumerate(reversed(ranking)):
        low, high = entry["accuracy_interval"]
        errors = [[max(0.0, entry["accuracy"] - low)], [max(0.0, high - entry["accuracy"])]]
        axis.barh(place, entry["accuracy"], xerr=errors, color=PALETTE[0], height=0.6, ecolor="#374151", capsize=3)
    axis.set_yticks(range(len(ranking)), [entry["model"] for entry in reversed(ranking)])
    axis.set(xlim=(0, 1), xlabel="test accuracy, with its 95 % interval")
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    save_figure(figure, path)


def decision_page(decision: Mapping[str, Any]) -> str:
    """The page of the decision."""
    rows = [
        (
            criterion["name"],
            criterion["limit"],
            criterion["value"],
            NOT_MEASURED if criterion["interval"] is None else " to ".join(f"{bound:.4g}" for bound in criterion["interval"]),
            criterion["judged_by"],
            criterion["status"],
        )
        for criterion in decision["criteria"]
    ]
    return "\n".join(
        [
            f"# Decision: {decision['decision']}",
            "",
            f"Candidate: {cell(decision['model'])}, the first of the leaderboard. Thresholds {cell(decision['thresholds'])}, "
            "written down before the run. Adopted only when every criterion passes; what was not measured does not pass.",
            "",
            markdown_table(("criterion", "must be", "value", "95 % interval", "judged by", "status"), rows),
            "",
        ]
    )
