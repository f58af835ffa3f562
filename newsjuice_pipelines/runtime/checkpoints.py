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
_STATE = "trainer_state.json"


def last_whole_checkpoint(scratch: Path, processes: int = 1) -> Path | None:
    """The newest `checkpoint-<step>` of the Hugging Face trainer that was written to its end; None without one.

    Nothing is deleted: the trainer writes over a half-written checkpoint when it comes to that step again.

    Args:
        scratch: where the checkpoints are.
        processes: how many go on from it; each needs the state of its own random numbers.
    """
    whole = [(step, folder) for step, folder in _checkpoints(scratch) if _is_whole(folder, processes)]
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


def _is_whole(folder: Path, processes: int) -> bool:
    """The trainer writes its state after weights and optimiser; a kill may still leave it half written.

    The first process writes it, and does not wait until the others have written their random numbers.
    """
    try:
        json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ranks = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all((folder / name).is_file() for name in ("optimizer.pt", *ranks)) and any(folder.glob("*.safetensors"))


def repoint_best_checkpoint(scratch: Path, checkpoint: Path) -> None:
    """Let the state in `checkpoint` name its best checkpoint by where it is now, in `scratch`, which may have been moved.

    The trainer keeps that checkpoint's whole path, and gives up the best weights when it leads nowhere.
    """
    file = checkpoint / _STATE
    state = json.loads(file.read_text(encoding="utf-8"))
    recorded = state.get("best_model_checkpoint")
    if recorded is None:
        return
    here = scratch / Path(recorded).name
    if str(here) != recorded and here.is_dir():
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({**state, "best_model_checkpoint": str(here)}, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)  # in one step: a half-written state would cost the checkpoint
