"""Predicting on articles of another source and comparing with its own labels through a crosswalk."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.answers import ABSTAINED, DECISIONS, FILED, PARENT, STAGES, Answer
from newsjuice_pipelines.classification.judging.calibrate import Calibration, precision_interval
from newsjuice_pipelines.classification.serving.articles import article_text
from newsjuice_pipelines.classification.serving.classify import classify_texts, said_parent
from newsjuice_pipelines.classification.serving.crosswalk import Crosswalk, Vocabulary, check_crosswalk
from newsjuice_pipelines.classification.serving.external_page import external_page
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.serving.records import wide_cells
from newsjuice_pipelines.classification.serving.spreadsheet import spreadsheet_safe
from newsjuice_pipelines.classification.training.checkpoint import check_classes, read_description
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

COMPARISON = "predictions_comparison.csv"
COLUMNS = ("id", "title", "content", "summary")
WRITTEN_COLUMNS = (
    "id", "title", "summary_category", "predicted_category", "confidence", "match", "decision", "parent", "parent_confidence",
    "top_3",
)  # fmt: skip
READINGS = ("labelled", "missing", "broken", "without_category")
MAPPED_LABELS_LIMIT = 0.95


class ExternalDataError(ValueError):
    """The articles of the other source cannot be read."""


def read_external_csv(path: Path) -> pd.DataFrame:
    """Read articles with the columns `id, title, content, summary`, every cell as text.

    Raises:
        ExternalDataError: the file is no UTF-8 CSV, lacks a column, has a row of another length, or has no row.
    """
    import pandas as pd

    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ExternalDataError(f"{path.name} is not UTF-8 at line {line}; save it as UTF-8.") from error
    records = _records(text, path.name)
    if not records:
        raise ExternalDataError(f"{path.name} has a header and no article.")
    return pd.DataFrame(records, columns=list(COLUMNS))


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
    return " ".join(_whole(category).split()), "labelled"


def predict_external(
    rows: pd.DataFrame,
    checkpoint: Path,
    calibration: Calibration,
    crosswalk: Crosswalk,
    out: Path,
    *,
    sections: Mapping[str, str] | None = None,
    compare_raw_strings: bool = False,
) -> dict[str, Any]:
    """File articles of another source and compare with their labels.

    The text is the title with the first 60 words of the content. Every article gets the answer that the calibration allows:
    filed, parent, top-3 or abstained. `match` is about the predicted class in any case, and stays empty without a label or
    without a counterpart in the crosswalk. Writes `predictions_comparison.csv`, `results.json` and `report.md` to `out`.

    Args:
        rows: articles with the columns `id, title, content, summary`; more columns do no harm.
        checkpoint: folder of the classifier.
        calibration: of its evaluation.
        crosswalk: foreign label → acceptable classes.
        out: an existing folder.
        sections: section → class of the taxonomy, so that the crosswalk can also name sections of merged classes.
        compare_raw_strings: compare the label with the class letter by letter, as the original did; only to show what it costs.

    Raises:
        ExternalDataError: a column is missing.
        CheckpointError: the calibration belongs to other classes.
        TaxonomyError: the crosswalk has unknown names, or leads to no class in use.
    """
    _require_columns(list(rows.columns), "the articles")
    description = read_description(checkpoint)
    check_classes(description.classes, calibration.classes, "the evaluation report")
    vocabulary = Vocabulary(calibration.classes, calibration.parents, sections or {})
    check_crosswalk(crosswalk, vocabulary)
    ids = [_whole(str(article)) for article in rows["id"]]
    titles, contents = _texts(rows["title"]), _texts(rows["content"])
    texts = [article_text(title, content) for title, content in zip(titles, contents, strict=True)]
    found = classify_texts(texts, load_classifier(checkpoint), calibration)

    comparison = _Comparison(crosswalk, vocabulary, compare_raw_strings)
    written = [
        comparison.compare(article, title, summary, answer)
        for article, title, summary, answer in zip(ids, titles, rows["summary"], found, strict=True)
    ]
    (out / COMPARISON).write_text(_csv_text(written), encoding="utf-8", newline="")
    results = {
        "model": description.model,
        "rows": len(rows),
        "repeated_ids": len(ids) - len(set(ids)),
        "threshold": calibration.threshold,
        "parent_threshold": calibration.parent_threshold,
        "top3_threshold": calibration.top3_threshold,
        **comparison.results(),
    }
    passed, sentence = judge_crosswalk(results)
    results |= {"crosswalk_passed": passed, "crosswalk_sentence": sentence}
    write_json(out / "results.json", results)
    (out / "report.md").write_text(external_page(results), encoding="utf-8")
    return results


def judge_crosswalk(results: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether enough foreign labels have a counterpart for the comparison to mean something, and a sentence that says so.

    Args:
        results: what `predict_external` returned.
    """
    labelled, mapped = results["counts"]["labelled"], results["counts"]["mapped"]
    if not labelled:
        return False, "The articles carry no labels, so that nothing could be compared."
    if results["compare_raw_strings"]:
        same = results["labels_spelt_like_classes"]
        return False, f"Labels were compared letter by letter, and {same} of {labelled} are spelt like a class."
    if not mapped:
        return (
            False,
            f"None of the {labelled} labels has a counterpart: the vocabularies do not meet.",
        )
    share = mapped / labelled
    sentence = f"{mapped:,} of {labelled:,} labels ({share:.1%}) have a counterpart; at least {MAPPED_LABELS_LIMIT:.0%} is asked."
    if unknown := list(results["unmapped_labels"]):
        sentence += f" Add to the crosswalk: {', '.join(_shown(label) for label in unknown[:10])}."
    return share >= MAPPED_LABELS_LIMIT, sentence


def _shown(label: str) -> str:
    """A foreign label for a sentence: the first 40 characters, without any that a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in label).split())[:40]


class _Comparison:
    """Answers held against labels, one article after the other."""

    def __init__(self, crosswalk: Crosswalk, vocabulary: Vocabulary, raw: bool) -> None:
        self._crosswalk, self._vocabulary, self._raw = crosswalk, vocabulary, raw
        self._parent_of = dict(zip(vocabulary.classes, vocabulary.parents, strict=True))
        self._counts = Counter(dict.fromkeys((*READINGS, "mapped", "empty_text", *DECISIONS), 0))
        self._unmapped: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._matches: list[bool] = []
        self._right: dict[str, list[bool]] = {stage: [] for stage in STAGES}
        self._same_spelling = 0

    def compare(self, article: str, title: str, summary: Any, answer: Answer | None) -> list[str]:
        """Count one article; its cells by `WRITTEN_COLUMNS`."""
        label, reading = category_of(summary)
        self._counts[reading] += 1
        acceptable = self._acceptable(label)
        if answer is None:
            self._counts["empty_text"] += 1
            self._counts[ABSTAINED] += 1
            return [article, title, label or "", "", "", "", ABSTAINED, "", "", ""]
        self._counts[answer.decision] += 1
        match = ""
        if acceptable:
            match = str(answer.label in acceptable)
            self._matches.append(answer.label in acceptable)
            if answer.decision in STAGES:
                self._right[answer.decision].append(self._is_right(answer, acceptable))
        cells = [article, title, label or "", answer.label, f"{answer.confidence:.4f}", match]
        parent, parent_confidence = said_parent(answer)
        return [*cells, answer.decision, parent, str(parent_confidence), " | ".join(answer.top3)]

    def results(self) -> dict[str, Any]:
        """Everything that was counted."""
        labelled = self._counts["labelled"]
        matched = _rate(self._matches)
        return {
            "crosswalk": self._crosswalk.version,
            "compare_raw_strings": self._raw,
            "labels_spelt_like_classes": self._same_spelling,
            "counts": dict(self._counts),
            "mapped_share": self._counts["mapped"] / labelled if labelled else None,
            **{f"match_{name}": value for name, value in matched.items()},
            "by_decision": {stage: _rate(right) for stage, right in self._right.items()},
            **{f"filed_match_{name}": value for name, value in _rate(self._right[FILED]).items()},
            "unmapped_labels": _most_frequent(self._unmapped),
            "no_counterpart_labels": _most_frequent(self._left_out),
        }

    def _acceptable(self, label: str | None) -> tuple[str, ...]:
        """The classes that are right for a label, which is counted as mapped, left out or unmapped."""
        if label is None:
            return ()
        self._same_spelling += label in self._vocabulary.classes
        if self._raw:
            self._counts["mapped"] += 1
            return (label,)
        acceptable = self._crosswalk.acceptable(label, self._vocabulary)
        if acceptable:
            self._counts["mapped"] += 1
        elif self._crosswalk.is_left_out(label):
            self._left_out[label] += 1
        else:
            self._unmapped[label] += 1
        return acceptable

    def _is_right(self, answer: Answer, acceptable: tuple[str, ...]) -> bool:
        """Whether what was said is right: the class, its parent, or one of three."""
        if answer.decision == FILED:
            return answer.label in acceptable
        if answer.decision == PARENT:
            return answer.parent in {self._parent_of.get(name) for name in acceptable}
        return any(name in acceptable for name in answer.top3)


def _rate(right: list[bool]) -> dict[str, Any]:
    """A share with its interval and its rows; None over no rows."""
    rows, hits = len(right), sum(right)
    rate, bounds = (hits / rows, list(precision_interval(hits, rows))) if rows else (None, None)
    return {"rate": rate, "interval": bounds, "rows": rows}


def _most_frequent(labels: Counter[str]) -> dict[str, int]:
    return dict(sorted(labels.items(), key=lambda item: (-item[1], item[0])))


def _texts(column: Iterable[Any]) -> list[str]:
    """Cells as text; a cell of another type (such as a database null) is empty."""
    return [_whole(value) if isinstance(value, str) else "" for value in column]


def _whole(text: str) -> str:
    """The text with a question mark for every half of a character, which JSON can hold and no file in UTF-8 can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _require_columns(columns: list[str], where: str) -> None:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ExternalDataError(f"{where}: missing column {', '.join(missing)}; needed are {', '.join(COLUMNS)}.")


def _records(text: str, name: str) -> list[list[str]]:
    """The cells of every row, by `COLUMNS`."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    with wide_cells():
        try:
            header = [column.strip() for column in next(reader, [])]
            if not header:
                raise ExternalDataError(f"{name} is empty; its first line must name the columns {', '.join(COLUMNS)}.")
            _require_columns(header, name)
            places = [header.index(column) for column in COLUMNS]
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise ExternalDataError(
                        f"{name}, line {reader.line_num}: {len(cells)} cells under a header of {len(header)}. Is a quote missing?"
                    )
                if cells:
                    records.append([cells[place] for place in places])
        except csv.Error as error:
            raise ExternalDataError(f"{name}, line {reader.line_num}: {error}. Is a quote missing?") from error
    return records


def _csv_text(rows: Iterable[list[str]]) -> str:
    """The comparison as CSV, with an apostrophe before every cell that a spreadsheet could run as a formula."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(WRITTEN_COLUMNS)
    writer.writerows([spreadsheet_safe(value) for value in row] for row in rows)
    return stream.getvalue()
