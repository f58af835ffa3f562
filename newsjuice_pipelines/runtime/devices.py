"""Which device and number format this machine should use, how much memory is left on it, and what says that none is left."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")
# Whether training in bf16 beats fp32 on processors that compute in it (AMX, AVX512-BF16).
BFLOAT16_PAYS_ON_CPU = False
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")


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


def best_device(index: int | None = None) -> Device:
    """The CUDA device `index` (None: the one that `cuda` means now) when there is one, else the CPU.

    It computes in bf16 where the hardware does, in fp16 on older GPUs.
    """
    import torch

    if torch.cuda.is_available():
        index = torch.cuda.current_device() if index is None else index
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


def free_memory_bytes(device: str, index: int | None = None) -> int:
    """Memory that can still be taken: of a CUDA device, or of this machine within its container's limit.

    The device is `index`, or the one that `cuda` means (None). File pages that the container has not used lately count as free:
    the system gives them up before it runs out.
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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that the memory of the device, a GPU or this machine, has run out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def free_unused_memory() -> None:
    """Give back what a failed computation has left behind; call it outside of `except`, whose traceback keeps tensors alive."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
