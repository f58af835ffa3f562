"""Answers for headlines and for files of articles of any length. Reading the files is `article_files.py`'s business."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from newsjuice_pipelines.classification.judging.answers import DECISIONS, FILED, PARENT, Answer, answers
from newsjuice_pipelines.classification.judging.calibrate import Calibration, read_calibration, softmax
from newsjuice_pipelines.classification.serving.article_files import (
    RESULT_COLUMNS,
    ArticleFile,
    ArticleFileError,
    ArticleRow,
    empty_counts,
    format_of,
    open_article_file,
)
from newsjuice_pipelines.classification.serving.onnx_classifier import EXPORT, OnnxClassifier
from newsjuice_pipelines.classification.serving.predict import Classifier, load_classifier, load_for_serving
from newsjuice_pipelines.classification.serving.served_calibration import read_served_calibration
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError, check_classes
from newsjuice_pipelines.runtime.progress import format_duration
from newsjuice_pipelines.runtime.reports import read_json

logger = logging.getLogger("newsjuice.classification")

TERMINAL = "-"
CHUNK_ROWS = 2_048
CHUNK_CHARACTERS = 16_000_000
PROGRESS_INTERVAL_S = 10.0

ReportProgress = Callable[[int, float | None], None]
"""Called with the rows done so far and the share of the file that was read (None where its length is unknown)."""


def classify_texts(texts: Sequence[str], classifier: Classifier | Path, calibration: Calibration) -> list[Answer | None]:
    """One calibrated answer a text, None for a blank one.

    Args:
        texts: headlines, or headlines with descriptions.
        classifier: a loaded classifier, or the folder of a checkpoint.
        calibration: of the evaluation of this checkpoint.

    Raises:
        CheckpointError: the calibration belongs to other classes.
    """
    loaded = load_classifier(classifier) if isinstance(classifier, Path) else classifier
    check_classes(loaded.classes, calibration.classes, "the evaluation report")
    asked = [place for place, text in enumerate(texts) if text.strip()]
    found: list[Answer | None] = [None] * len(texts)
    if asked:
        logits = loaded.predict_logits([texts[place] for place in asked])
        for place, answer in zip(asked, answers(softmax(logits, calibration.temperature), calibration), strict=True):
            found[place] = answer
    return found


def load_service(checkpoint: Path, evaluation: Path, exported: Path | None = None) -> tuple[Classifier, Calibration]:
    """What answers fastest here, and its own calibration: that of the export where the export serves, else the evaluation's.

    Args:
        checkpoint: folder of a trained classifier.
        evaluation: folder of its evaluation, which holds temperature and thresholds.
        exported: folder of its exported form, if there is one.

    Raises:
        CheckpointError: no classifier, an export of another checkpoint or of another promise, an evaluation of other classes.
        ValueError: the evaluation's folder holds none.
    """
    classifier = load_for_serving(checkpoint, exported)
    if exported is not None and isinstance(classifier, OnnxClassifier):
        _check_promises(exported, evaluation)
        return classifier, read_served_calibration(exported)
    calibration = read_calibration(evaluation)
    check_classes(classifier.classes, calibration.classes, "the evaluation report")
    return classifier, calibration


def _check_promises(exported: Path, evaluation: Path) -> None:
    """Refuse an export whose thresholds promise something else than what was judged.

    Raises:
        CheckpointError: says what differs and what to do.
        ValueError: the evaluation's folder holds none.
    """
    path = evaluation / "results.json"
    if not path.is_file():
        raise ValueError(f"{evaluation} has no results.json: materialise the asset 'classifier_eval_report' first.")
    judged, served = (read_json(file).get("config", {}) for file in (path, exported / EXPORT))
    for name in ("target_precision", "certainty"):
        if judged.get(name) != served.get(name):
            raise CheckpointError(
                f"The export promises a {name} of {served.get(name)}, but the evaluation judged {judged.get(name)}: "
                f"export the classifier again with the evaluation's {name}, or evaluate it with the export's."
            )


def classify_headlines(headlines: Sequence[str], checkpoint: Path, evaluation: Path, exported: Path | None = None) -> list[str]:
    """A short answer in words for each headline.

    Args and errors are those of `load_service`.
    """
    classifier, calibration = load_service(checkpoint, evaluation, exported)
    cleaned = ["".join(letter if letter.isprintable() else " " for letter in headline) for headline in headlines]
    found = classify_texts(cleaned, classifier, calibration)
    return [_in_words(headline.strip(), answer) for headline, answer in zip(cleaned, found, strict=True)]


def classify_file(
    source: str | Path,
    target: str | Path,
    classifier: Classifier,
    calibration: Calibration,
    progress: ReportProgress | None = None,
) -> dict[str, int]:
    """Add an answer to every row of a file of articles; memory does not grow with the file.

    Reads CSV with a header (comma, semicolon or tab) or JSON lines, by suffix. The text is the column `text`, or `headline` or
    `title` with `short_description` or the first 60 words of `content`. All columns are kept, with `predicted_category`,
    `confidence`, `decision`, `parent`, `parent_confidence`, `top_3` and `reason` behind them; `parent` and its confidence are
    given only for articles that are filed under their class or their parent. A cell of a CSV file that a spreadsheet would run
    as a formula gets an apostrophe in front. Rows that cannot be classified are kept with empty answers and the reason.

    Args:
        source: a file, or `-` for standard input.
        target: a file, which appears whole at the end or not at all, or `-` for standard output. May be the source.
        classifier: what predicts.
        calibration: of the evaluation of this checkpoint.
        progress: told how far it is; by default a line is logged every ten seconds.

    Returns:
        Rows by what became of them: `rows`, `classified`, the four decisions and the problems of `article_files`.

    Raises:
        ArticleFileError: the file cannot be read at all, or the target cannot be written.
        CheckpointError: the calibration belongs to other classes.
    """
    check_classes(classifier.classes, calibration.classes, "the evaluation report")
    file_format = format_of(str(source), str(target))
    counts = Counter({**dict.fromkeys(("rows", "classified", *DECISIONS), 0), **empty_counts()})
    report = progress or logged_progress()
    with _reading(source) as (stream, share), _writing(target) as out:
        articles = open_article_file(stream, file_format, "standard input" if str(source) == TERMINAL else str(source))
        out.write(articles.opening().encode())
        for chunk in _chunks(articles.rows()):
            out.write("".join(_answered(articles, chunk, classifier, calibration, counts)).encode())
            report(counts["rows"], share())
    logger.info("%s: %s", source, ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items() if number))
    return dict(counts)


def logged_progress(interval_s: float = PROGRESS_INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> ReportProgress:
    """What logs rows, rate and remaining time, at most one line every `interval_s`."""
    started = last = clock()

    def report(rows: int, share: float | None) -> None:
        nonlocal last
        now = clock()
        if now - last < interval_s:
            return
        last = now
        elapsed = max(now - started, 1e-9)
        text = f"classifying: {rows:,} rows, {rows / elapsed:,.0f} rows/s"
        if share:
            text += f", {share:.0%} of the file, {format_duration(elapsed * (1 - share) / share)} left"
        logger.info(text)

    return report


def _answered(
    articles: ArticleFile, chunk: list[ArticleRow], classifier: Classifier, calibration: Calibration, counts: Counter[str]
) -> Iterator[str]:
    """The written rows of a chunk; what became of them is added to `counts`."""
    found = classify_texts([row.text for row in chunk], classifier, calibration)
    for row, answer in zip(chunk, found, strict=True):
        counts["rows"] += 1
        counts[row.problem if answer is None else answer.decision] += 1
        counts["classified"] += answer is not None
        yield articles.written(row, result_columns(answer, row.reason))


def result_columns(answer: Answer | None, reason: str = "") -> dict[str, Any]:
    """The columns that an answer adds to a row; blank without one."""
    if answer is None:
        return {**dict.fromkeys(RESULT_COLUMNS, ""), "reason": reason}
    parent, parent_confidence = said_parent(answer)
    return {
        "predicted_category": answer.label,
        "confidence": round(float(answer.confidence), 4),
        "decision": answer.decision,
        "parent": parent,
        "parent_confidence": parent_confidence,
        "top_3": list(answer.top3),
        "reason": reason,
    }


def said_parent(answer: Answer) -> tuple[str, float | str]:
    """The parent with its confidence where the answer stands for it, filed or under the parent; else blanks."""
    if answer.decision not in (FILED, PARENT):
        return "", ""
    return answer.parent, round(float(answer.parent_confidence), 4)


def _chunks(rows: Iterable[ArticleRow]) -> Iterator[list[ArticleRow]]:
    """Rows in chunks that are bounded by their number and by what they hold."""
    chunk: list[ArticleRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row.size
        if len(chunk) == CHUNK_ROWS or size > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_words(headline: str, answer: Answer | None) -> str:
    """One answer as a person reads it."""
    if answer is None:
        return "(an empty headline has no class)"
    said = {
        "filed": f"{answer.label}: filed, {answer.confidence:.0%} sure",
        "parent": f"{answer.parent}: filed under the parent, {answer.parent_confidence:.0%} sure "
        f"({answer.label} alone only {answer.confidence:.0%})",
        "top-3": f"one of {', '.join(answer.top3)}: for a person to choose",
        "abstained": f"not sure enough to say (best guess {answer.label}, {answer.confidence:.0%})",
    }[answer.decision]
    others = "" if answer.decision == "top-3" else f"\n  first three: {', '.join(answer.top3)}"
    return f"{headline}\n  {said}{others}"


@contextmanager
def _reading(source: str | Path) -> Iterator[tuple[Any, Callable[[], float | None]]]:
    """The bytes of the source, and what tells the share of them that was read."""
    if str(source) == TERMINAL:
        yield sys.stdin.buffer, lambda: None
        return
    path = Path(source)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ArticleFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        yield stream, lambda: stream.tell() / size if size else None


@contextmanager
def _writing(target: str | Path) -> Iterator[BinaryIO]:
    """Where the output goes: standard output, or a temporary sibling that becomes the target once everything is written."""
    if str(target) == TERMINAL:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.is_dir():
        raise ArticleFileError(f"{path} is a folder; name a file to write.")
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise ArticleFileError(f"{path} cannot be written: {error.strerror or error}.") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)  # a temporary file is private; the result is an ordinary file
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
