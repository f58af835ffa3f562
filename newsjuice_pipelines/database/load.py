"""Loads articles from JSON lines into `articles` and `chunks_vector`: the demo corpus and real files by the same code."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger("newsjuice.database")

CHUNK_WORDS = 300
# Archives without fetch dates are dealt out over these days by a hash of the article, so that daily partitions have rows.
UNDATED_FIRST_DAY = date(2026, 9, 15)
UNDATED_DAYS = 30
REQUIRED = ("article_id", "title", "content")


class ArticleFileError(ValueError):
    """A file of articles cannot be used at all."""


@dataclass(frozen=True)
class LoadSummary:
    """What a load did: counts of articles by outcome, of chunks written, and the first rejected lines."""

    articles_read: int
    articles_written: int
    chunks_written: int
    undated: int
    rejected: dict[str, int]
    examples: list[str]


def load_articles(connection: psycopg.Connection, path: Path, *, replace: bool = False) -> LoadSummary:
    """Load a JSON-lines file of articles; new and changed articles are written, the others left alone. One transaction.

    With `replace`, articles that are not in the file are removed, so that the database holds what the file holds.

    A line needs `article_id`, `title` and `content`; `category`, `author`, `source_link`, `source_type`, `published_at`
    and `fetched_at` (ISO 8601) are optional. Lines that cannot be used are counted and the first ones quoted.

    Raises:
        ArticleFileError: the file is missing or has no usable article.
    """
    rejected: Counter[str] = Counter()
    examples: list[str] = []
    kept: list[str] = []
    read = written = chunks = undated = 0
    with connection.transaction(), connection.cursor() as cursor:
        for line_number, outcome in _read_lines(path):
            if isinstance(outcome, str):
                rejected[outcome] += 1
                if len(examples) < 5:
                    examples.append(f"line {line_number}: {outcome}")
                continue
            read += 1
            kept.append(outcome["article_id"])
            undated += outcome.pop("undated")
            cursor.execute(_UPSERT, outcome)
            if cursor.fetchone() is None:  # known and unchanged
                continue
            written += 1
            cursor.execute("DELETE FROM chunks_vector WHERE article_id = %(article_id)s", outcome)
            rows = [{**outcome, "chunk": text, "chunk_index": index} for index, text in enumerate(chunk_text(outcome["content"]))]
            cursor.executemany(_INSERT_CHUNK, rows)
            chunks += len(rows)
        if read and replace:
            cursor.execute("DELETE FROM articles WHERE NOT article_id = ANY(%s) RETURNING article_id", (kept,))
            gone = [article_id for (article_id,) in cursor.fetchall()]
            cursor.execute("DELETE FROM chunks_vector WHERE article_id = ANY(%s)", (gone,))
    if read == 0:
        raise ArticleFileError(f"{path} holds no usable article: {dict(rejected) or 'the file is empty'} ({'; '.join(examples)})")
    if rejected:
        logger.warning("%s: left out %d lines: %s (%s)", path.name, rejected.total(), dict(rejected), "; ".join(examples))
    if undated:
        logger.info("%s: %d articles carry no fetched_at: spread over %d days by a hash", path.name, undated, UNDATED_DAYS)
    return LoadSummary(read, written, chunks, undated, dict(rejected), examples)


def chunk_text(content: str, max_words: int = CHUNK_WORDS) -> list[str]:
    """Passages of at most `max_words` words that follow paragraph borders where they can, and sentence borders elsewhere.

    A single sentence longer than `max_words` is cut between words.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", content):
        words = paragraph.split()
        if len(words) <= max_words:
            pieces.append(" ".join(words))
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
            tokens = sentence.split()
            pieces += [" ".join(tokens[start : start + max_words]) for start in range(0, len(tokens), max_words)]
    chunks: list[str] = []
    length = 0
    for piece in filter(None, pieces):
        words_in_piece = len(piece.split())
        if chunks and length + words_in_piece <= max_words:
            chunks[-1] += "\n\n" + piece
            length += words_in_piece
        else:
            chunks.append(piece)
            length = words_in_piece
    return chunks


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number, and the row or the reason why there is none."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ArticleFileError(f"cannot read articles from {path}: {error.strerror}") from error
    with stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield number, _parse(raw)


def _parse(raw: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except ValueError:
        return "broken JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    for name in REQUIRED:
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"missing {name}"
    text = {name: row.get(name) or None for name in ("author", "source_link", "source_type", "category")}
    if any(value is not None and not isinstance(value, str) for value in text.values()):
        return "a text field is not a string"
    if any("\x00" in value for value in (*text.values(), *(row[name] for name in REQUIRED)) if value):
        return "NUL character"  # PostgreSQL has no place for it
    try:
        published, fetched = _timestamp(row.get("published_at")), _timestamp(row.get("fetched_at"))
    except (TypeError, ValueError):
        return "broken date"
    return {
        "article_id": row["article_id"].strip(),
        "author": text["author"],
        "title": row["title"].strip(),
        "summary": json.dumps({"category": text["category"]}) if text["category"] else None,
        "content": row["content"],
        "source_link": text["source_link"],
        "source_type": text["source_type"] or "archive",
        "fetched_at": fetched or _day_by_hash(row["article_id"].strip()),
        "published_at": published,
        "undated": fetched is None,
    }


def _timestamp(value: Any) -> datetime | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise TypeError(f"a date must be ISO 8601 text, not {value!r}")
    moment = datetime.fromisoformat(value)
    return (moment - moment.utcoffset()).replace(tzinfo=None) if moment.utcoffset() is not None else moment  # type: ignore[operator]


def _day_by_hash(article_id: str) -> datetime:
    digest = int.from_bytes(hashlib.sha256(article_id.encode()).digest()[:8], "big")
    return datetime.combine(UNDATED_FIRST_DAY + timedelta(days=digest % UNDATED_DAYS), time(6))


_UPSERT = """
INSERT INTO articles AS known
    (article_id, author, title, summary, content, source_link, source_type, fetched_at, published_at)
VALUES (%(article_id)s, %(author)s, %(title)s, %(summary)s, %(content)s, %(source_link)s, %(source_type)s,
        %(fetched_at)s, %(published_at)s)
ON CONFLICT (article_id) DO UPDATE SET
    author = excluded.author, title = excluded.title, summary = excluded.summary, content = excluded.content,
    source_link = excluded.source_link, source_type = excluded.source_type,
    fetched_at = excluded.fetched_at, published_at = excluded.published_at
WHERE (known.author, known.title, known.summary, known.content, known.source_link, known.source_type,
       known.fetched_at, known.published_at)
      IS DISTINCT FROM
      (excluded.author, excluded.title, excluded.summary, excluded.content, excluded.source_link, excluded.source_type,
       excluded.fetched_at, excluded.published_at)
RETURNING article_id
"""

_INSERT_CHUNK = """
INSERT INTO chunks_vector
    (article_id, author, title, summary, content, source_link, source_type, fetched_at, published_at, chunk, chunk_index)
VALUES (%(article_id)s, %(author)s, %(title)s, %(summary)s, %(content)s, %(source_link)s, %(source_type)s,
        %(fetched_at)s, %(published_at)s, %(chunk)s, %(chunk_index)s)
"""
