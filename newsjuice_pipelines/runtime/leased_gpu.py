"""The GPU of a step: leased before CUDA starts, then the only one that its process sees; the CPU where there is none.

How leases are kept is `gpu_leases.py`; what a device can do is `devices.py`.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime import gpu_leases, provenance
from newsjuice_pipelines.runtime.devices import Device, best_device
from newsjuice_pipelines.runtime.gpu_leases import POLL_S, lease_gpus

logger = logging.getLogger("newsjuice.devices")

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and that of the Windows subsystem for Linux
SMI_TIMEOUT_S = 30


def lease_in(folder: Path | None) -> None:
    """Keep the leases of this process in another folder (None: the usual one); containers that share GPUs must share it."""
    _process.folder = folder


@contextmanager
def leased_gpu(what: str, *, first: bool = False, poll_s: float = POLL_S) -> Iterator[Device]:
    """A GPU for this process alone among all that ask here, or the CPU where there is none; waits while all are taken.

    Where CUDA has not started yet, the leased GPU becomes the only one that it will ever show to this process. Where it runs
    already (the second GPU step of an in-process run), the lease is on one of those it shows, and `cuda` means that one within
    the block. Within a block, further calls in the same process share its GPU.

    Args:
        what: what it is wanted for, for the log and for those who wait.
        first: where CUDA runs already, take the first GPU that it shows: for libraries that choose that one by themselves.
        poll_s: seconds between two looks while all are taken.
    """
    device = _process.enter(what, first, poll_s)
    try:
        with _current(device):
            yield device
    finally:
        _process.leave()


@contextmanager
def leased_gpus(what: str, count: int, *, poll_s: float = POLL_S) -> Iterator[tuple[str, ...]]:
    """`count` GPUs, all at once, for processes that are started within the block; none (and no wait) where there is no GPU.

    CUDA does not start in this process. The names go into the processes' `CUDA_VISIBLE_DEVICES`.
    """
    gpus = listed_gpus() or _gpus_of_cuda_if_any()
    if not gpus:
        _process.say_cpu(what)
        yield ()
        return
    with lease_gpus(_process.where(), gpus, what, count=count, poll_s=poll_s) as names:
        yield names


def count_gpus() -> int:
    """How many GPUs processes that are started now would see together; CUDA does not start in this one."""
    import torch

    listed = len(listed_gpus()) if torch.backends.cuda.is_built() else 0
    return listed or int(torch.cuda.device_count())


def listed_gpus() -> list[str]:
    """The lasting names (UUIDs) of the NVIDIA GPUs that `CUDA_VISIBLE_DEVICES` leaves, in its order; no library is loaded.

    Numbers in that variable count in the order of `nvidia-smi`. As in CUDA, what follows an entry that names nothing is lost.
    """
    names = _driver_gpus()
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        return names
    left: list[str] = []
    for entry in map(str.strip, chosen.split(",")):
        if entry.startswith("MIG-"):
            name: str | None = entry
        elif entry.isdecimal():
            name = names[int(entry)] if int(entry) < len(names) else None
        else:
            name = next((name for name in names if entry.startswith("GPU-") and name.startswith(entry)), None)
        if name is None:
            break
        left.append(name)
    return left


def gpus_of_cuda() -> list[str]:
    """The lasting name of each GPU that CUDA shows to this process, by its number here. Starts CUDA."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(torch.cuda.device_count())]


class _ProcessLease:
    """The one lease that all users in this process share, and how many they are."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._lock = threading.Lock()
        self._users = 0
        self._device: Device | None = None
        self._lease = ExitStack()
        self._cpu_was_said = False

    def where(self) -> Path:
        """The folder of the leases."""
        return self.folder or gpu_leases.default_folder()

    def enter(self, what: str, first: bool, poll_s: float) -> Device:
        """Count one more user; the first of them leases."""
        with self._lock:
            if self._device is None or not self._users:
                try:
                    self._device = self._open(what, first, poll_s)
                except BaseException:
                    self._lease.close()
                    raise
            self._users += 1
            return self._device

    def leave(self) -> None:
        """Count one less; the last of them gives the lease back."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._lease.close()

    def say_cpu(self, what: str) -> None:
        """Say, once a process, that there is no GPU."""
        if not self._cpu_was_said:
            self._cpu_was_said = True
            logger.info("%s: there is no GPU here, so it runs on the CPU", what)

    def _open(self, what: str, first: bool, poll_s: float) -> Device:
        """Lease one GPU, let CUDA start on it alone if it has not started, and say which number it has."""
        running = cuda_is_running()
        gpus = [] if running else listed_gpus()
        if not gpus:  # CUDA runs, or only it can tell
            gpus, running = _gpus_of_cuda_if_any(), True
        if not gpus:
            self.say_cpu(what)
            return best_device()
        (name,) = self._choose(gpus[:1] if first and running else gpus, what, poll_s)
        if running:
            return best_device(gpus.index(name))
        self._lease.enter_context(_only_visible(name))
        seen = gpus_of_cuda()
        if not seen:
            self._lease.close()
            logger.warning("%s: on the CPU, since PyTorch cannot use the GPU %s (a build for CPUs, an old driver)", what, name)
            return best_device()
        if name.startswith("MIG-") and len(seen) == 1:  # a part of a GPU, which PyTorch calls otherwise
            return best_device(0)
        if name not in seen:  # CUDA had started already, unknown to PyTorch
            self._lease.close()
            (name,) = self._choose(seen[:1] if first else seen, what, poll_s)
        return best_device(seen.index(name))

    def _choose(self, gpus: list[str], what: str, poll_s: float) -> tuple[str, ...]:
        return self._lease.enter_context(lease_gpus(self.where(), gpus, what, poll_s=poll_s))


_process = _ProcessLease()


def cuda_is_running() -> bool:
    """Whether PyTorch has started CUDA in this process, which fixes the GPUs that it sees."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _gpus_of_cuda_if_any() -> list[str]:
    """The GPUs that CUDA shows; it is not even asked where no driver is, since PyTorch takes seconds to import."""
    may_be = sys.platform != "linux" or any(Path(file).exists() for file in DRIVER_FILES)
    return gpus_of_cuda() if may_be or cuda_is_running() else []


def _driver_gpus() -> list[str]:
    """UUIDs of the machine's NVIDIA GPUs as the driver lists them, or `nvidia-smi` where it does not; none without a driver."""
    found = [_uuid(file.read_text(encoding="utf-8")) for file in sorted(provenance.NVIDIA_DEVICES.glob("*/information"))]
    known = [name for name in found if name is not None]
    return known if known and len(known) == len(found) else _smi_gpus()


def _uuid(information: str) -> str | None:
    """The UUID in the driver's description of a GPU; None while it has not looked (question marks)."""
    fields = dict(line.split(":", 1) for line in information.splitlines() if ":" in line)
    name = fields.get("GPU UUID", "").strip()
    return name if name and "?" not in name else None


def _smi_gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.startswith("GPU-")]


@contextmanager
def _only_visible(name: str) -> Iterator[None]:
    """Let CUDA, if it starts within the block, show this GPU alone; processes started later see all again."""
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


def _current(device: Device) -> AbstractContextManager[Any]:
    """What makes a GPU the one that `cuda` means; nothing on a CPU."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    current: AbstractContextManager[Any] = torch.cuda.device(device.index)
    return current
