"""Reading the News Category Dataset (HuffPost) and cleaning it. Which class a section belongs to is `taxonomy.py`'s business."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

ROWS = "rows.parquet"
REQUIRED_KEYS = ("headline", "category")
OPTIONAL_KEYS = ("short_description", "link", "authors", "date")
COLUMNS = ("row_id", "text", "category", "headline", "short_description", "link", "authors", "date")
EXAMPLES_PER_REASON = 5
EXAMPLE_CHARACTERS = 120
SENTENCE_ENDS = (".", "!", "?", "…", ":", ";")
CLOSING_MARKS = "\"')]\u201d\u2019"


class HuffPostError(ValueError):
    """The file is no usable HuffPost data."""


@dataclass(frozen=True)
class HuffPostTable:
    """The usable rows, what was counted on the way, and the first few dropped lines of every kind.

    `rows` has the columns `COLUMNS`; `counts` holds `lines`, `kept` and one entry a reason for dropping or blanking;
    `examples` maps a reason to `{"line": number, "start": first characters}` entries.
    """

    rows: pd.DataFrame
    counts: Mapping[str, int]
    examples: Mapping[str, list[dict[str, Any]]]


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
    A text that occurs again is dropped, and counted apart when its section differs.

    Raises:
        HuffPostError: the file has no usable row, or no row has a needed column (the message names it).
    """
    import pandas as pd

    counts: Counter[str] = Counter(lines=0, kept=0)
    seen_keys: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    kept: dict[str, dict[str, str]] = {}
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            counts["lines"] += 1
            try:
                row = _parse_line(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, seen_keys, counts)
                known = kept.get(row["row_id"])
                if known is not None:
                    raise _DroppedLine(
                        "duplicate_text" if known["category"] == row["category"] else "duplicate_text_other_category"
                    )
            except _DroppedLine as dropped:
                reason = str(dropped)
                counts[f"dropped_{reason}"] += 1
                if len(examples.setdefault(reason, [])) < EXAMPLES_PER_REASON:
                    start = raw.decode("utf-8", "replace").strip()[:EXAMPLE_CHARACTERS]
                    examples[reason].append({"line": number, "start": start})
                continue
            kept[row["row_id"]] = row
    counts["kept"] = len(kept)
    if not kept:
        raise HuffPostError(_why_nothing_was_kept(path, counts, seen_keys, examples))
    dropped_rows = counts["lines"] - counts["kept"]
    if dropped_rows:
        logger.warning("%s: %d of %d lines dropped: %s", path.name, dropped_rows, counts["lines"], dict(counts))
    return HuffPostTable(pd.DataFrame(list(kept.values()), columns=list(COLUMNS)), dict(counts), examples)


def write_huffpost(table: HuffPostTable, out: Path) -> dict[str, Any]:
    """Write `rows.parquet` to `out`; the facts hold the counts, the dropped examples and the rows of every section."""
    table.rows.to_parquet(out / ROWS, index=False)
    words = table.rows["text"].str.count(r"\S+")
    return {
        "row_count": len(table.rows),
        "counts": dict(table.counts),
        "examples": {reason: list(lines) for reason, lines in table.examples.items()},
        "per_category": {str(name): int(count) for name, count in table.rows["category"].value_counts().sort_index().items()},
        "with_description": int((table.rows["short_description"] != "").sum()),
        "mean_words": round(float(words.mean()), 2),
        "max_words": int(words.max()),
    }


def read_huffpost(directory: Path) -> pd.DataFrame:
    """The rows that `write_huffpost` wrote to `directory`."""
    import pandas as pd

    return pd.read_parquet(directory / ROWS)


def _parse_line(raw: bytes, seen_keys: Counter[str], counts: Counter[str]) -> dict[str, str]:
    """One usable row, or `_DroppedLine` with the reason. `seen_keys` counts the needed keys that were present."""
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
        fields[key] = value[key].strip()
    for key in OPTIONAL_KEYS:
        found = value.get(key)
        if not isinstance(found, str):
            counts[f"blanked_{key}"] += 1
            found = ""
        fields[key] = found.strip()
    try:
        "".join(fields.values()).encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no file format stores
        raise _DroppedLine("invalid_unicode") from None
    if not fields["category"]:
        raise _DroppedLine("empty_category")
    text = join_text(fields["headline"], fields["short_description"])
    if not text:
        raise _DroppedLine("empty_text")
    return {"row_id": row_id_of(text), "text": text, **fields}


def _why_nothing_was_kept(
    path: Path, counts: Counter[str], seen_keys: Counter[str], examples: Mapping[str, list[dict[str, Any]]]
) -> str:
    """The message for a file without one usable row."""
    if not counts["lines"]:
        return f"{path.name} is empty. Give a HuffPost file in JSON lines, such as News_Category_Dataset_v3.json."
    missing = [key for key in REQUIRED_KEYS if not seen_keys[key]]
    unread = {"dropped_broken_json", "dropped_invalid_utf8", "dropped_not_an_object", "dropped_blank_line"}
    readable = counts["lines"] - sum(counts[reason] for reason in unread)
    if missing and readable:
        return (
            f"{path.name}: no row has the column {' or '.join(repr(key) for key in missing)}. "
            f"Needed are {', '.join(REQUIRED_KEYS)}; rename the columns of the file."
        )
    first = {reason: f"line {lines[0]['line']}: {lines[0]['start'][:60]!r}" for reason, lines in examples.items()}
    return f"{path.name} has no usable row among {counts['lines']} lines ({first}). It must hold one JSON object a line."
