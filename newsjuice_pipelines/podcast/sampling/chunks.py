"""The sample of article chunks that the teacher writes scripts for: read from PostgreSQL in one pass, written as Parquet.

The sample is a bottom-k by hash. An article's rank is a hash of the seed and its id, a chunk's rank within its article a
hash of the seed and the chunk's id. The lowest ranked chunks of the whole table are the sample, so that whether a chunk is
in it does not depend on the days asked for, and the union over all days is exactly the sample.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.sampling.chunk_filters import SOURCE_COLUMNS, LanguageHint, RowFilter, Values, as_utc
from newsjuice_pipelines.podcast.sampling.chunk_filters import ChunkSampling as ChunkSampling  # part of this module's interface
from newsjuice_pipelines.podcast.sampling.chunk_ranks import LowestArticles
from newsjuice_pipelines.podcast.sampling.chunk_table import SourceTableError as SourceTableError
from newsjuice_pipelines.podcast.sampling.chunk_table import check_columns, estimated_articles, read_rows
from newsjuice_pipelines.podcast.text.near_duplicates import NearDuplicates

if TYPE_CHECKING:
    import pandas as pd
    import psycopg

logger = logging.getLogger("newsjuice.podcast")

CHUNK_TYPES = {
    "chunk_id": "str",
    "article_id": "str",
    "chunk_index": "int64",
    "title": "str",
    "author": "str",
    "source_link": "str",
    "source_type": "str",
    "published_at": "datetime64[us]",
    "fetched_at": "datetime64[us]",
    "text": "str",
    "section": "str",
}
CHUNK_COLUMNS = tuple(CHUNK_TYPES)
COUNTS = (
    "rows_read",
    "no_id",
    "other_source_type",
    "no_fetched_at",
    "before_first_day",
    "outside_date_window",
    "empty_text",
    "too_short",
    "too_long",
    "eligible",
    "duplicate_text",
    "other_language",
    "near_duplicate",
    "sampled",
    "in_range",
)
CHUNKS_FILE = "chunks.parquet"

# Articles that are read for one that is kept room for: some have no eligible chunk.
SPARE_ARTICLES = 2
# With none that is wanted among so many low ranked chunks, there is no point in looking at the others.
HOPELESS_CHUNKS = 4_000
_LOG_ROWS = 100_000
Row = dict[str, Any]


class EmptySourceTable(SourceTableError):
    """The table of article chunks has no rows, or none that is fit for a script."""


@dataclass(frozen=True)
class ChunkSample:
    """The sampled rows of the days asked for, and what became of every row that was looked at.

    `counts`: up to `eligible` every row that was read is counted once, under the first reason that holds. `duplicate_text`,
    `other_language` and `near_duplicate` count the eligible rows passed over while the sample was filled in rank order, for
    only so many are examined; the other eligible rows rank too high, or their article has its share already.
    """

    rows: pd.DataFrame
    counts: dict[str, int]
    share_read: float
    """Part of the articles whose rows were read, about, 0 to 1: the lowest ranked ones, so that they speak for the table."""


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

    One read-only pass with a server-side cursor; memory depends on the sample size, not on the table. Where the server's
    statistics say that the table is large, it computes the ranks itself and sends only the rows of low ranked articles.
    (Where most of those are unfit, copies or foreign, one or two further passes over more articles follow.)

    Args:
        connection: to the article database; used for one transaction.
        table: name of the chunk table, optionally with its schema (`public.chunks_vector`).
        sampling: eligibility, size and seed.
        first_day, last_day: days of `fetched_at` in UTC.
        since: rows fetched before this day are not eligible: no partition could hold them.
        statement_timeout_s: longest time for one fetch, seconds.

    Raises:
        SourceTableError: the table or one of its columns is missing, or a column has an unfit type.
        EmptySourceTable: there is no row, or none that is eligible.
        ValueError: a language of `sampling` is unknown.
    """
    if first_day > last_day:
        raise ValueError(f"first_day={first_day} is after last_day={last_day}.")
    LanguageHint(sampling.languages)  # refuses an unknown language before the table is read
    name = tuple(table.split("."))
    check_columns(connection, name)
    capacity = 2 * sampling.sample_size + 100
    articles = estimated_articles(connection, table)
    share = _bounded(SPARE_ARTICLES * capacity / articles) if articles else 1.0
    while True:
        with read_rows(connection, name, statement_timeout_s, sampling.seed, share) as stream:
            selection = select_chunks(stream, sampling, capacity, since)
        found = len(selection.rows)
        if found == sampling.sample_size or (selection.is_exact and share == 1.0):
            break
        if not found and selection.passed_over >= HOPELESS_CHUNKS:
            break
        if not selection.is_exact:
            capacity *= 4
        if share < 1:  # by what this part of the articles gave
            share = _bounded(SPARE_ARTICLES * share * max(4.0, sampling.sample_size / found)) if found else 1.0
        logger.info("%s: %d of %d chunks so far, reading again with more room", table, found, sampling.sample_size)
    rows, counts = selection.rows, selection.counts
    _refuse_nothing(table, rows, counts)
    in_range = [row for row in rows if first_day <= row["fetched_at"].date() <= last_day]
    counts["in_range"] = len(in_range)
    logger.info("%s: %s", table, ", ".join(f"{reason} {counts[reason]:,}" for reason in COUNTS if counts[reason]))
    if share < 1:
        logger.info("%s: these are the rows of the lowest ranked %.2g %% of the articles", table, 100 * share)
    return ChunkSample(_frame(in_range), {reason: counts[reason] for reason in COUNTS}, share)


def _bounded(share: float) -> float:
    """A share of the articles; more than half of them is all of them, which spares the server the ranks."""
    return share if share <= 0.5 else 1.0


def _refuse_nothing(table: str, rows: Sequence[Row], counts: Counter[str]) -> None:
    """Raise when the sample is empty, saying why."""
    if counts["rows_read"] == 0:
        raise EmptySourceTable(
            f"the table {table} is empty: fill it with `newsjuice run --data DIR`, or point NEWSJUICE_DATABASE_URL at a "
            "filled database."
        )
    reasons = {reason: count for reason in COUNTS if (count := counts[reason])}
    if counts["eligible"] == 0:
        raise EmptySourceTable(
            f"no row of {table} is fit for a script: {reasons}. "
            "Widen min_words, max_words, source_types, published_from or published_until."
        )
    if not rows:
        raise EmptySourceTable(
            f"none of the {counts['other_language']:,} lowest ranked chunks of {table} is in a language asked for: {reasons}. "
            "Set `languages`, or leave it empty for all."
        )


@dataclass
class Selection:
    """The sample of a stream of rows; `is_exact` is False when `capacity` was too small to tell."""

    rows: list[Row]
    counts: Counter[str]
    passed_over: int
    """Eligible chunks that were examined and are not in the sample."""
    is_exact: bool


def select_chunks(rows: Iterable[Values], sampling: ChunkSampling, capacity: int, since: date = date.min) -> Selection:
    """The `sample_size` lowest ranked eligible rows that are no copies of each other, whatever the order of `rows`.

    Only the `capacity` lowest ranked articles are held. Rows of other articles rank behind all of theirs, so the result is
    exact as soon as the articles held give a full sample, or no article had to be let go.

    Args:
        rows: values in the order of `SOURCE_COLUMNS`.
        sampling: eligibility, size and seed.
        capacity: articles held at once.
        since: first eligible day of `fetched_at`.
    """
    problems: Counter[str] = Counter()
    held = LowestArticles(capacity, sampling)
    problem_of, offer = RowFilter(sampling, since).problem, held.offer
    read = 0
    for read, values in enumerate(rows, start=1):
        problem = problem_of(values)
        if problem is None:
            offer(values)
        else:
            problems[problem] += 1
        if read % _LOG_ROWS == 0:
            logger.info("article chunks: read %d rows", read)
    chosen, passed_over = _fill(held, sampling)
    counts = problems + passed_over
    counts.update(rows_read=read, eligible=read - problems.total(), sampled=len(chosen))
    is_exact = len(chosen) == sampling.sample_size or not held.let_go
    return Selection(sorted(chosen, key=lambda row: (row["fetched_at"], row["chunk_id"])), counts, passed_over.total(), is_exact)


def _fill(held: LowestArticles, sampling: ChunkSampling) -> tuple[list[Row], Counter[str]]:
    """The lowest ranked chunks that are wanted, and why others on the way to them are not.

    The walk goes by rank, so that a chunk's fate depends on lower ranked chunks only.
    """
    language = LanguageHint(sampling.languages)
    similarity = sampling.near_duplicate_similarity
    near_duplicates = NearDuplicates(similarity) if similarity else None
    sample: dict[str, Row] = {}
    passed_over: Counter[str] = Counter()
    for chunk_id, values in held.in_order():
        if len(sample) == sampling.sample_size:
            break
        row = _row(chunk_id, values)
        key = " ".join(row["text"].casefold().split())
        if key in sample:
            passed_over["duplicate_text"] += 1
        elif not language.allows(row["text"]):
            passed_over["other_language"] += 1
        elif near_duplicates and near_duplicates.add(chunk_id, row["text"]):
            passed_over["near_duplicate"] += 1
        else:
            sample[key] = row
    return list(sample.values()), passed_over


def _row(chunk_id: str, values: Values) -> Row:
    """A row of the sample, by the names of `CHUNK_COLUMNS`."""
    row = dict(zip(SOURCE_COLUMNS, values, strict=True))
    published_at = row["published_at"]
    return {
        **{name: row[name] for name in ("chunk_index", "title", "author", "source_link", "source_type")},
        "chunk_id": chunk_id,
        "article_id": str(row["article_id"]),
        "published_at": None if published_at is None else as_utc(published_at),
        "fetched_at": as_utc(row["fetched_at"]),
        "text": row["chunk"].strip(),
        "section": section_of(row["summary"]),
    }


def section_of(summary: Any) -> str:
    """The `category` of an article's JSON summary; empty where it has none, or the summary is something else."""
    try:
        parsed = json.loads(summary) if isinstance(summary, str) else summary
    except (ValueError, RecursionError):
        return ""
    category = parsed.get("category") if isinstance(parsed, dict) else None
    if not isinstance(category, str):
        return ""
    return " ".join(category.encode("utf-8", "replace").decode().split())  # JSON can spell halves of characters


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


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table with the same column types whether there are rows or not."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(CHUNK_COLUMNS)).astype(CHUNK_TYPES)
