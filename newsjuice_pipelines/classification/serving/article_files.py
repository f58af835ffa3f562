"""Files of articles as streams: CSV and JSON lines in, the same rows with an answer out. What is answered is `classify.py`'s."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from newsjuice_pipelines.classification.serving import records
from newsjuice_pipelines.classification.serving.articles import article_text
from newsjuice_pipelines.classification.serving.records import CsvRecords, Line, Record, read_line, wide_cells
from newsjuice_pipelines.classification.serving.spreadsheet import spreadsheet_safe

RESULT_COLUMNS = ("predicted_category", "confidence", "decision", "parent", "parent_confidence", "top_3", "reason")
WHOLE_TEXT_COLUMNS = ("text",)
TITLE_COLUMNS = ("headline", "title")
BODY_COLUMNS = ("short_description", "content")
DELIMITERS = (",", ";", "\t")
MAX_TEXT_CHARACTERS = 1_000_000
FORMATS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

INVALID_UTF8, WRONG_CELLS, EMPTY_TEXT, LONG_TEXT, UNREADABLE = (
    "invalid_utf8", "wrong_cells", "empty_text", "long_text", "unreadable",
)  # fmt: skip
PROBLEMS = (INVALID_UTF8, WRONG_CELLS, EMPTY_TEXT, LONG_TEXT, UNREADABLE)


class ArticleFileError(ValueError):
    """A file of articles cannot be read or written as a whole."""


@dataclass(frozen=True)
class ArticleRow:
    """One row of a file: the text to classify, or the problem that kept it from being classified, and what it held."""

    text: str
    held: tuple[str, ...]
    """The cells of a CSV row; the one line of a JSON object."""
    problem: str = ""
    """Empty, or one of `PROBLEMS`."""
    reason: str = ""
    """The problem in words, with what would otherwise be lost."""

    @property
    def size(self) -> int:
        """Characters that the row holds in memory."""
        return sum(map(len, self.held)) + len(self.reason)


class ArticleFile(Protocol):
    """A stream of rows in one format, and how they are written with their answers."""

    def opening(self) -> str:
        """What the written file begins with."""
        ...

    def rows(self) -> Iterator[ArticleRow]:
        """The rows in their order; nothing of the file is left out but blank lines."""
        ...

    def written(self, row: ArticleRow, results: Mapping[str, Any]) -> str:
        """The row as it is written, with its results by `RESULT_COLUMNS`."""
        ...


def open_article_file(stream: io.BufferedIOBase, file_format: str, name: str) -> ArticleFile:
    """Read a stream of bytes as `csv` or `jsonl`.

    Raises:
        ArticleFileError: the header lacks a text column, or the file is UTF-16.
    """
    if _peek(stream).startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ArticleFileError(f"{name} is UTF-16; save it as UTF-8.")
    # Bytes that are no UTF-8 become lone surrogates, so that one broken row does not end the reading of the others.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[type-var]
    return CsvFile(text, name) if file_format == "csv" else JsonLinesFile(text)


def format_of(*names: str) -> str:
    """`csv` or `jsonl`, by the suffixes of the input and the output; `-` has none and follows the other.

    Raises:
        ArticleFileError: a suffix that is neither, or two formats at once.
    """
    found: dict[str, str] = {}
    for name in names:
        if name == "-":
            continue
        suffix = Path(name).suffix.lower()
        if suffix not in FORMATS:
            raise ArticleFileError(f"{name}: the suffix must be one of {', '.join(FORMATS)}, or the name `-` for the terminal.")
        found[FORMATS[suffix]] = name
    if len(found) > 1:
        raise ArticleFileError(f"{' and '.join(found.values())} are different formats: use CSV for both or JSON lines for both.")
    return next(iter(found), "csv")


class CsvFile:
    """A CSV file with a header. Cells that start like a formula are written with an apostrophe in front."""

    def __init__(self, stream: TextIO, name: str) -> None:
        """Read the header; the delimiter is the comma, semicolon or tab that makes a text column of it."""
        self._stream = stream
        self.delimiter, self.header = self._read_header(name)
        self._place = _places(self.header)
        taken = {column.strip().casefold() for column in self.header}
        self._added = [f"newsjuice_{column}" if column in taken else column for column in RESULT_COLUMNS]

    def opening(self) -> str:
        """The header with the columns of the answer; one that the file already has is prefixed with `newsjuice_`."""
        return self._line([*self.header, *self._added])

    def rows(self) -> Iterator[ArticleRow]:
        """Every record; where a quote is never closed, only the line that opens it is given up and the next are read again."""
        for record in CsvRecords(self._stream, self.delimiter):
            row = self._read(record)
            if row is not None:
                yield row

    def written(self, row: ArticleRow, results: Mapping[str, Any]) -> str:
        """The cells as they were, then the results."""
        texts = [_as_cell(results[column]) for column in RESULT_COLUMNS]
        return self._line([*row.held, *texts])

    def _read(self, record: Record) -> ArticleRow | None:
        """A record's row; None for a blank line."""
        blank = ("",) * len(self.header)
        if record.lines[0].is_cut:
            return ArticleRow("", blank, LONG_TEXT, _too_long(record.lines[0]))
        if record.readable:
            try:
                with wide_cells():
                    cells = next(csv.reader([line.text for line in record.lines], delimiter=self.delimiter), [])
                return self._row(cells) if cells else None
            except csv.Error:
                pass
        return ArticleRow("", blank, UNREADABLE, f"cannot be read as CSV: {_valid_utf8(record.text).rstrip()}")

    def _row(self, cells: list[str]) -> ArticleRow:
        width = len(self.header)
        valid = [_valid_utf8(cell) for cell in cells]
        held = tuple((valid + [""] * width)[:width])
        if valid != cells:
            return ArticleRow("", held, INVALID_UTF8, "not valid UTF-8; the bytes are shown as \\xNN")
        if len(cells) != width:
            surplus = f", surplus {json.dumps(valid[width:], ensure_ascii=False)}" if len(cells) > width else ""
            return ArticleRow("", held, WRONG_CELLS, f"{len(cells)} cells instead of {width}{surplus}")
        return _checked(held, {name: cells[place] for name, place in self._place.items()})

    def _read_header(self, name: str) -> tuple[str, list[str]]:
        first = read_line(self._stream)
        line = first.text if first else ""
        if not line.strip():
            raise ArticleFileError(f"{name} is empty, or does not begin with a header.")
        with wide_cells():
            headers = {delimiter: next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter)) for delimiter in DELIMITERS}
        for delimiter, header in headers.items():
            if _has_text(_places(header)):
                return delimiter, [_valid_utf8(column) for column in header]
        wanted = ", ".join((*WHOLE_TEXT_COLUMNS, *TITLE_COLUMNS))
        raise ArticleFileError(f"{name} needs a column named one of {wanted}; its header is {_valid_utf8(line).strip()[:300]!r}.")

    def _line(self, cells: Sequence[str]) -> str:
        stream = io.StringIO()
        csv.writer(stream, delimiter=self.delimiter, lineterminator="\n").writerow(map(spreadsheet_safe, cells))
        return stream.getvalue()


class JsonLinesFile:
    """JSON lines, one object an article. The object is kept letter by letter, and the results are put behind its last field."""

    def __init__(self, stream: TextIO) -> None:
        """Nothing is read yet."""
        self._stream = stream

    def opening(self) -> str:
        """JSON lines have no header."""
        return ""

    def rows(self) -> Iterator[ArticleRow]:
        """Every line that is not blank."""
        while (line := read_line(self._stream)) is not None:
            if line.is_cut:
                yield ArticleRow("", ("{}",), LONG_TEXT, _too_long(line))
            elif line.text.strip():
                yield _json_row(line.text.strip())

    def written(self, row: ArticleRow, results: Mapping[str, Any]) -> str:
        """The object with its results, empty ones as null; a line that is no object becomes the field `line` of one."""
        (line,) = row.held
        if row.problem in (UNREADABLE, INVALID_UTF8):
            line, names = json.dumps({"line": line}, ensure_ascii=False), {"line"}
        else:
            names = set(json.loads(line))
        added = {f"newsjuice_{name}" if name in names else name: results[name] or None for name in RESULT_COLUMNS}
        joined = ", " if names else ""
        return f"{line[:-1].rstrip()}{joined}{json.dumps(added, ensure_ascii=False)[1:]}\n"


def _json_row(line: str) -> ArticleRow:
    valid = _valid_utf8(line)
    if valid != line:
        return ArticleRow("", (valid,), INVALID_UTF8, "not valid UTF-8; the bytes are shown as \\xNN")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ArticleRow("", (line,), UNREADABLE, f"not valid JSON: {error}")
    if not isinstance(content, dict):
        return ArticleRow("", (line,), UNREADABLE, f"a {type(content).__name__} instead of a JSON object")
    texts = {name.strip().casefold(): value for name, value in content.items() if isinstance(value, str)}
    return _checked((line,), texts)


def _checked(held: tuple[str, ...], fields: Mapping[str, str]) -> ArticleRow:
    """A row whose text is usable, or the reason why not."""
    text = next((fields[name] for name in WHOLE_TEXT_COLUMNS if fields.get(name, "").strip()), None)
    if text is None:
        title = next((fields[name] for name in TITLE_COLUMNS if fields.get(name, "").strip()), "")
        body = next((fields[name] for name in BODY_COLUMNS if fields.get(name, "").strip()), "")
        text = article_text(title, body) if len(title) <= MAX_TEXT_CHARACTERS else title
    if len(text) > MAX_TEXT_CHARACTERS:
        return ArticleRow("", held, LONG_TEXT, f"text of {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are read")
    if not text.strip("\x00 \t\r\n"):
        return ArticleRow("", held, EMPTY_TEXT, "no text")
    whole = text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold halves of characters, which tokenizers refuse
    return ArticleRow(" ".join(whole.replace("\x00", " ").split()), held)


def _places(header: Sequence[str]) -> dict[str, int]:
    """Where the columns that make up the text are; the first of two with one name."""
    known = (*WHOLE_TEXT_COLUMNS, *TITLE_COLUMNS, *BODY_COLUMNS)
    keys = [column.strip().casefold() for column in header]
    return {name: keys.index(name) for name in known if name in keys}


def _has_text(places: Mapping[str, int]) -> bool:
    return any(name in places for name in (*WHOLE_TEXT_COLUMNS, *TITLE_COLUMNS))


def _as_cell(value: Any) -> str:
    """A result as a CSV cell."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return " | ".join(value) if isinstance(value, list) else str(value)


def _valid_utf8(text: str) -> str:
    """The text with bytes that are no UTF-8 written as `\\xNN`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text


def _too_long(line: Line) -> str:
    """Why a line is not read, with what is held of it."""
    limit = f"at most {records.MAX_RECORD_CHARACTERS:,} are read"
    return f"line of {line.length:,} characters; {limit}; it begins: {_valid_utf8(line.text)}"


def _peek(stream: Any) -> bytes:
    """The first bytes of a stream, without taking them."""
    return bytes(stream.peek(2)[:2]) if hasattr(stream, "peek") else b""


def empty_counts() -> Counter[str]:
    """A count of 0 for every problem a row can have."""
    return Counter(dict.fromkeys(PROBLEMS, 0))
