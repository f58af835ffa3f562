"""Which device and number format this machine should use."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A compute device as PyTorch names it (`cpu` or `cuda`), its hardware name, and the best training dtype."""

    type: str
    name: str
    dtype: str
    memory_gib: float | None = None


def best_device() -> Device:
    """The first CUDA device when there is one, else the CPU; bf16 where the hardware computes in it, fp16 on older GPUs."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return Device("cuda", properties.name, dtype, properties.total_memory / 2**30)
    return Device("cpu", f"{os.cpu_count()} CPU cores", "float32")
