"""What Dagster itself costs here: loading the definitions, a step, a year of partitions, and the web UI over many runs.

On SQLite, as on a laptop, and on PostgreSQL, as in production. What one process measures is `orchestration_runs.py`.
"""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.machine import embedded_database, in_own_process, machine
from newsjuice_pipelines.benchmarks.orchestration_definitions import DAYS
from newsjuice_pipelines.benchmarks.orchestration_runs import (
    QUERIES,
    STEP_JOBS,
    backfill_by_daemon,
    measure_steps,
    run_days,
    write_home,
)
from newsjuice_pipelines.benchmarks.orchestration_web import web_answers
from newsjuice_pipelines.runtime.reports import markdown_table

logger = logging.getLogger("newsjuice.benchmarks")

STORAGES = ("SQLite", "PostgreSQL")
LIBRARIES = (
    "torch",
    "transformers",
    "pandas",
    "sklearn",
    "google.cloud",
    "google.genai",
)  # none of them may be loaded with the definitions
LOADING = (
    "import sys, time; start = time.perf_counter(); import newsjuice_pipelines.definitions; "
    "print(time.perf_counter() - start, *(name for name in sys.argv[1:] if name in sys.modules))"
)


def run(
    *,
    repeats: int = 5,
    days: int = DAYS,
    queued_days: int = 20,
    stored_runs: int = 1000,
    requests: int = 20,
    storages: Sequence[str] = STORAGES,
) -> dict[str, Any]:
    """Measure all of it, each storage in a home of its own that is thrown away.

    Args:
        repeats: cold processes that load the definitions.
        days: partitions of the two assets that are made one run a day, without queue and daemon.
        queued_days: days that a real backfill makes: by daemon, queue, and a process a run.
        stored_runs: runs that the storage holds while the web server is asked.
        requests: of each page.
        storages: any of `SQLite` and `PostgreSQL`.
    """
    results: dict[str, Any] = {"machine": machine(), "repeats": repeats, "definitions": _loading(repeats), "storages": {}}
    for name in storages:
        with tempfile.TemporaryDirectory(prefix="njo", dir="/tmp") as folder:
            if name == "PostgreSQL":
                with embedded_database() as url:
                    results["storages"][name] = _measure(Path(folder), url, days, queued_days, stored_runs, requests)
            else:
                results["storages"][name] = _measure(Path(folder), None, days, queued_days, stored_runs, requests)
    return results


def _loading(repeats: int) -> dict[str, Any]:
    """Seconds that a cold process takes to import the definitions, and heavy libraries that came with them."""
    found = []
    for _ in range(repeats):
        command = [sys.executable, "-W", "ignore", "-c", LOADING, *LIBRARIES]
        found.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    seconds = [float(line[0]) for line in found]
    logger.info("orchestration: definitions load in %.2f s", statistics.median(seconds))
    return {"seconds": seconds, "median_s": statistics.median(seconds), "heavy_libraries": found[0][1:]}


def _measure(folder: Path, postgres: str | None, days: int, queued_days: int, stored_runs: int, requests: int) -> dict[str, Any]:
    home = folder / "home"
    home.mkdir()
    write_home(home, postgres)
    name = "PostgreSQL" if postgres else "SQLite"
    steps = {job: in_own_process(measure_steps, home, job) for job in STEP_JOBS}
    logger.info("orchestration, %s: a step takes %s s", name, {job: round(found["step_s"], 2) for job, found in steps.items()})
    backfill = in_own_process(run_days, home, 0, days)
    logger.info("orchestration, %s: %d days in %.0f s", name, days, backfill["seconds"])
    queued = backfill_by_daemon(home, queued_days)
    logger.info("orchestration, %s: %d queued days in %.0f s", name, queued_days, queued["seconds"])
    missing = max(0, stored_runs - days - queued_days - len(STEP_JOBS))
    for first in range(0, missing, DAYS):
        in_own_process(run_days, home, 0, min(DAYS, missing - first))
    started = time.perf_counter()
    answers = web_answers(home, requests)
    logger.info("orchestration, %s: web server asked for %.0f s", name, time.perf_counter() - started)
    return {"steps": steps, "days": backfill, "queued_days": queued, "web": answers}


def table(results: Mapping[str, Any]) -> str:
    """The figures of `run` as Markdown."""
    loading = results["definitions"]
    heavy = ", ".join(loading["heavy_libraries"]) or "none of " + ", ".join(LIBRARIES)
    measured = results["storages"]
    first = next(iter(measured.values()))
    rows: list[tuple[Any, ...]] = [
        *(
            (f"a step, {title} (s)", *(found["steps"][job]["step_s"] for found in measured.values()))
            for job, title in STEP_JOBS.items()
        ),
        (
            f"{first['days']['days']} days x 2 assets, one run a day, in one process (s)",
            *(found["days"]["seconds"] for found in measured.values()),
        ),
        ("… a run (s)", *(found["days"]["seconds"] / found["days"]["days"] for found in measured.values())),
        (
            f"{first['queued_days']['days']} days by backfill, daemon, queue and a process a run (s)",
            *(found["queued_days"]["seconds"] for found in measured.values()),
        ),
        ("… a run (s)", *(found["queued_days"]["seconds"] / found["queued_days"]["days"] for found in measured.values())),
        ("runs in the storage while the web server is asked", *(found["web"]["runs"] for found in measured.values())),
        *(
            (f"{query}, median and slowest (ms)", *(_milliseconds(found["web"]["queries"][query]) for found in measured.values()))
            for query in QUERIES
        ),
        ("memory of the web server (MiB)", *(found["web"]["memory_mib"] for found in measured.values())),
    ]
    note = (
        f"Definitions load in {loading['median_s']:.2f} s (median of {results['repeats']} cold processes: "
        f"{min(loading['seconds']):.2f} to {max(loading['seconds']):.2f}); of the heavy libraries they bring {heavy}."
    )
    return note + "\n\n" + markdown_table(("", *measured), rows)


def _milliseconds(found: Mapping[str, float]) -> str:
    return f"{found['median_ms']:,.0f}, {found['slowest_ms']:,.0f}"
