"""How fast the web server answers what its pages ask for, over the runs that a home's storage holds."""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.orchestration_runs import MODULE, QUERIES, serving

START_S = 120.0


def web_answers(home: Path, requests: int) -> dict[str, Any]:
    """Ask a web server of its own for each page `requests` times.

    Returns:
        `runs` in the storage, `queries` (`median_ms` and `slowest_ms` of each), `memory_mib` of the server's process.

    Raises:
        RuntimeError: the server does not start, or answers with an error.
    """
    import os

    import dagster as dg
    import psutil

    os.environ["DAGSTER_HOME"] = str(home)
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs_count()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "dagster_webserver", "-m", MODULE, "-h", "127.0.0.1", "-p", str(port)]
    with serving(command, home) as server:
        _wait_for(address)
        measured = {name: _timed(address, query, requests) for name, query in QUERIES.items()}
        memory_mib = psutil.Process(server.pid).memory_info().rss / 2**20
    return {"runs": runs, "queries": measured, "memory_mib": memory_mib}


def _timed(address: str, query: str, requests: int) -> dict[str, float]:
    _ask(address, query)
    took = []
    for _ in range(requests):
        started = time.perf_counter()
        _ask(address, query)
        took.append((time.perf_counter() - started) * 1000)
    return {"median_ms": statistics.median(took), "slowest_ms": max(took)}


def _ask(address: str, query: str) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{address}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        answer: dict[str, Any] = json.load(reply)
    if answer.get("errors"):
        raise RuntimeError(f"the web server answered {answer['errors'][0]['message']}")
    return answer


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            _ask(address, "{ version }")
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no web server at {address} after {START_S:.0f} s") from None
            time.sleep(0.3)
