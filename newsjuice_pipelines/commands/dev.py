"""`newsjuice dev`: the Dagster web UI and daemon on the same database and storage as `newsjuice run`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING

from newsjuice_pipelines.runtime.provenance import visible_gpus

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings


class PortTaken(RuntimeError):
    """Something else listens on the port of the web UI."""


def dev(settings: Settings, host: str, port: int) -> int:
    """Serve until interrupted; returns the exit status of `dagster dev`.

    Raises:
        PortTaken: the port is in use; the message says how to choose another.
    """
    from newsjuice_pipelines.resources.postgres import embedded_url

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(f"port {port} on {host} cannot be used ({error.strerror}): choose another with --port.") from None
    database = "NEWSJUICE_DATABASE_URL"
    if settings.articles_are_embedded:
        embedded_url(settings)  # this process holds the server open until it ends
        database = f"embedded PostgreSQL in {settings.home / 'postgres'}"
    gpus = visible_gpus()
    if gpus > 1:
        _open_gpu_pool(gpus)
    print(f"Web UI:    http://{host}:{port}\nDatabase:  {database}\nStorage:   {os.environ['DAGSTER_HOME']}", flush=True)
    print("Stop with Ctrl-C.", flush=True)
    command = [sys.executable, "-m", "dagster", "dev", "-m", "newsjuice_pipelines.definitions", "-h", host, "-p", str(port)]
    server: subprocess.Popen[bytes] | None = None

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if server is not None:
            server.send_signal(signal.SIGINT)

    # Before the child starts: in the background of a shell SIGINT is ignored, a child would inherit that and never stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # In Dagster's home: elsewhere it would warn of a dagster.yaml that it does not use.
    server = subprocess.Popen(command, start_new_session=True, cwd=os.environ["DAGSTER_HOME"])
    return server.wait()


def _open_gpu_pool(gpus: int) -> None:
    """Let as many GPU steps run at once as there are devices, so that a backfill of all models uses them all."""
    import dagster as dg

    from newsjuice_pipelines.automation.op_tags import GPU_POOL

    with dg.DagsterInstance.get() as instance:
        instance.event_log_storage.set_concurrency_slots(GPU_POOL, gpus)
