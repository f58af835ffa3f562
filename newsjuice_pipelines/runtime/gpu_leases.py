"""Which process holds which GPU: leases in files, with an owner and an expiry, that any number of processes may ask for at once.

Nothing here knows of CUDA or PyTorch; the GPU of a step is `leased_gpu.py`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from newsjuice_pipelines.runtime.progress import format_duration

logger = logging.getLogger("newsjuice.devices")

LEASE_S = 120.0  # how long a lease outlives its last renewal, where its owner's process cannot be looked at
RENEW_S = 20.0
NEWS_S = 60.0  # between two lines about waiting
POLL_S = 2.0


@dataclass(frozen=True)
class Lease:
    """One GPU in the hands of one process, as its file says. Times are seconds since 1970."""

    gpu: str
    token: str
    what: str
    pid: int
    process_start: str
    host: str
    since: float
    expires: float

    def is_in_force(self, now: float) -> bool:
        """Whether its owner still holds the GPU.

        Where its process can be looked at, that decides: a dead owner holds nothing, and a living one, however late with its
        renewals, still has its memory on the GPU. Of an owner elsewhere (another container, say) only the expiry is known.
        """
        if self.host == this_host():
            return _is_alive(self.pid, self.process_start)
        return self.expires > now

    def __str__(self) -> str:
        held = format_duration(max(0.0, time.time() - self.since))
        return f"{self.gpu}: {self.what}, process {self.pid} on {self.host.partition('/')[0]}, for {held}"


def default_folder() -> Path:
    """Where leases are unless a folder is named: one a user, since what one creates in a shared folder another may not open."""
    return Path(tempfile.gettempdir()) / f"newsjuice-gpus-{os.getuid() if hasattr(os, 'getuid') else 'all'}"


@contextmanager
def lease_gpus(
    folder: Path, gpus: Sequence[str], what: str, *, count: int = 1, poll_s: float = POLL_S
) -> Iterator[tuple[str, ...]]:
    """Hold `count` of these GPUs, all at once, for the time of the block; waits until so many are free, and says so.

    The leases are renewed by a thread. They end with the block, or with the process, however that ends.

    Args:
        folder: where the lease files of this machine are; made when it is missing.
        gpus: lasting names (UUIDs) of the GPUs to choose from, best first.
        what: what they are wanted for, for those who wait.
        count: how many are wanted; nobody waits for the second while holding the first.
        poll_s: seconds between two looks.

    Raises:
        ValueError: more are wanted than there are.
    """
    if count > len(gpus):
        raise ValueError(f"{count} GPUs are wanted for {what}, and there are {len(gpus)}.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    leases = _wait_for(folder, gpus, what, count, poll_s)
    ended = threading.Event()
    renewing = threading.Thread(target=_keep_renewing, args=(folder, leases, ended), name="gpu-lease", daemon=True)
    renewing.start()
    try:
        yield tuple(lease.gpu for lease in leases)
    finally:
        ended.set()
        renewing.join()
        release(folder, leases)


def take(folder: Path, gpus: Sequence[str], what: str, count: int = 1) -> list[Lease]:
    """Lease `count` of these GPUs if so many are free now; none otherwise. Never waits."""
    now = time.time()
    pid = os.getpid()
    mine = Lease("", uuid.uuid4().hex, what, pid, _process_start(pid) or "", this_host(), now, now + LEASE_S)
    with _exclusive(folder):
        free = [gpu for gpu in gpus if not _is_held(folder, gpu, now)][:count]
        if len(free) < count:
            return []
        leases = [replace(mine, gpu=gpu) for gpu in free]
        for lease in leases:
            _write(folder, lease)
    return leases


def renew(folder: Path, leases: Sequence[Lease]) -> list[str]:
    """Put off the expiry of these leases; returns the GPUs whose lease somebody else has taken over."""
    lost = []
    with _exclusive(folder):
        for lease in leases:
            found = _read(folder, lease.gpu)
            if found is not None and found.token != lease.token:
                lost.append(lease.gpu)
            else:
                _write(folder, replace(lease, expires=time.time() + LEASE_S))
    return lost


def release(folder: Path, leases: Sequence[Lease]) -> None:
    """Give these leases back; one that somebody else has taken over is left alone."""
    with _exclusive(folder):
        for lease in leases:
            found = _read(folder, lease.gpu)
            if found is not None and found.token == lease.token:
                _file(folder, lease.gpu).unlink(missing_ok=True)


def holders(folder: Path, gpus: Sequence[str]) -> list[Lease]:
    """The leases on these GPUs that are in force."""
    now = time.time()
    with _exclusive(folder):
        found = [_read(folder, gpu) for gpu in gpus]
    return [lease for lease in found if lease is not None and lease.is_in_force(now)]


@lru_cache(maxsize=1)
def this_host() -> str:
    """This machine and the part of it whose processes can be looked at from here: containers share neither name nor numbers."""
    try:
        processes = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        processes = ""
    return f"{socket.gethostname()}/{processes}"


def _wait_for(folder: Path, gpus: Sequence[str], what: str, count: int, poll_s: float) -> list[Lease]:
    started, told = time.monotonic(), float("-inf")
    while not (leases := take(folder, gpus, what, count)):
        now = time.monotonic()
        if now - told >= NEWS_S:
            told = now
            wanted = "a GPU" if count == 1 else f"{count} GPUs"
            held = "; ".join(map(str, holders(folder, gpus)))
            logger.info("%s: waiting for %s, %s so far (held: %s)", what, wanted, format_duration(now - started), held)
        time.sleep(poll_s)
    waited = time.monotonic() - started
    logger.info("%s: leased %s%s", what, ", ".join(lease.gpu for lease in leases), _after(waited))
    return leases


def _after(waited_s: float) -> str:
    return f" after waiting {format_duration(waited_s)}" if waited_s >= 1 else ""


def _keep_renewing(folder: Path, leases: Sequence[Lease], ended: threading.Event) -> None:
    told = False
    while not ended.wait(RENEW_S):
        try:
            lost = renew(folder, leases)
        except OSError as error:  # a full disk, say; the next renewal may go well
            logger.warning("the lease of %s could not be renewed: %s", leases[0].gpu, error)
            continue
        if lost and not told:
            told = True
            logger.warning(
                "the lease of %s expired while this process was held up, and somebody else has it: two steps now share that GPU",
                ", ".join(lost),
            )


def _is_held(folder: Path, gpu: str, now: float) -> bool:
    file = _file(folder, gpu)
    lease = _read(folder, gpu)
    if lease is not None:
        return lease.is_in_force(now)
    try:
        return file.stat().st_mtime + LEASE_S > now  # unreadable: its owner is unknown, so only time frees it
    except OSError:
        return False


def _read(folder: Path, gpu: str) -> Lease | None:
    """The lease of a GPU, in force or not; None where there is none, or none that can be read."""
    try:
        return Lease(**json.loads(_file(folder, gpu).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(folder: Path, lease: Lease) -> None:
    """Write a lease in one step, so that a kill at any moment leaves a whole one or none."""
    file = _file(folder, lease.gpu)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(lease), indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def _file(folder: Path, gpu: str) -> Path:
    return folder / f"{gpu.replace('/', '_')}.lease"


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """The time in which only this process reads and writes lease files; the system ends it when the process dies."""
    from filelock import FileLock

    with FileLock(folder / "leases.lock", mode=0o666).acquire(poll_interval=0.005):  # the mode: several users may share it
        yield


def _is_alive(pid: int, process_start: str) -> bool:
    """Whether this very process still runs; another one that was given the same number later does not count."""
    import psutil

    if not psutil.pid_exists(pid):
        return False
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # over, though its parent has not noticed
            return False
    except psutil.NoSuchProcess:
        return psutil.pid_exists(pid)  # hidden from this user, or ended just now
    started = _process_start(pid)
    return started is None or started == process_start


def _process_start(pid: int) -> str | None:
    """When a process started, in units of its system that no change of the clock touches; None where that cannot be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    import psutil

    try:
        return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC).isoformat(timespec="seconds")
    except psutil.Error:
        return None
