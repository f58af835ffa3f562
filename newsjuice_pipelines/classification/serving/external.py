"""Predicting on articles of another source and comparing with its own labels through a crosswalk."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.huffpost import join_text
from newsjuice_pipelines.classification.judging.calibrate import Calibration, precision_interval, softmax
from newsjuice_pipelines.classification.judging.evaluate import top3_mass
from newsjuice_pipelines.classification.judging.report import external_page
from newsjuice_pipelines.classification.serving.crosswalk import Crosswalk
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training.checkpoint import check_classes, read_description
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

COMPARISON = "predictions_comparison.csv"
COLUMNS = ("id", "title", "content", "summary")
WRITTEN_COLUMNS = ("id", "title", "summary_category", "predicted_category", "confidence", "match", "decision", "top_3")
LEAD_WORDS = 60
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
FILED, TOP_3, ABSTAINED = "filed", "top-3", "abstained"


class ExternalDataError(ValueError):
    """The articles of the other source cannot be read."""


def read_external_csv(path: Path) -> pd.DataFrame:
    """Read articles with the columns `id, title, content, summary`, every cell as text.

    Raises:
        ExternalDataError: the file is no UTF-8 CSV, lacks a column, or has no row.
    """
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ExternalDataError(f"{path.name} cannot be read as a UTF-8 CSV file: {error}") from error
    _require_columns(rows, path.name)
    if rows.empty:
        raise ExternalDataError(f"{path.name} has a header and no article.")
    return rows[list(COLUMNS)]


def category_of(summary: Any) -> tuple[str | None, str]:
    """The category inside a summary (JSON), and how reading it went: `labelled`, `missing`, `broken` or `without_category`."""
    if not isinstance(summary, dict):
        if not isinstance(summary, str) or not summary.strip():
            return None, "missing"
        try:
            summary = json.loads(summary)
        except (ValueError, RecursionError):
            return None, "broken"
        if not isinstance(summary, dict):
            return None, "broken"
    category = summary.get("category")
    if not isinstance(category, str) or not category.strip():
        return None, "without_category"
    return " ".join(category.split()), "labelled"


def predict_external(
    rows: pd.DataFrame, checkpoint: Path, calibration: Calibration, crosswalk: Crosswalk, out: Path
) -> dict[str, Any]:
    """File articles of another source and compare with their labels.

    The text is the title with the first 60 words of the content. An article is `filed` when its confidence reaches the certified
    threshold, offered its `top-3` when the three together reach theirs, else `abstained`. `match` stays empty without a label or
    without a counterpart in the crosswalk. Writes `predictions_comparison.csv`, `results.json` and `report.md` to `out`.

    Raises:
        ExternalDataError: a column is missing.
        CheckpointError: the calibration belongs to other classes.
    """
    _require_columns(rows, "the articles")
    description = read_description(checkpoint)
    classes = description.classes
    check_classes(classes, calibration.classes, "the evaluation report")
    titles, contents = _texts(rows["title"]), _texts(rows["content"])
    texts = [join_text(title, " ".join(content.split()[:LEAD_WORDS])) for title, content in zip(titles, contents, strict=True)]
    probabilities = softmax(load_classifier(checkpoint).predict_logits(texts), calibration.temperature)
    order = (-probabilities).argsort(axis=1, kind="stable")[:, :3]
    masses = top3_mass(probabilities)

    counts: Counter[str] = Counter(
        dict.fromkeys(("labelled", "missing", "broken", "without_category", "mapped", "empty_text"), 0)
    )
    counts.update({FILED: 0, TOP_3: 0, ABSTAINED: 0})
    unmapped: Counter[str] = Counter()
    matches: list[bool] = []
    filed_matches: list[bool] = []
    written: list[list[str]] = []
    for number, (article, title, text, summary) in enumerate(zip(rows["id"], titles, texts, rows["summary"], strict=True)):
        label, reading = category_of(summary)
        counts[reading] += 1
        acceptable = crosswalk.acceptable(label, classes) if label is not None else ()
        if acceptable:
            counts["mapped"] += 1
        elif label is not None:
            unmapped[label] += 1
        if not text:
            counts["empty_text"] += 1
            counts[ABSTAINED] += 1
            written.append([str(article), title, label or "", "", "", "", ABSTAINED, ""])
            continue
        first = [classes[index] for index in order[number]]
        confidence = float(probabilities[number].max())
        decision = _decide(confidence, float(masses[number]), calibration)
        counts[decision] += 1
        match = ""
        if acceptable:
            match = str(first[0] in acceptable)
            matches.append(first[0] in acceptable)
            if decision == FILED:
                filed_matches.append(first[0] in acceptable)
        written.append([str(article), title, label or "", first[0], f"{confidence:.4f}", match, decision, " | ".join(first)])
    _write_csv(out / COMPARISON, written)
    results = {
        "model": description.model,
        "crosswalk": crosswalk.version,
        "rows": len(rows),
        "counts": dict(counts),
        "repeated_ids": int(rows["id"].duplicated().sum()),
        "mapped_share": counts["mapped"] / counts["labelled"] if counts["labelled"] else None,
        **_rate("match", matches),
        **_rate("filed_match", filed_matches),
        "unmapped_labels": dict(sorted(unmapped.items(), key=lambda item: (-item[1], item[0]))),
        "threshold": calibration.threshold,
        "top3_threshold": calibration.top3_threshold,
    }
    write_json(out / "results.json", results)
    (out / "report.md").write_text(external_page(results), encoding="utf-8")
    return results


def _decide(confidence: float, mass: float, calibration: Calibration) -> str:
    """What is done with one article."""
    if calibration.threshold is not None and confidence >= calibration.threshold:
        return FILED
    if calibration.top3_threshold is not None and mass >= calibration.top3_threshold:
        return TOP_3
    return ABSTAINED


def _rate(name: str, matches: list[bool]) -> dict[str, Any]:
    """A match rate with its interval and its rows; None over no rows."""
    rows, right = len(matches), sum(matches)
    rate, bounds = (right / rows, list(precision_interval(right, rows))) if rows else (None, None)
    return {f"{name}_rate": rate, f"{name}_interval": bounds, f"{name}_rows": rows}


def _texts(column: Iterable[Any]) -> list[str]:
    """Cells as text; a cell of another type (such as a database null) is empty."""
    return [value if isinstance(value, str) else "" for value in column]


def _require_columns(rows: pd.DataFrame, where: str) -> None:
    missing = [name for name in COLUMNS if name not in rows.columns]
    if missing:
        raise ExternalDataError(f"{where}: missing column {', '.join(missing)}; needed are {', '.join(COLUMNS)}.")


def spreadsheet_safe(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that starts like a formula gets an apostrophe in front."""
    return f"'{value}" if value.startswith(FORMULA_STARTS) else value


def _write_csv(path: Path, rows: Iterable[list[str]]) -> None:
    """The comparison, with an escaped cell wherever one could run as a formula."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(WRITTEN_COLUMNS)
        writer.writerows([spreadsheet_safe(value) for value in row] for row in rows)
