"""Reading the News Category Dataset (HuffPost) and cleaning it.

Which class a section belongs to is `taxonomy.py`'s business, fetching the file is `kaggle.py`'s.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.schemas import rows_schema, schema_problems
from newsjuice_pipelines.classification.corpus.taxonomy import label_key

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

ROWS = "rows.parquet"
REQUIRED_KEYS = ("headline", "category")
OPTIONAL_KEYS = ("short_description", "link", "authors", "date")
LINE_COLUMNS = ("row_id", "text", "category", "headline", "short_description", "link", "authors", "date")
SECTION_COUNTS = "section_counts"
COLUMNS = (*LINE_COLUMNS, SECTION_COUNTS)
# A row of the data set has some 500 bytes. A longer line than this is no row, and is never held in memory as a whole.
MAX_LINE_BYTES = 1_000_000
BATCH_ROWS = 50_000
EXAMPLES_PER_REASON = 5
EXAMPLE_CHARACTERS = 120
SENTENCE_ENDS = (".", "!", "?", "…", ":", ";")
REPEATED = ("duplicate_text", "duplicate_text_other_category")
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode's controls, zero-width signs and separators
CLOSING_MARKS = "\"')]\u201d\u2019"
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


class HuffPostError(ValueError):
    """The file is no usable HuffPost data."""


@dataclass(frozen=True)
class HuffPostTable:
    """The usable rows, what was counted on the way, and the first few dropped lines of every kind.

    `rows` has the columns `COLUMNS`; `section_counts` says how often a text came with each of its sections (JSON), and is empty
    where it came with one section only. `counts` holds `lines`, `kept` and one entry a reason for dropping, blanking or
    respelling; `examples` maps a reason to `{"line": number, "start": first characters}` entries; `spellings` maps a kept
    section name to the other spellings that were found, with their rows.
    """

    rows: pd.DataFrame
    counts: Mapping[str, int]
    examples: Mapping[str, list[dict[str, Any]]]
    spellings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class _DroppedLine(Exception):
    """One line cannot be used; the argument is the reason."""


def join_text(headline: str, description: str) -> str:
    """The text a classifier reads: headline and description joined by a space, the sentence boundary kept."""
    headline, description = " ".join(headline.split()), " ".join(description.split())
    if not headline or not description:
        return headline or description
    return f"{headline}{'' if headline.rstrip(CLOSING_MARKS).endswith(SENTENCE_ENDS) else '.'} {description}"


def row_id_of(text: str) -> str:
    """A stable id of a row: the SHA-1 of its text."""
    return hashlib.sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest()


def load_huffpost(path: Path) -> HuffPostTable:
    """Read HuffPost JSON lines; every line that cannot be used is counted with its reason.

    Links, authors and dates are kept as columns but never enter `text`: they would give the section away.
    A text that occurs again is one row, of the section that it has most often (the first by name among equals) and of the
    first date, whatever the order of the lines; lines with its other sections are counted apart. Sections whose names differ
    in case or spacing only are one section under its most frequent spelling.

    Raises:
        HuffPostError: the file has no usable row, no row has a needed column (the message names it), or the kept rows
            break the schema; or there is no such file, or none that can be read.
    """
    reader = _Reader()
    try:
        stream = path.open("rb")
    except OSError as error:
        raise HuffPostError(
            f"{path} cannot be read ({error.strerror}). Give a HuffPost file in JSON lines, such as "
            "News_Category_Dataset_v3.json."
        ) from error
    with stream:
        for number, raw in _lines(stream):
            reader.read(number, raw)
    counts = reader.counts
    if not counts["kept"]:
        raise HuffPostError(_why_nothing_was_kept(path, counts, reader.seen_keys, reader.examples))
    names, spellings = _section_names(reader.raw_sections)
    rows = reader.frame(names)
    counts["respelled_category"] = sum(sum(others.values()) for others in spellings.values())
    if not counts["respelled_category"]:
        del counts["respelled_category"]
    problems = schema_problems(rows, rows_schema())
    if problems:
        raise HuffPostError(f"the kept rows of {path.name} break the schema: {'; '.join(problems)}.")
    dropped_rows = counts["lines"] - counts["kept"]
    if dropped_rows:
        logger.warning("%s: %d of %d lines dropped: %s", path.name, dropped_rows, counts["lines"], dict(counts))
    return HuffPostTable(rows, dict(counts), reader.examples, spellings)


def write_huffpost(table: HuffPostTable, out: Path) -> dict[str, Any]:
    """Write `rows.parquet` to `out`; the facts hold the counts, the dropped examples and the rows of every section.

    `format_per_category` shows how a section's rows are written: in a file put together from several sources the format
    alone may give the section away.
    """
    table.rows.to_parquet(out / ROWS, index=False)
    words = table.rows["text"].str.count(r"\S+")
    dated = table.rows["date"][table.rows["date"] != ""]
    return {
        "row_count": len(table.rows),
        "counts": dict(table.counts),
        "examples": {reason: list(lines) for reason, lines in table.examples.items()},
        "section_spellings": {name: dict(others) for name, others in table.spellings.items()},
        "per_category": {str(name): int(count) for name, count in table.rows["category"].value_counts().sort_index().items()},
        "format_per_category": _format_per_category(table.rows),
        "with_description": int((table.rows["short_description"] != "").sum()),
        "with_date": len(dated),
        "first_date": str(dated.min()) if len(dated) else None,
        "last_date": str(dated.max()) if len(dated) else None,
        "mean_words": round(float(words.mean()), 2),
        "max_words": int(words.max()),
    }


def read_huffpost(directory: Path) -> pd.DataFrame:
    """The rows that `write_huffpost` wrote to `directory`."""
    import pandas as pd

    return pd.read_parquet(directory / ROWS)


@dataclass
class _Occurrences:
    """The lines in which a text has one section: how many, and the one to keep, which does not depend on their order."""

    lines: int = 0
    row: dict[str, str] = field(default_factory=dict)

    def add(self, row: dict[str, str]) -> None:
        """Count a line, and keep it when it is the earliest; one without a date comes last."""
        self.lines += 1
        if not self.row or _in_time(row) < _in_time(self.row):
            self.row = row


def _in_time(row: Mapping[str, str]) -> tuple[bool, list[str]]:
    return not row["date"], [row[name] for name in ("date", "link", "authors", "headline", "short_description")]


class _Reader:
    """The rows kept so far, in blocks of columns, since a dictionary a row would take several times the memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(lines=0, kept=0)
        self.seen_keys: Counter[str] = Counter()
        self.raw_sections: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._section_of: dict[bytes, str] = {}
        self._again: dict[str, dict[str, _Occurrences]] = {}  # row id, section: all lines of the text but the first
        self._columns: dict[str, list[str]] = {name: [] for name in LINE_COLUMNS}
        self._blocks: list[pd.DataFrame] = []

    def read(self, number: int, raw: bytes) -> None:
        """Take one line, or count why it is dropped."""
        self.counts["lines"] += 1
        try:
            self._keep(_parse_line(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, self.seen_keys, self.counts))
        except _DroppedLine as dropped:
            reason = str(dropped)
            if reason not in REPEATED:  # these are counted when all lines are known
                self.counts[f"dropped_{reason}"] += 1
            if len(self.examples.setdefault(reason, [])) < EXAMPLES_PER_REASON:
                start = raw[: 4 * EXAMPLE_CHARACTERS].decode("utf-8", "replace").strip()[:EXAMPLE_CHARACTERS]
                self.examples[reason].append({"line": number, "start": start})

    def frame(self, names: Mapping[str, str]) -> pd.DataFrame:
        """All kept rows, with the names of their sections; which section a repeated text has is decided, and counted, here."""
        import pandas as pd

        self._close_block()
        rows = pd.concat(self._blocks, ignore_index=True)
        name_of = {raw: names[label_key(raw)] for raw in self.raw_sections}
        rows = rows.assign(category=rows["category"].map(name_of).astype("str"), **{SECTION_COUNTS: ""})
        repeated = rows.index[rows["row_id"].isin(list(self._again))]
        if not len(repeated):
            return rows
        firsts = rows.loc[repeated, list(LINE_COLUMNS)].itertuples(index=False, name=None)
        decided = [self._decided(dict(zip(LINE_COLUMNS, first, strict=True)), names) for first in firsts]
        for column in COLUMNS:
            rows.loc[repeated, column] = [row[column] for row in decided]
        return rows.astype("str")

    def _decided(self, first: dict[str, str], names: Mapping[str, str]) -> dict[str, str]:
        """The row of a text that occurs again, from its first line and all others."""
        found = self._again[first["row_id"]]
        found.setdefault(label_key(first["category"]), _Occurrences()).add(first)
        counts = {names[section]: those.lines for section, those in found.items()}
        section = min(counts, key=lambda name: (-counts[name], name))
        row = found[label_key(section)].row
        for reason, lines in zip(REPEATED, (counts[section] - 1, sum(counts.values()) - counts[section]), strict=True):
            if lines:
                self.counts[f"dropped_{reason}"] += lines
        several = json.dumps(counts, ensure_ascii=False, sort_keys=True) if len(counts) > 1 else ""
        return {**row, "category": section, SECTION_COUNTS: several}

    def _keep(self, row: dict[str, str]) -> None:
        key, section = bytes.fromhex(row["row_id"]), label_key(row["category"])
        self.raw_sections[row["category"]] += 1
        known = self._section_of.get(key)
        if known is not None:
            self._again.setdefault(row["row_id"], {}).setdefault(section, _Occurrences()).add(row)
            raise _DroppedLine(REPEATED[known != section])
        self._section_of[key] = section
        self.counts["kept"] += 1
        for name, values in self._columns.items():
            values.append(row[name])
        if len(self._columns["row_id"]) >= BATCH_ROWS:
            self._close_block()

    def _close_block(self) -> None:
        import pandas as pd

        if self._columns["row_id"]:
            self._blocks.append(pd.DataFrame(self._columns, dtype="str"))
            self._columns = {name: [] for name in LINE_COLUMNS}


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; of one above `MAX_LINE_BYTES` only the first piece, which is longer than the limit."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            rest = raw
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
        yield number, raw


def _parse_line(raw: bytes, seen_keys: Counter[str], counts: Counter[str]) -> dict[str, str]:
    """One usable row, or `_DroppedLine` with the reason. `seen_keys` counts the needed keys that were present."""
    if len(raw) > MAX_LINE_BYTES:
        raise _DroppedLine("line_too_long")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _DroppedLine("invalid_utf8") from None
    if not line.strip():
        raise _DroppedLine("blank_line")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise _DroppedLine("broken_json") from None
    if not isinstance(value, dict):
        raise _DroppedLine("not_an_object")
    seen_keys.update(key for key in REQUIRED_KEYS if key in value)
    fields: dict[str, str] = {}
    for key in REQUIRED_KEYS:
        if key not in value:
            raise _DroppedLine(f"missing_{key}")
        if not isinstance(value[key], str):
            raise _DroppedLine(f"non_string_{key}")
        fields[key] = value[key]
    for key in OPTIONAL_KEYS:
        found = value.get(key)
        if not isinstance(found, str):
            counts[f"blanked_{key}"] += 1
            found = ""
        fields[key] = found.strip()
    try:
        joined = "".join(fields.values())
        joined.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no file format stores
        raise _DroppedLine("invalid_unicode") from None
    if "\0" in joined:  # neither PostgreSQL nor a spreadsheet takes it
        counts["cleaned_nul"] += 1
        fields = {key: found.replace("\0", " ") for key, found in fields.items()}
    if not fields["category"].strip():
        raise _DroppedLine("empty_category")
    fields["headline"] = fields["headline"].strip()
    text = join_text(fields["headline"], fields["short_description"])
    if all(unicodedata.category(sign) in INVISIBLE for sign in fields["headline"] + fields["short_description"]):
        raise _DroppedLine("empty_text")
    fields["date"] = _iso_date(fields["date"], counts)
    return {"row_id": row_id_of(text), "text": text, **fields}


def _iso_date(found: str, counts: Counter[str]) -> str:
    """The day of an ISO date or time; anything else is blanked and counted."""
    if not found:
        return ""
    try:
        return datetime.date.fromisoformat(found[:10]).isoformat()
    except ValueError:
        counts["blanked_date"] += 1
        return ""


def _section_names(raw_sections: Mapping[str, int]) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """The most frequent spelling of every section, by the form in which labels are compared, and the other spellings of each."""
    by_key: dict[str, Counter[str]] = defaultdict(Counter)
    for raw, count in raw_sections.items():
        by_key[label_key(raw)][" ".join(raw.split())] += count
    kept = {key: min(found, key=lambda name: (-found[name], name)) for key, found in by_key.items()}
    spellings: dict[str, dict[str, int]] = {}
    for raw, count in sorted(raw_sections.items()):
        name = kept[label_key(raw)]
        if raw != name:
            spellings.setdefault(name, {})[raw] = count
    return kept, dict(sorted(spellings.items()))


def _format_per_category(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Of every section: its rows, the share of them with a description, and the share in lower case throughout."""
    text = rows["text"]
    marks = rows[["category"]].assign(
        rows=1.0,
        with_description=(rows["short_description"] != "").astype(float),
        lower_case=((text == text.str.lower()) & (text != text.str.upper())).astype(float),
    )
    shares = marks.groupby("category").agg({"rows": "sum", "with_description": "mean", "lower_case": "mean"})
    return {
        str(name): {"rows": int(row["rows"]), **{mark: round(float(row[mark]), 4) for mark in ("with_description", "lower_case")}}
        for name, row in shares.iterrows()
    }


def _why_nothing_was_kept(
    path: Path, counts: Counter[str], seen_keys: Counter[str], examples: Mapping[str, list[dict[str, Any]]]
) -> str:
    """The message for a file without one usable row."""
    if not counts["lines"]:
        return f"{path.name} is empty. Give a HuffPost file in JSON lines, such as News_Category_Dataset_v3.json."
    with path.open("rb") as stream:
        head = stream.read(4)
    for magic, kind in OTHER_FILES.items():
        if head.startswith(magic):
            return f"{path.name} is {kind}. A HuffPost file holds one JSON object a line."
    missing = [key for key in REQUIRED_KEYS if not seen_keys[key]]
    unread = ("broken_json", "invalid_utf8", "not_an_object", "blank_line", "line_too_long")
    readable = counts["lines"] - sum(counts[f"dropped_{reason}"] for reason in unread)
    if missing and readable:
        return (
            f"{path.name}: no row has the column {' or '.join(repr(key) for key in missing)}. "
            f"Needed are {', '.join(REQUIRED_KEYS)}; rename the columns of the file."
        )
    first = {reason: f"line {lines[0]['line']}: {lines[0]['start'][:60]!r}" for reason, lines in examples.items()}
    return f"{path.name} has no usable row among {counts['lines']} lines ({first}). It must hold one JSON object a line."
