"""The teacher against a local server with a fixed latency: our run beside the one-at-a-time loop, on the same rows.

The server is another process, so that processor time and memory are those of the run alone.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.benchmarks.gemini_server import local_client
from newsjuice_pipelines.benchmarks.machine import embedded_database, machine, peak_memory_mib
from newsjuice_pipelines.runtime.reports import markdown_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.benchmarks")

MODEL = "gemini-3.1-flash-lite"
ARTICLE_WORDS = 200


def run(
    *, rows: int = 2000, latency_s: float = 0.75, concurrency: int = 64, repeats: int = 3, loop_calls: int = 20
) -> dict[str, Any]:
    """Ask for `rows` scripts `repeats` times, each time with a fresh ledger, and measure the loop on `loop_calls` calls between.

    Both clocks start when Google's library is loaded.

    Args:
        rows: different articles.
        latency_s: of the server, seconds.
        concurrency: most requests under way.
        repeats: of both; medians are reported.
        loop_calls: calls of the one-at-a-time loop that are measured; its time for all rows is scaled from them.
    """
    if find_spec("google.genai") is None:
        raise ValueError("newsjuice bench teacher needs Google's library: pip install 'newsjuice-pipelines[gcp]'.")
    ours: list[dict[str, float]] = []
    loop_s: list[float] = []
    with embedded_database() as url, local_server(latency_s) as address:
        for number in range(repeats):
            loop_s.append(_in_own_process(_ask_one_by_one, address, loop_calls)["wall_s"] / loop_calls)
            ours.append(_in_own_process(_ask, url, address, rows, concurrency, number))
            logger.info("teacher: %d rows in %.1f s, the loop %.3f s a row", rows, ours[-1]["wall_s"], loop_s[-1])
    wall_s = statistics.median(run["wall_s"] for run in ours)
    ideal_s = rows * latency_s / concurrency
    one_by_one_s = statistics.median(loop_s) * rows
    return {
        "machine": machine(),
        "rows": rows,
        "latency_s": latency_s,
        "concurrency": concurrency,
        "repeats": repeats,
        "wall_s": wall_s,
        "wall_s_all": [run["wall_s"] for run in ours],
        "ideal_s": ideal_s,
        "wall_over_ideal": wall_s / ideal_s,
        "loop_calls": loop_calls,
        "loop_s": one_by_one_s,
        "times_faster": one_by_one_s / wall_s,
        "cpu_s": statistics.median(run["cpu_s"] for run in ours),
        "peak_memory_mib": statistics.median(run["peak_memory_mib"] for run in ours),
        "memory_before_mib": statistics.median(run["memory_before_mib"] for run in ours),
        "ok": min(run["ok"] for run in ours),
    }


def table(results: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    rows, latency, most = results["rows"], results["latency_s"], results["concurrency"]
    measures = [
        (f"{rows:,} scripts at concurrency {most}, {latency} s a reply", f"{results['wall_s']:.1f} s"),
        ("ideal: rows x latency / concurrency", f"{results['ideal_s']:.1f} s"),
        ("ours / ideal", f"{results['wall_over_ideal']:.3f}"),
        (f"one at a time (measured on {results['loop_calls']} calls, scaled)", f"{results['loop_s']:,.0f} s"),
        ("times faster than one at a time", f"{results['times_faster']:.1f}"),
        ("processor time of our process", f"{results['cpu_s']:.1f} s"),
        ("peak memory of our process (before the first request)", _memory(results)),
        ("scripts with status ok", f"{results['ok']:,.0f}"),
    ]
    return markdown_table(["measure", f"median of {results['repeats']}"], measures)


@contextmanager
def local_server(latency_s: float, *options: str) -> Iterator[str]:
    """The local Gemini server in a process of its own; gives its address."""
    command = [sys.executable, "-m", "newsjuice_pipelines.benchmarks.gemini_server", "--port", "0"]
    with subprocess.Popen([*command, "--latency-s", str(latency_s), *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()  # it keeps nothing; what started this may have SIGTERM ignored


def articles(rows: int) -> pd.DataFrame:
    """That many different chunks, built from the demo articles, as `chunk_id, article_id, text`."""
    import pandas as pd

    from newsjuice_pipelines.demo import DEMO_ARTICLES

    texts = [json.loads(line)["content"] for line in DEMO_ARTICLES.read_text(encoding="utf-8").splitlines()]
    cut = [" ".join(text.split()[:ARTICLE_WORDS]) for text in texts]
    return pd.DataFrame(
        {
            "chunk_id": [f"{number}:0" for number in range(rows)],
            "article_id": [str(number) for number in range(rows)],
            "text": [f"Report number {number}. {cut[number % len(cut)]}" for number in range(rows)],
        }
    )


def _ask(url: str, address: str, rows: int, concurrency: int, number: int) -> dict[str, float]:
    import psutil
    import psycopg

    from newsjuice_pipelines.podcast.teaching.ledger import Ledger
    from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
    from newsjuice_pipelines.podcast.teaching.teacher_run import write_scripts

    chunks = articles(rows)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE newsjuice.teacher_ledger")
    ledger = Ledger(lambda: psycopg.connect(url))
    teacher = _teacher(address)
    process = psutil.Process()
    before_mib, before = process.memory_info().rss / 2**20, process.cpu_times()
    started = time.perf_counter()
    made = write_scripts(chunks, teacher, ledger, AskingConfig(max_concurrency=concurrency))
    wall_s, after = time.perf_counter() - started, process.cpu_times()
    return {
        "wall_s": wall_s,
        "cpu_s": after.user + after.system - before.user - before.system,
        "memory_before_mib": before_mib,
        "peak_memory_mib": peak_memory_mib(),
        "ok": float((made.scripts["status"] == "ok").sum()),
    }


def _ask_one_by_one(address: str, calls: int) -> dict[str, float]:
    """The loop of the first experiment: one synchronous request after the other."""
    from newsjuice_pipelines.podcast.teaching.prompts import render_prompt

    client = local_client(address)
    texts = articles(calls)["text"]
    started = time.perf_counter()
    for text in texts:
        client.models.generate_content(model=MODEL, contents=render_prompt("v2", text))
    return {"wall_s": time.perf_counter() - started}


def _teacher(address: str) -> Any:
    from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher

    return GeminiTeacher(lambda: local_client(address), MODEL)


def _memory(results: Mapping[str, Any]) -> str:
    return f"{results['peak_memory_mib']:.0f} MiB ({results['memory_before_mib']:.0f} MiB)"


def _in_own_process(work: Any, *arguments: Any) -> dict[str, float]:
    """Measure in a fresh process, so that one measurement does not warm up the next."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured: dict[str, float] = pool.apply(work, arguments)
    return measured
