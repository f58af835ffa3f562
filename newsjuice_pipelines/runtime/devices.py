"""Which device and number format this machine should use, and how much memory is left on it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.progress import format_duration

logger = logging.getLogger("newsjuice.devices")

CLAIM_NEWS_S = 60.0  # between two lines about waiting for a GPU

CGROUP = Path("/sys/fs/cgroup")
# Whether training in bf16 beats fp32 on processors that compute in it (AMX, AVX512-BF16).
BFLOAT16_PAYS_ON_CPU = False


@dataclass(frozen=True)
class Device:
    """A compute device as PyTorch names it (`cpu` or `cuda`), its hardware name, and the best training dtype.

    `index` is the number of a CUDA device among those that this process sees.
    """

    type: str
    name: str
    dtype: str
    memory_gib: float | None = None
    index: int = 0

    @property
    def torch_name(self) -> str:
        """The device for PyTorch's `to`: `cpu` or `cuda:1`."""
        return f"{self.type}:{self.index}" if self.type == "cuda" else self.type


def best_device(index: int = 0) -> Device:
    """The CUDA device `index` when there is one, else the CPU; bf16 where the hardware computes in it, fp16 on older GPUs."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return Device("cuda", properties.name, dtype, properties.total_memory / 2**30, index)
    dtype = "bfloat16" if BFLOAT16_PAYS_ON_CPU and cpu_computes_in_bfloat16() else "float32"
    return Device("cpu", f"{os.cpu_count()} CPU cores", dtype)


def cpu_computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for bf16 products (AMX or AVX512-BF16), so that they are not emulated."""
    import torch

    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))


def free_memory_bytes(device: str, index: int = 0) -> int:
    """Memory that can still be taken: of the CUDA device `index`, or of this machine within its container's limit.

    File pages that the container has not used lately count as free: the system gives them up before it runs out.
    """
    if device == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info(index)[0]
        return free
    import psutil

    available: int = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii")) - _reclaimable_bytes()
    except (OSError, ValueError):  # not Linux, or no container
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def _reclaimable_bytes() -> int:
    """Page cache of this container that nothing has used lately; 0 where the system does not say."""
    try:
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def reset_peak_memory(device: str) -> None:
    """Let `peak_memory_mib` speak of what comes from here on; the resident peak of a process on the CPU cannot be reset."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory_mib(device: str) -> int:
    """The most memory this process has held: allocated on the CUDA device since the last reset, or resident on the CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated() / 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10  # bytes there, KiB on Linux


def gpu_ids() -> list[str]:
    """A lasting name (its UUID) of each CUDA device that this process sees, whatever number it has here; none without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


@contextmanager
def claimed_gpu(poll_s: float = 2.0) -> Iterator[Device]:
    """A CUDA device for this process alone among those that ask here, or the CPU where there is none.

    Parallel steps of a backfill so get different GPUs. Who comes when all are taken waits, and says so. A claim is a locked
    file in the temporary folder: it ends with the block, or with the process, however that ends. Claims do not nest.
    """
    gpus = gpu_ids()
    if not gpus:
        yield best_device()
        return
    with ExitStack() as claims:
        index = _claim_one(gpus, claims, poll_s)
        claims.enter_context(_current_gpu(index))
        yield best_device(index)


def _claim_one(gpus: list[str], claims: ExitStack, poll_s: float) -> int:
    """The first device that nobody holds; its lock goes into `claims`."""
    from filelock import FileLock, Timeout

    # A folder for each user: what one user creates in a shared temporary folder another may not open.
    folder = Path(tempfile.gettempdir()) / f"newsjuice-gpus-{os.getuid() if hasattr(os, 'getuid') else 'all'}"
    folder.mkdir(mode=0o700, exist_ok=True)
    started, told = time.monotonic(), float("-inf")
    while True:
        for index, gpu in enumerate(gpus):
            with suppress(Timeout):
                claims.enter_context(FileLock(folder / f"{gpu}.lock", timeout=0))
                return index
        now = time.monotonic()
        if now - told >= CLAIM_NEWS_S:
            told = now
            waited = format_duration(now - started)
            logger.info("waiting for a GPU: other steps hold all %d (locks in %s), %s so far", len(gpus), folder, waited)
        time.sleep(poll_s)


def _current_gpu(index: int) -> AbstractContextManager[Any]:
    """What makes a CUDA device the one that `cuda` means."""
    import torch

    current: AbstractContextManager[Any] = torch.cuda.device(index)
    return current
