"""The sample of article chunks that the teacher writes scripts for: read from PostgreSQL in one pass, written as Parquet.

The sample is a bottom-k by hash. An article's rank is a hash of the seed and its id, a chunk's rank within its article a
hash of the seed and the chunk's id. The lowest ranked chunks of the whole table are the sample, so that whether a chunk is
in it does not depend on the days asked for, and the union over all days is exactly the sample.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import psycopg

logger = logging.getLogger("newsjuice.podcast")

CHUNK_COLUMNS = (
    "chunk_id",
    "article_id",
    "chunk_index",
    "title",
    "author",
    "source_link",
    "source_type",
    "published_at",
    "fetched_at",
    "text",
)
SOURCE_COLUMNS = (
    "article_id",
    "chunk_index",
    "title",
    "author",
    "source_link",
    "source_type",
    "published_at",
    "fetched_at",
    "chunk",
)
COUNTS = (
    "rows_read",
    "no_id",
    "empty_text",
    "too_short",
    "too_long",
    "other_source_type",
    "no_fetched_at",
    "before_first_day",
    "eligible",
    "duplicate_text",
    "sampled",
    "in_range",
)
CHUNKS_FILE = "chunks.parquet"

_FETCH_ROWS = 2_000
_LOG_ROWS = 100_000

Row = dict[str, Any]


class SourceTableError(RuntimeError):
    """The table of article chunks cannot be used as it is."""


class EmptySourceTable(SourceTableError):
    """The table of article chunks has no rows, or none that is fit for a script."""


@dataclass(frozen=True)
class ChunkSampling:
    """Which chunks of the table are eligible, and how many are taken."""

    sample_size: int = 2000
    """Chunks in the sample, over all days."""
    seed: int = 42
    """Decides the ranks: another seed is another sample."""
    max_chunks_per_article: int = 1
    """Most chunks taken from one article."""
    min_words: int = 60
    """Chunks with fewer words are left out."""
    max_words: int = 700
    """Chunks with more words are left out."""
    source_types: tuple[str, ...] = ()
    """Only these values of `source_type`; empty for all."""

    def __post_init__(self) -> None:
        if self.sample_size < 1 or self.max_chunks_per_article < 1:
            raise ValueError(
                f"sample_size={self.sample_size}, max_chunks_per_article={self.max_chunks_per_article}: both must be at least 1."
            )
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(f"min_words={self.min_words}, max_words={self.max_words}: need 1 <= min_words <= max_words.")


@dataclass(frozen=True)
class ChunkSample:
    """The sampled rows of the days asked for, and what became of every row of the table.

    `counts`: `duplicate_text` counts rows passed over because a lower ranked row has the same text; `eligible` rows that
    are neither sampled nor duplicates rank too high, or their article has its share already.
    """

    rows: pd.DataFrame
    counts: dict[str, int]


def sample_chunks(
    connection: psycopg.Connection,
    table: str,
    sampling: ChunkSampling,
    first_day: date,
    last_day: date,
    *,
    since: date = date.min,
    statement_timeout_s: int = 600,
) -> ChunkSample:
    """Sample the whole of `table` and return the part of the sample fetched from `first_day` to `last_day`, both included.

    One read-only pass with a server-side cursor; memory depends on the sample size, not on the table. (Where more than
    half of the lowest ranked chunks are copies of others, a second pass with more room follows.)

    Args:
        connection: to the article database; used for one transaction.
        table: name of the chunk table, optionally with its schema (`public.chunks_vector`).
        sampling: eligibility, size and seed.
        first_day, last_day: days of `fetched_at` in UTC.
        since: rows fetched before this day are not eligible: no partition could hold them.
        statement_timeout_s: longest time for one fetch, seconds.

    Raises:
        SourceTableError: the table or one of its columns is missing.
        EmptySourceTable: there is no row, or none that is eligible.
    """
    if first_day > last_day:
        raise ValueError(f"first_day={first_day} is after last_day={last_day}.")
    name = tuple(table.split("."))
    _check_columns(connection, name)
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    capacity = 2 * sampling.sample_size + 100
    while True:
        with _read_rows(connection, name, statement_timeout_s) as stream:
            selection = select_chunks(stream, sampling, capacity, since)
        rows, counts = selection.rows, selection.counts
        if selection.is_exact:
            break
        capacity *= 4
        logger.info("%s has many chunks with the same text: reading it again with room for %d articles", table, capacity)
    if counts["rows_read"] == 0:
        raise EmptySourceTable(
            f"the table {table} is empty: fill it with `newsjuice run --data DIR`, or point NEWSJUICE_DATABASE_URL at a "
            "filled database."
        )
    if counts["eligible"] == 0:
        reasons = {reason: count for reason in COUNTS if (count := counts[reason])}
        raise EmptySourceTable(f"no row of {table} is fit for a script: {reasons}. Widen min_words, max_words or source_types.")
    in_range = [row for row in rows if first_day <= row["fetched_at"].date() <= last_day]
    counts["in_range"] = len(in_range)
    logger.info("%s: %s", table, ", ".join(f"{reason} {counts[reason]:,}" for reason in COUNTS if counts[reason]))
    return ChunkSample(_frame(in_range), {reason: counts[reason] for reason in COUNTS})


@dataclass
class Selection:
    """The sample of a stream of rows; `is_exact` is False when `capacity` was too small to tell."""

    rows: list[Row]
    counts: Counter[str]
    is_exact: bool


def select_chunks(rows: Iterable[Sequence[Any]], sampling: ChunkSampling, capacity: int, since: date = date.min) -> Selection:
    """The `sample_size` lowest ranked eligible rows with distinct texts, whatever the order of `rows`.

    Only the `capacity` lowest ranked articles are held. Rows of other articles rank behind all of theirs, so the result is
    exact as soon as the articles held give a full sample, or no article had to be let go.

    Args:
        rows: values in the order of `SOURCE_COLUMNS`.
        sampling: eligibility, size and seed.
        capacity: articles held at once.
        since: first eligible day of `fetched_at`.
    """
    counts: Counter[str] = Counter()
    held = _LowestArticles(capacity, sampling)
    for values in rows:
        counts["rows_read"] += 1
        if counts["rows_read"] % _LOG_ROWS == 0:
            logger.info("article chunks: read %d rows", counts["rows_read"])
        row = dict(zip(SOURCE_COLUMNS, values, strict=True))
        problem = _problem(row, sampling)
        if problem is None and row["fetched_at"].date() < since:
            problem = "before_first_day"
        counts[problem or "eligible"] += 1
        if problem is None:
            held.offer(row)
    sample: dict[str, Row] = {}
    for row in held.in_order():
        if len(sample) == sampling.sample_size:
            break
        key = " ".join(row["text"].casefold().split())
        if key in sample:
            counts["duplicate_text"] += 1
        else:
            sample[key] = row
    counts["sampled"] = len(sample)
    chosen = sorted(sample.values(), key=lambda row: (row["fetched_at"], row["chunk_id"]))
    return Selection(chosen, counts, is_exact=len(sample) == sampling.sample_size or not held.let_go)


def write_chunks(rows: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Write `chunks.parquet` into `out`; returns counts of rows and articles, and the words per chunk."""
    rows.to_parquet(out / CHUNKS_FILE, index=False)
    words = [len(text.split()) for text in rows["text"]]
    return {
        "rows": len(rows),
        "articles": int(rows["article_id"].nunique()),
        "words_p50": float(statistics.median(words)) if words else None,
        "words_max": max(words, default=None),
        "first_fetched_at": None if rows.empty else rows["fetched_at"].min().isoformat(),
        "last_fetched_at": None if rows.empty else rows["fetched_at"].max().isoformat(),
    }


def read_chunks(paths: Iterable[Path]) -> pd.DataFrame:
    """The chunks of several partitions (folders or files) as one table, by `fetched_at` and `chunk_id`."""
    import pandas as pd

    files = [path / CHUNKS_FILE if path.is_dir() else path for path in paths]
    frames = [pd.read_parquet(file) for file in files]
    filled = [frame for frame in frames if not frame.empty]
    if not filled:
        return _frame([])
    return pd.concat(filled).sort_values(["fetched_at", "chunk_id"], ignore_index=True)


@dataclass
class _LowestArticles:
    """The lowest ranked articles seen so far, each with its lowest ranked chunks by chunk id."""

    capacity: int
    sampling: ChunkSampling
    let_go: bool = False
    _chunks: dict[str, dict[str, Row]] = field(default_factory=dict)
    _highest_first: list[tuple[int, str]] = field(default_factory=list)

    def offer(self, row: Row) -> None:
        article, chunk_id = row["article_id"], row["chunk_id"]
        if article not in self._chunks and not self._admit(article):
            return
        chunks = self._chunks[article]
        known = chunks.get(chunk_id)
        if known is None or _content(row) < _content(known):  # rows that share an id count once, whatever their order
            chunks[chunk_id] = row
        if len(chunks) > self.sampling.max_chunks_per_article:
            del chunks[max(chunks, key=self._order)]

    def in_order(self) -> Iterator[Row]:
        """All chunks held, lowest article rank first."""
        for article in sorted(self._chunks, key=self._order):
            chunks = self._chunks[article]
            yield from (chunks[chunk_id] for chunk_id in sorted(chunks, key=self._order))

    def _admit(self, article: str) -> bool:
        rank, _ = self._order(article)
        if len(self._chunks) == self.capacity:
            self.let_go = True
            if rank >= -self._highest_first[0][0]:
                return False
            _, highest = heapq.heappop(self._highest_first)
            del self._chunks[highest]
        heapq.heappush(self._highest_first, (-rank, article))
        self._chunks[article] = {}
        return True

    def _order(self, name: str) -> tuple[int, str]:
        return _rank(self.sampling.seed, name), name


def _content(row: Row) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in CHUNK_COLUMNS)


def _rank(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8])


def _problem(row: Row, sampling: ChunkSampling) -> str | None:
    """Why a row is not eligible; fills in `text`, `chunk_id` and a UTC `fetched_at` when it is."""
    text = (row.pop("chunk") or "").strip()
    words = len(text.split())
    if row["article_id"] is None or row["chunk_index"] is None:
        return "no_id"
    if not text:
        return "empty_text"
    if words < sampling.min_words:
        return "too_short"
    if words > sampling.max_words:
        return "too_long"
    if sampling.source_types and row["source_type"] not in sampling.source_types:
        return "other_source_type"
    if row["fetched_at"] is None:
        return "no_fetched_at"
    row["article_id"] = str(row["article_id"])
    row["chunk_id"] = f"{row['article_id']}:{row['chunk_index']}"
    row["text"] = text
    for name in ("fetched_at", "published_at"):
        row[name] = _as_utc(row[name])
    return None


def _as_utc(moment: Any) -> datetime | None:
    """Without a time zone, in UTC; columns with and without one both occur."""
    if moment is not None and not isinstance(moment, datetime):
        raise SourceTableError(
            f"fetched_at and published_at must be timestamps, found {moment!r}: convert the column, or use a view."
        )
    return moment if moment is None or moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table with the same column types whether there are rows or not."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(CHUNK_COLUMNS))
    times = {"published_at": "datetime64[us]", "fetched_at": "datetime64[us]"}
    return frame.astype({name: times.get(name, "int64" if name == "chunk_index" else "str") for name in CHUNK_COLUMNS})


def _check_columns(connection: psycopg.Connection, name: tuple[str, ...]) -> None:
    from psycopg import sql

    table = ".".join(name)
    with connection.transaction():
        quoted = sql.Identifier(*name).as_string(connection)
        found = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped", (quoted,)
        ).fetchall()
    if not found:
        raise SourceTableError(
            f"there is no table {table} in the database {connection.info.dbname!r}: "
            "check NEWSJUICE_CHUNKS_TABLE and NEWSJUICE_DATABASE_URL."
        )
    missing = sorted(set(SOURCE_COLUMNS) - {column for (column,) in found})
    if missing:
        raise SourceTableError(
            f"the table {table} has no column {', '.join(missing)}: "
            "point NEWSJUICE_CHUNKS_TABLE at a table or view with the columns of chunks_vector."
        )


@contextmanager
def _read_rows(
    connection: psycopg.Connection, name: tuple[str, ...], statement_timeout_s: int
) -> Iterator[Iterator[tuple[Any, ...]]]:
    """All rows in one read-only transaction, fetched in batches from a server-side cursor."""
    from psycopg import errors, sql
    from psycopg.rows import tuple_row

    query = sql.SQL("SELECT {columns} FROM {table}").format(
        columns=sql.SQL(", ").join(map(sql.Identifier, SOURCE_COLUMNS)), table=sql.Identifier(*name)
    )
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{statement_timeout_s}s",))
        with connection.cursor("newsjuice_chunks", row_factory=tuple_row) as cursor:
            cursor.itersize = _FETCH_ROWS
            try:
                cursor.execute(query)
            except errors.InsufficientPrivilege as error:
                who = connection.info.user
                raise SourceTableError(f"the user {who!r} may not read {'.'.join(name)}: grant SELECT on it.") from error
            yield iter(cursor)
