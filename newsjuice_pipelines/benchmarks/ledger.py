"""The teacher ledger with many rows: opening it, finding what is left to do, and writing the CSV."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.machine import embedded_database, machine, peak_memory_mib
from newsjuice_pipelines.benchmarks.teacher import articles
from newsjuice_pipelines.runtime.reports import markdown_table

logger = logging.getLogger("newsjuice.benchmarks")

LEFT_SHARE = 0.05
DIFFERENT_SCRIPTS = 500


def run(*, rows: int = 200_000, repeats: int = 3) -> dict[str, Any]:
    """Fill a ledger with `rows` answers of the extractive teacher and measure what a run does with it.

    The answers repeat 500 scripts, judged as a run judges them before it keeps them. 5 % more keys are looked for that have no
    answer yet.
    """
    import asyncio

    import psycopg

    from newsjuice_pipelines.database.migrate import migrate
    from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
    from newsjuice_pipelines.podcast.teaching.ledger import Ledger
    from newsjuice_pipelines.podcast.teaching.teacher import request_key
    from newsjuice_pipelines.podcast.teaching.teacher_table import judged, teacher_table, write_teacher_csv

    teacher = ExtractiveTeacher()
    chunks = articles(rows)
    keys = [request_key(teacher, text) for text in chunks["text"]]
    unanswered = [f"{number:064x}" for number in range(int(rows * LEFT_SHARE))]

    scripts = {text: asyncio.run(teacher.ask(text, 1.0)) for text in chunks["text"].head(DIFFERENT_SCRIPTS)}
    some = [judged(reply, text) for text, reply in scripts.items()]
    replies = {key: some[number % len(some)] for number, key in enumerate(keys)}
    logger.info("ledger: %d answers are ready to be stored", rows)
    with embedded_database() as url:
        store_s = _timed(lambda: Ledger(lambda: psycopg.connect(url)).store(replies, "bench", "extractive", "frame"))

        def open_ledger() -> Ledger:
            with psycopg.connect(url) as connection:
                migrate(connection, "ledger")
            ledger = Ledger(lambda: psycopg.connect(url))
            ledger.release_dead_owners()
            return ledger

        def once() -> dict[str, float]:
            clock = _Laps()
            ledger = open_ledger()
            clock.lap("open_s")
            found = ledger.find([*keys, *unanswered])
            clock.lap("find_s")
            assert len(found) == rows, f"{len(found)} answers found, {rows} stored"
            scripts = teacher_table(chunks, keys, found, teacher)
            clock.lap("table_s")
            with tempfile.TemporaryDirectory() as folder:
                write_teacher_csv(scripts, Path(folder))
                clock.lap("csv_s")
            ledger.close()
            return clock.laps

        times = [once() for _ in range(repeats)]
    return {
        "machine": machine(),
        "rows": rows,
        "unanswered": len(unanswered),
        "repeats": repeats,
        "store_s": store_s,
        **{name: statistics.median(lap[name] for lap in times) for name in times[0]},
        "peak_memory_mib": peak_memory_mib(),
    }


def table(results: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = results["rows"]
    measures = [
        ("open: connect, check migrations, free dead claims", f"{results['open_s'] * 1000:.0f} ms"),
        (f"find what is left: {rows:,} answered and {results['unanswered']:,} unanswered keys", f"{results['find_s']:.1f} s"),
        ("make the table", f"{results['table_s']:.1f} s"),
        ("write the CSV and count", f"{results['csv_s']:.1f} s"),
        ("fill the ledger (once)", f"{results['store_s']:.1f} s"),
        ("peak memory of the whole benchmark", f"{results['peak_memory_mib']:,.0f} MiB"),
    ]
    return markdown_table([f"a ledger of {rows:,} rows", f"median of {results['repeats']}"], measures)


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _Laps:
    """Seconds between the laps of one repetition."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
