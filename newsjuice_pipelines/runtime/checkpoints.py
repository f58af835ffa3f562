"""Training checkpoints in a scratch folder: which one a run that was cut off can go on from."""

from __future__ import annotations

import json
from pathlib import Path

_PREFIX = "checkpoint-"


def last_whole_checkpoint(scratch: Path) -> Path | None:
    """The newest `checkpoint-<step>` of the Hugging Face trainer that was written to its end; None without one.

    Nothing is deleted: the trainer writes over a half-written checkpoint when it comes to that step again.
    """
    whole = [
        (step, folder) for folder in scratch.glob(f"{_PREFIX}*") if (step := _step(folder)) is not None and _is_whole(folder)
    ]
    return max(whole)[1] if whole else None


def _step(folder: Path) -> int | None:
    digits = folder.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdecimal() else None


def _is_whole(folder: Path) -> bool:
    """The trainer writes its state after weights and optimiser; a kill may still leave it half written."""
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "optimizer.pt").is_file() and any(folder.glob("*.safetensors"))
