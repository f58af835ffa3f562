"""Measures sampling from tables of growing size: our one pass against the original loop of one full scan a row.

The server, the table and its rows are made here and removed at the end. The table is real PostgreSQL, the texts are shuffled
sentences of the demo corpus.
"""

from __future__ import annotations

import json
import logging
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.benchmarks.machine import embedded_database, machine, peak_memory_mib
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.podcast.sampling.chunk_filters import LanguageHint
from newsjuice_pipelines.podcast.sampling.chunks import ChunkSampling, sample_chunks
from newsjuice_pipelines.podcast.text.near_duplicates import NearDuplicates
from newsjuice_pipelines.runtime.reports import markdown_table

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger("newsjuice.benchmarks")

TABLE = "chunks_vector"
# Of the forms that the original loop could take, the one that is cheapest for the server: only the text is asked for.
ORIGINAL_QUERY = "SELECT chunk FROM chunks_vector ORDER BY RANDOM() LIMIT 1"
OUR_RUNS = 3

_CHUNKS_PER_ARTICLE = 3
_SENTENCES_PER_CHUNK = 11  # about 1.3 KB
_FIRST_DAY = datetime(2026, 9, 1)
_DAYS = 90


def run(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000), sample_size: int = 2000, draws: int = 50, folder: Path | None = None
) -> dict[str, Any]:
    """Fill a table to each size in turn, and measure the original's draws and our pass on it, interleaved.

    The original's time is the mean of `draws` draws times `sample_size`. Ours is the median of three passes with default
    settings, each in a fresh process that has loaded its libraries before the clock starts; its memory is the highest
    resident size during the pass, less the one just before it.

    Args:
        sizes: rows of the table.
        sample_size: chunks wanted.
        draws: draws of the original that are measured, at least `OUR_RUNS`.
        folder: where the server's own folder is made (about 2 GB a million rows); default: the system's temporary folder.

    Returns:
        `{"machine", "sample_size", "draws", "postgres", "sizes": [{"rows", "table_mib", "original_draw_s", "original_s",
        "ours_s", "ratio", "rows_per_s", "peak_growth_mib", …}]}`, smallest size first.
    """
    import psycopg

    if draws < OUR_RUNS or not sizes or min(sizes) < 1:
        raise ValueError(f"draws={draws}, sizes={list(sizes)}: need at least {OUR_RUNS} draws, and sizes of 1 row or more.")
    with embedded_database(folder) as url, psycopg.connect(url, autocommit=True) as connection:
        version = str(connection.info.server_version // 10_000)
        measured = [_measure(connection, url, size, sample_size, draws) for size in sorted(sizes)]
    return {"machine": machine(), "sample_size": sample_size, "draws": draws, "postgres": version, "sizes": measured}


def table(results: dict[str, Any]) -> str:
    """The figures of `run` as a Markdown table, one line a size."""
    wanted = f"{results['sample_size']:,}"
    header = [
        "rows in the table",
        "table, MiB",
        f"original, {wanted} draws, s (scaled from {results['draws']})",
        f"ours, {wanted} chunks, s",
        "times faster",
        "ours, rows/s",
        "ours, memory on top, MiB",
    ]
    names = ("rows", "table_mib", "original_s", "ours_s", "ratio", "rows_per_s", "peak_growth_mib")
    return markdown_table(header, [[size[name] for name in names] for size in results["sizes"]])


def _measure(connection: psycopg.Connection, url: str, rows: int, sample_size: int, draws: int) -> dict[str, Any]:
    logger.info("filling %s to %d rows", TABLE, rows)
    _fill(connection, rows)
    draw_s: list[float] = []
    passes: list[dict[str, Any]] = []
    for number in range(OUR_RUNS):
        for _ in range(draws * number // OUR_RUNS, draws * (number + 1) // OUR_RUNS):
            start = time.perf_counter()
            connection.execute(ORIGINAL_QUERY).fetchone()
            draw_s.append(time.perf_counter() - start)
        passes.append(_pass_in_a_fresh_process(url, sample_size))
        logger.info("%d rows: a draw %.3f s, our pass %.2f s", rows, statistics.mean(draw_s), passes[-1]["pass_s"])
    original_s = statistics.mean(draw_s) * sample_size
    ours_s = statistics.median(one["pass_s"] for one in passes)
    return {
        "rows": rows,
        "table_mib": _value(connection, "SELECT pg_table_size('chunks_vector')") / 2**20,
        "original_draw_s": statistics.mean(draw_s),
        "original_s": original_s,
        "ours_s": ours_s,
        "ours_runs_s": [one["pass_s"] for one in passes],
        "ours_cpu_s": statistics.median(one["cpu_s"] for one in passes),
        "ratio": original_s / ours_s,
        "rows_per_s": rows / ours_s,
        "peak_growth_mib": statistics.median(one["peak_growth_mib"] for one in passes),
        "counts": passes[0]["counts"],
        "share_read": passes[0]["share_read"],
    }


def _fill(connection: psycopg.Connection, rows: int) -> None:
    """Add rows until there are `rows`. `content` stays empty: it lies outside of the rows that either way reads."""
    present = _value(connection, "SELECT count(*) FROM chunks_vector")
    columns = "article_id, title, author, source_link, source_type, summary, fetched_at, published_at, chunk, chunk_index"
    with connection.cursor() as cursor, cursor.copy(f"COPY {TABLE} ({columns}) FROM STDIN") as copy:
        for row in _rows(present, rows):
            copy.write_row(row)
    connection.execute(f"VACUUM ANALYZE {TABLE}")


def _rows(start: int, stop: int) -> Iterator[tuple[Any, ...]]:
    """Rows `start` to `stop`; each a text of its own, three an article."""
    lines = DEMO_ARTICLES.read_text(encoding="utf-8").splitlines()
    sentences = [part for line in lines for part in re.split(r"(?<=[.!?])\s+", json.loads(line)["content"])]
    shuffled = random.Random(start)
    for number in range(start, stop):
        article, index = divmod(number, _CHUNKS_PER_ARTICLE)
        moment = _FIRST_DAY + timedelta(days=article % _DAYS)
        link = f"https://courier.example/{article}"
        text = " ".join(shuffled.sample(sentences, _SENTENCES_PER_CHUNK))
        yield (
            f"article-{article}",
            f"Title {article}",
            "A. Writer",
            link,
            "campus-news",
            '{"category": "Campus"}',
            moment,
            moment,
            text,
            index,
        )


def _value(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _pass_in_a_fresh_process(url: str, sample_size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "newsjuice_pipelines.benchmarks.chunks", url, str(sample_size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _pass(url: str, sample_size: int) -> dict[str, Any]:
    """Time and memory of one pass in this process."""
    import pandas as pd
    import psutil
    import psycopg

    LanguageHint(("en",)).allows("These load the language model and")
    NearDuplicates().add("warm", "the libraries of the index.")
    pd.DataFrame()
    with psycopg.connect(url) as connection:
        resident_bytes = psutil.Process().memory_info().rss
        start, start_cpu = time.perf_counter(), time.process_time()
        sampling = ChunkSampling(sample_size=sample_size)
        sample = sample_chunks(connection, TABLE, sampling, date(2026, 1, 1), date(2027, 12, 31))
        elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "pass_s": elapsed_s,
        "cpu_s": cpu_s,
        "peak_growth_mib": peak_memory_mib() - resident_bytes / 2**20,
        "counts": sample.counts,
        "share_read": sample.share_read,
    }


if __name__ == "__main__":
    print(json.dumps(_pass(sys.argv[1], int(sys.argv[2]))))
