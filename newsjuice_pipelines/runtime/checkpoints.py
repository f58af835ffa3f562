"""Training checkpoints in a scratch folder: which one a run that was cut off can go on from."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.provenance import canonical_json

logger = logging.getLogger("newsjuice.checkpoints")

RUN_RECORD = "run.json"
_PREFIX = "checkpoint-"


def last_whole_checkpoint(scratch: Path) -> Path | None:
    """The newest `checkpoint-<step>` of the Hugging Face trainer that was written to its end; None without one.

    Nothing is deleted: the trainer writes over a half-written checkpoint when it comes to that step again.
    """
    whole = [(step, folder) for step, folder in _checkpoints(scratch) if _is_whole(folder)]
    return max(whole)[1] if whole else None


def start_fresh_unless_same(scratch: Path, run: Mapping[str, Any]) -> None:
    """Delete the checkpoints of another run, and record in `run.json` which run the folder belongs to.

    Args:
        scratch: an existing folder.
        run: what decides the run (configuration, data, base), as JSON values by name.
    """
    record = scratch / RUN_RECORD
    found = _checkpoints(scratch)
    if found:
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        other = [name for name in run if canonical_json(before.get(name)) != canonical_json(run[name])]
        if not other:
            return
        logger.info("starting fresh: the %d checkpoints in scratch are of a run with another %s", len(found), ", ".join(other))
        for _, folder in found:
            shutil.rmtree(folder)
    record.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def _checkpoints(scratch: Path) -> list[tuple[int, Path]]:
    return [(step, folder) for folder in scratch.glob(f"{_PREFIX}*") if (step := _step(folder)) is not None]


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
