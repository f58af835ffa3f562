"""What one process of `orchestration.py` does: a home with its storage, trivial runs in it, and a backfill by a real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.orchestration_definitions import STEPS

MODULE = "newsjuice_pipelines.benchmarks.orchestration_definitions"
STEP_JOBS: Mapping[str, str] = {"in_one_process": "all in one process", "a_process_a_step": "a process each"}
LONGEST_BACKFILL_S = 1800.0
# What the web UI asks for when a person opens its pages.
QUERIES: Mapping[str, str] = {
    "list of runs": "{ runsOrError(limit: 30) { ... on Runs { results { runId status pipelineName startTime endTime tags "
    "{ key value } } } } }",
    "asset graph": "{ assetNodes { id assetKey { path } groupName isPartitioned dependencyKeys { path } "
    "assetMaterializations(limit: 1) { timestamp runId } } }",
    "partitions of an asset": '{ assetNodeOrError(assetKey: {path: ["result"]}) { ... on AssetNode { partitionStats '
    '{ numMaterialized numPartitions numFailed } latestRunForPartition(partition: "2025-03-01") { runId status } } } }',
    "history of an asset": '{ assetOrError(assetKey: {path: ["result"]}) { ... on Asset { assetMaterializations(limit: 100) '
    "{ timestamp runId partition metadataEntries { label } } } } }",
}


def write_home(home: Path, postgres: str | None) -> None:
    """A Dagster home on SQLite or PostgreSQL, two runs at once."""
    import yaml

    config: dict[str, Any] = {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "concurrency": {"runs": {"max_concurrent_runs": 2}},
    }
    if postgres is not None:
        config["storage"] = {"postgres": {"postgres_url": postgres}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def measure_steps(home: Path, job: str) -> dict[str, float]:
    """One run of `STEPS` steps without work: its seconds, also a step."""
    import dagster as dg

    os.environ["DAGSTER_HOME"] = str(home)
    with dg.DagsterInstance.get() as instance:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dagster", "job", "execute", "-m", MODULE, "-j", job],
            check=True,
            capture_output=True,
            env=_environment(home),
            cwd=home,
        )
        whole_s = time.perf_counter() - started
        [record] = instance.get_run_records(limit=1)
        assert record.start_time is not None
        assert record.end_time is not None
        run_s = record.end_time - record.start_time
    return {"command_s": whole_s, "run_s": run_s, "step_s": run_s / STEPS}


def run_days(home: Path, first: int, count: int) -> dict[str, float]:
    """Make `count` days, one run a day, in this process."""
    import logging

    import dagster as dg

    from newsjuice_pipelines.benchmarks.orchestration_definitions import days, defs

    os.environ["DAGSTER_HOME"] = str(home)
    logging.disable(logging.INFO)
    job = defs.resolve_job_def("by_day")
    keys = days.get_partition_keys()[first : first + count]
    with dg.DagsterInstance.get() as instance:
        started = time.perf_counter()
        for key in keys:
            job.execute_in_process(partition_key=key, instance=instance)
        seconds = time.perf_counter() - started
        made = len(instance.get_materialized_partitions(dg.AssetKey("result")))
    assert made >= count, f"{made} of {count} days were made"
    return {"days": count, "seconds": seconds}


def backfill_by_daemon(home: Path, count: int) -> dict[str, float]:
    """A backfill of `count` days, as the command line starts it: daemon, queue, a process a run.

    Raises:
        RuntimeError: it did not end within half an hour, or a run failed.
    """
    import dagster as dg

    from newsjuice_pipelines.benchmarks.orchestration_definitions import days

    keys = days.get_partition_keys()[-count:]
    os.environ["DAGSTER_HOME"] = str(home)
    with serving([sys.executable, "-m", "dagster._daemon", "run", "-m", MODULE], home), dg.DagsterInstance.get() as instance:
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "dagster",
                "job",
                "backfill",
                "-m",
                MODULE,
                "-j",
                "by_day",
                "--noprompt",
                "--partitions",
                ",".join(keys),
            ],
            check=True,
            capture_output=True,
            env=_environment(home),
            cwd=home,
        )
        [backfill] = instance.get_backfills(limit=1)
        tags = {"dagster/backfill": backfill.backfill_id}
        while (done := instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], tags=tags))) < count:
            if instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=tags)):
                raise RuntimeError("a run of the backfill failed")
            if time.perf_counter() - started > LONGEST_BACKFILL_S:
                raise RuntimeError(f"{done} of {count} runs ended within {LONGEST_BACKFILL_S:.0f} s")
            time.sleep(0.2)
        return {"days": count, "seconds": time.perf_counter() - started}


@contextmanager
def serving(command: list[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process of Dagster; it and its children end with the block."""
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=_environment(home), cwd=home, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "DAGSTER_HOME": str(home), "PYTHONWARNINGS": "ignore"}
