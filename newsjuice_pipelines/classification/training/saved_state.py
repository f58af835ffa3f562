"""What a training leaves in its scratch folder: the best weights so far, and a state from which it goes on after a crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint
from newsjuice_pipelines.runtime.reports import write_json

WEIGHTS = "model.safetensors"
OPTIMISER = "optimizer.pt"
RANDOM_STATE = "rng_state.pth"
COURSE = "trainer_state.json"
_SAVING = "saving"


def save_state(scratch: Path, step: int, network: Any, optimizer: Any, scaler: Any, course: dict[str, Any]) -> None:
    """Write `checkpoint-<step>` in one go and delete the one before, so that a crash at any moment leaves a whole one.

    Args:
        scratch: an existing folder.
        step: how many steps were taken.
        network, optimizer, scaler: what is trained, with what.
        course: where training stands, as JSON values.
    """
    import torch
    from safetensors.torch import save_model

    saving = scratch / _SAVING
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir()
    save_model(network, str(saving / WEIGHTS))
    torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, saving / OPTIMISER)
    torch.save({"cpu": torch.get_rng_state(), "cuda": _cuda_random_state()}, saving / RANDOM_STATE)
    write_json(saving / COURSE, course)
    target = scratch / f"checkpoint-{step}"
    shutil.rmtree(target, ignore_errors=True)
    saving.rename(target)
    for other in scratch.glob("checkpoint-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    best = course["best_step"]
    for file in scratch.glob("best-*.safetensors"):
        if file != best_weights(scratch, best):
            file.unlink()


def load_state(scratch: Path, network: Any, optimizer: Any, scaler: Any) -> dict[str, Any] | None:
    """Load the newest whole state into these objects; returns where training stood, or None when there is no state."""
    import torch
    from safetensors.torch import load_model

    folder = last_whole_checkpoint(scratch)
    if folder is None:
        return None
    load_model(network, str(folder / WEIGHTS))
    state = torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    random = torch.load(folder / RANDOM_STATE, weights_only=True, map_location="cpu")
    torch.set_rng_state(random["cpu"])
    if random["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    course: dict[str, Any] = json.loads((folder / COURSE).read_text(encoding="utf-8"))
    return course


def save_best(scratch: Path, step: int, network: Any) -> None:
    """Keep these weights as the best so far; the best before stays until the state that names these is written."""
    from safetensors.torch import save_model

    target = best_weights(scratch, step)
    partial = target.with_suffix(".partial")
    save_model(network, str(partial))
    partial.replace(target)


def load_best(scratch: Path, step: int, network: Any) -> None:
    """Put the best weights, those of `step`, back into the network."""
    from safetensors.torch import load_model

    load_model(network, str(best_weights(scratch, step)))


def best_weights(scratch: Path, step: int) -> Path:
    """Where the best weights are that the training had after `step` steps."""
    return scratch / f"best-{step}.safetensors"


def _cuda_random_state() -> Any:
    import torch

    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None
