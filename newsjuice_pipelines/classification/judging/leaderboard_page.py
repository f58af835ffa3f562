"""The page and the plot of the leaderboard, made from its results. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.judging.report import interval, percent
from newsjuice_pipelines.runtime.reports import PALETTE, cell, markdown_table, new_figure, save_figure

HEADER = (
    *("model", "recipe", "validation accuracy", "test accuracy", "95 % interval", "macro F1", "ECE", "filed"),
    *("texts/s", "MB", "behind the best (points)", "p"),
)


def leaderboard_page(results: Mapping[str, Any]) -> str:
    """The page that ranks the models."""
    rows = [
        (
            entry["model"] if entry["eligible"] else f"{entry['model']} (chosen by the test part)",
            entry["recipe"],
            percent(entry["validation_accuracy"]),
            percent(entry["accuracy"]),
            interval(entry["accuracy_interval"]),
            percent(entry["macro_f1"]),
            entry["ece"],
            percent(entry["share_filed"]),
            entry["texts_per_s"],
            entry["size_bytes"] / 1e6,
            _points(entry["behind_best"], entry["behind_best_interval"]),
            _p_value(entry["p_corrected"]),
        )
        for entry in results["ranking"]
    ]
    pairs = [
        (
            f"{pair['first']} over {pair['second']}",
            _points(pair["difference"], pair["interval"]),
            pair["only_first"],
            pair["only_second"],
            _p_value(pair["p_corrected"]),
        )
        for pair in results["pairs"]
    ]
    return "\n".join(
        [
            "# Leaderboard",
            "",
            _best_sentence(results),
            "",
            f"{results['test_rows']:,} test texts, the same for every model. The models are in the order of their validation "
            "accuracy, so that the test part picks nothing: its scores are those of models chosen without it. A model whose "
            "checkpoint the test part selected stands last and cannot be the best. Texts filed are those above the certified "
            "threshold.",
            "",
            markdown_table(HEADER, rows),
            "",
            "The last two columns compare with the best on the same texts: the difference in accuracy with its 95 % interval, "
            f"from {results['bootstrap_draws']:,} draws of groups of near-duplicates, and the p-value of the exact "
            "sign-flip test over the same groups (McNemar's exact test where every text stands alone), Holm-corrected. Above "
            "0.05 the difference may be chance. Speeds were measured when each model was evaluated, on the device named in its "
            "own report.",
            "",
            "![Accuracy of the models](leaderboard.png)",
            "",
            *(["## Every two models", "", _pairs_table(pairs), ""] if pairs else []),
        ]
    )


def _best_sentence(results: Mapping[str, Any]) -> str:
    if results["best"] is None:
        return "No model can be the best: the test part selected the checkpoint of every one."
    text = f"Best: {cell(results['best'])}."
    tied = results["not_told_apart"]
    return f"{text} Not told apart from it on these texts: {', '.join(cell(model) for model in tied)}." if tied else text


def _pairs_table(rows: Sequence[Sequence[Any]]) -> str:
    header = ("pair", "difference in accuracy (points)", "only the first right", "only the second right", "p")
    return markdown_table(header, rows)


def _points(difference: float | None, bounds: Sequence[float] | None) -> str:
    """A difference of shares in points, with its interval."""
    if difference is None or bounds is None:
        return "–"
    return f"{100 * difference:+.1f} ({100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})"


def _p_value(value: float | None) -> str:
    """A corrected p-value as text; nothing for a model that is compared with itself."""
    if value is None:
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def leaderboard_plot(ranking: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy of every model with its interval; grey where the test part selected the checkpoint."""
    figure, (axis,) = new_figure(7.0, 1.6 + 0.4 * len(ranking))
    for place, entry in enumerate(reversed(ranking)):
        low, high = entry["accuracy_interval"]
        errors = [[max(0.0, entry["accuracy"] - low)], [max(0.0, high - entry["accuracy"])]]
        colour = PALETTE[0] if entry["eligible"] else PALETTE[5]
        axis.barh(place, entry["accuracy"], xerr=errors, color=colour, height=0.6, ecolor="#374151", capsize=3)
    axis.set_yticks(range(len(ranking)), [entry["model"].replace("$", r"\$") for entry in reversed(ranking)])
    axis.set(xlim=(0, 1), xlabel="test accuracy, with its 95 % interval")
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    save_figure(figure, path)
