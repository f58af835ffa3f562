"""Lines of any length, and CSV records of several, in bounded memory and linear time. What they mean is `article_files.py`'s."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

MAX_RECORD_CHARACTERS = 16_000_000
MAX_RECORD_LINES = 10_000
BLOCK_CHARACTERS = 1_000_000
SHOWN_CHARACTERS = 1_000

OPENS_A_ROW, MISPLACED = "opens a row", "misplaced"


@dataclass(frozen=True)
class Line:
    """One line, with its line break."""

    text: str
    """Only its first characters where the line is longer than a record may be."""
    length: int
    """In characters."""

    @property
    def is_cut(self) -> bool:
        """Whether the line was too long to hold."""
        return self.length > len(self.text)


@dataclass(frozen=True)
class Record:
    """The lines of a record."""

    lines: list[Line]
    readable: bool = True
    """False where a quote is never closed, or is followed by other text in a record of several lines."""

    @property
    def text(self) -> str:
        """All that is held of it."""
        return "".join(line.text for line in self.lines)


def read_line(stream: TextIO) -> Line | None:
    """The next line, None at the end. What is too long to hold is skipped in blocks."""
    text = stream.readline(MAX_RECORD_CHARACTERS + 1)
    if len(text) <= MAX_RECORD_CHARACTERS:
        return Line(text, len(text)) if text else None
    begin, length = text[:SHOWN_CHARACTERS], len(text)
    while text and text[-1] not in "\r\n":
        text = stream.readline(BLOCK_CHARACTERS)
        length += len(text)
    return Line(begin, length)


class CsvRecords:
    """The records of a CSV file.

    A record ends with the line that closes its last quote. Where none does within the limits, or where the quote that does so
    opens another row, only the first line is given up and the next are read again. What is known of the lines read ahead is
    kept: a line is looked at at most once as the first and once as a further one of a record, whatever the file holds.
    """

    def __init__(self, stream: TextIO, delimiter: str) -> None:
        """Nothing is read yet."""
        self._stream, self._delimiter = stream, delimiter
        self._ahead: deque[tuple[Line, str]] = deque()  # with their fault; each begins inside a quote, and so does what follows
        self._closed = False  # but for the last of them, if this is set
        self._size = 0
        self._faults: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        """Every record; blank lines are records too."""
        while (first := self._take() if self._ahead else read_line(self._stream)) is not None:
            if first.is_cut or not self._scan(first.text, inside=False)[0]:
                yield Record([first])
            elif not self._reads_on(first) or self._faults[OPENS_A_ROW]:
                yield Record([first], readable=False)
            else:
                readable = not self._faults[MISPLACED]
                yield Record([first, *(self._take() for _ in range(len(self._ahead)))], readable)

    def _reads_on(self, first: Line) -> bool:
        """Read ahead until the quote that `first` leaves open is closed; False where the limits or the end come before."""
        while len(self._ahead) < MAX_RECORD_LINES and first.length + self._size <= MAX_RECORD_CHARACTERS:
            if self._closed:
                return True
            line = read_line(self._stream)
            if line is None:
                return False
            inside, fault = (True, "") if line.is_cut else self._scan(line.text, inside=True)
            self._ahead.append((line, fault))
            self._closed = not inside
            self._size += line.length
            self._faults[fault] += 1
        return False

    def _take(self) -> Line:
        """The first of the lines read ahead."""
        line, fault = self._ahead.popleft()
        self._size -= line.length
        self._faults[fault] -= 1
        self._closed &= bool(self._ahead)
        return line

    def _scan(self, text: str, inside: bool) -> tuple[bool, str]:
        """Whether a line that begins inside or outside a quote ends inside one, and the fault of its quotes."""
        if '"' not in text:
            return inside, ""
        try:
            return self._ends_inside(text, inside, strict=True), ""
        except csv.Error:
            before = text[: text.index('"')]
            fault = OPENS_A_ROW if not before or before.endswith(self._delimiter) else MISPLACED
            return self._ends_inside(text, inside, strict=False), fault

    def _ends_inside(self, text: str, inside: bool, strict: bool) -> bool:
        """Whether the csv module asks for another line."""

        def lines() -> Iterator[str]:
            yield f'"{text}' if inside else text
            raise _AnotherLine

        try:
            with wide_cells():
                next(csv.reader(lines(), delimiter=self._delimiter, strict=strict))
        except _AnotherLine:
            return True
        return False


class _AnotherLine(Exception):
    """The csv module wants to read on."""


@contextmanager
def wide_cells() -> Iterator[None]:
    """Let the csv module take cells as long as a record may be; its limit is one for the whole process."""
    limit = csv.field_size_limit(MAX_RECORD_CHARACTERS + 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
