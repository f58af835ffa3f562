"""The Markdown page of predictions on another source, made from their results. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from newsjuice_pipelines.runtime.reports import NOT_MEASURED, cell, markdown_table

ANSWERS = (("filed", "the class is right"), ("parent", "the parent is right"), ("top-3", "the right class is among the three"))


def external_page(results: Mapping[str, Any]) -> str:
    """The page of predictions on another source."""
    counts = [(name.replace("_", " "), value) for name, value in results["counts"].items()]
    answer = "Yes" if results["crosswalk_passed"] else "No"
    return "\n".join(
        [
            f"# Another source: {cell(results['model'])}",
            "",
            f"{results['rows']:,} articles, compared {_how(results)}. A label without a counterpart among the classes counts "
            "neither as a match nor as a miss.",
            "",
            f"Do the vocabularies meet? {answer}. {cell(results['crosswalk_sentence'])}",
            "",
            markdown_table(("measure", "value", "95 % interval", "articles"), _measures(results)),
            "",
            markdown_table(("articles", "count"), counts),
            "",
            *_labels("Labels that the crosswalk does not know", results["unmapped_labels"]),
            *_labels("Labels without a counterpart, on purpose", results["no_counterpart_labels"]),
        ]
    )


def _how(results: Mapping[str, Any]) -> str:
    if results["compare_raw_strings"]:
        return "letter by letter, as the original experiment did"
    return f"through the crosswalk {cell(results['crosswalk'])}"


def _measures(results: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    """Shares with their intervals and rows."""
    match = ("predictions that match", _percent(results["match_rate"]), _interval(results["match_interval"]))
    rows = [
        ("labels with a counterpart", _percent(results["mapped_share"]), "", results["counts"]["labelled"]),
        (*match, results["match_rows"]),
    ]
    for decision, title in ANSWERS:
        found = results["by_decision"][decision]
        rows.append((f"{decision}: {title}", _percent(found["rate"]), _interval(found["interval"]), found["rows"]))
    return rows


def _labels(title: str, labels: Mapping[str, int]) -> list[str]:
    """A table of labels; nothing when there are none."""
    return [f"## {title}", "", markdown_table(("label", "articles"), labels.items()), ""] if labels else []


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.2f} %"


def _interval(bounds: Sequence[float] | None) -> str:
    return NOT_MEASURED if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
