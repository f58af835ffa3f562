"""A training whose memory runs out goes on once at half the batch, with the same effective batch; then it says what to lower."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training import trainer
from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig, FinetuneError, train_adapter
from newsjuice_pipelines.podcast.training.halved_batch import OutOfMemory, halved
from newsjuice_pipelines.podcast.training.processes import _environment, _error_of

WEIGHTS = "adapter_model.safetensors"
CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
# What two training processes import when they start: a device with room for one sequence.
SMALL_DEVICE = """
from newsjuice_pipelines.podcast.training import trainer
original = trainer._trainer_class
def trainer_class():
    import torch
    made = original()
    step = made.training_step
    def training_step(self, model, inputs, *rest):
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, *rest)
    made.training_step = training_step
    return made
trainer._trainer_class = trainer_class
"""


@pytest.fixture
def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Lets training steps fail as a full device does; gives a list that fills with the sequences of every step begun."""

    def install(fails: Callable[[int, int], bool], error: Callable[[], Exception] | None = None) -> list[int]:
        import torch

        begun: list[int] = []
        made = trainer._trainer_class()
        step = made.training_step

        def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            begun.append(len(inputs["input_ids"]))
            if fails(begun[-1], len(begun)):
                raise error() if error else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return step(self, model, inputs, *rest)

        monkeypatch.setattr(made, "training_step", training_step)
        return begun

    return install


def train(base: Path, dataset: Path, config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return train_adapter(base, dataset, config, folder / "out", folder / "scratch")


def test_half_the_batch_twice_as_often_gives_the_weights_of_a_run_that_was_set_so(
    base: Path,
    dataset: Path,
    tuning: FinetuneConfig,
    out_of_memory: Callable[..., list[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(tuning, epochs=2, batch_size=2, accumulation_steps=2)
    set_so = train(base, dataset, replace(config, batch_size=1, accumulation_steps=4), tmp_path / "set_so")
    begun = out_of_memory(lambda sequences, _: sequences > 1)

    with caplog.at_level(logging.WARNING):
        facts = train(base, dataset, config, tmp_path / "retried")

    assert begun[:2] == [2, 1]
    assert (facts["batch_size"], facts["accumulation_steps"], facts["effective_batch"]) == (1, 4, 4)
    assert (facts["out_of_memory_at_batch_size"], set_so["out_of_memory_at_batch_size"]) == (2, None)
    assert (facts["steps"], facts["validation_loss"]) == (set_so["steps"], set_so["validation_loss"])
    assert (tmp_path / "retried/out" / WEIGHTS).read_bytes() == (tmp_path / "set_so/out" / WEIGHTS).read_bytes()
    assert "out of memory with batch_size 2: trying once more with batch_size 1 and accumulation_steps 4" in caplog.text


def test_the_second_try_goes_on_from_the_last_checkpoint(
    base: Path, dataset: Path, tuning: FinetuneConfig, out_of_memory: Callable[..., list[int]], tmp_path: Path
) -> None:
    begun = out_of_memory(lambda _, number: number == 7)  # in the seventh of eight steps an epoch

    facts = train(base, dataset, replace(tuning, epochs=1, checkpoint_steps=3), tmp_path)

    assert (facts["resumed_from_step"], facts["steps"]) == (6, 8)
    assert begun == [2] * 7 + [1] * 4  # the last two steps again, in halves


@pytest.mark.parametrize("error", [None, lambda: RuntimeError(CPU_ERROR)])
def test_memory_that_does_not_suffice_for_half_the_batch_ends_training_with_what_to_lower(
    base: Path,
    dataset: Path,
    tuning: FinetuneConfig,
    out_of_memory: Callable[..., list[int]],
    tmp_path: Path,
    error: Callable[[], Exception] | None,
) -> None:
    begun = out_of_memory(lambda *_: True, error)

    with pytest.raises(FinetuneError, match=r"tried with batch_size 4 and 2: the memory of the device .* Lower batch_size"):
        train(base, dataset, replace(tuning, batch_size=4), tmp_path)
    assert begun == [4, 2]


def test_a_single_sequence_cannot_be_halved(
    base: Path, dataset: Path, tuning: FinetuneConfig, out_of_memory: Callable[..., list[int]], tmp_path: Path
) -> None:
    begun = out_of_memory(lambda *_: True)

    with pytest.raises(OutOfMemory, match="Set activation_checkpointing to always"):
        train(base, dataset, replace(tuning, batch_size=1), tmp_path)
    assert begun == [1]


def test_other_errors_are_not_tried_again(
    base: Path, dataset: Path, tuning: FinetuneConfig, out_of_memory: Callable[..., list[int]], tmp_path: Path
) -> None:
    begun = out_of_memory(lambda *_: True, lambda: RuntimeError("a broken kernel"))

    with pytest.raises(RuntimeError, match="a broken kernel"):
        train(base, dataset, tuning, tmp_path)
    assert len(begun) == 1


@pytest.mark.whole_system
def test_two_processes_are_started_again_at_half_the_batch(
    base: Path, dataset: Path, tuning: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SMALL_DEVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    facts = train(base, dataset, replace(tuning, epochs=1, accumulation_steps=2, processes=2), tmp_path)

    assert (facts["processes"], facts["batch_size"], facts["accumulation_steps"]) == (2, 1, 4)
    assert facts["out_of_memory_at_batch_size"] == 2


def test_the_batch_that_was_too_large_for_a_worker_arrives_with_its_error(tuning: FinetuneConfig, tmp_path: Path) -> None:
    report = {"type": "OutOfMemory", "message": "too little", "batch_size": 8}
    (tmp_path / "error-1.json").write_text(json.dumps(report))

    error = _error_of(tmp_path, 1, [], tuning)

    assert isinstance(error, OutOfMemory)
    assert (str(error), error.batch_size) == ("too little", 8)


@pytest.mark.parametrize(
    ("batch", "steps", "ran_with", "processes", "half"),
    [
        (4, 2, 4, 1, (2, 4)),
        (3, 1, 3, 1, (1, 3)),  # no half: the next smaller that divides it
        (0, 8, 8, 1, (4, 2)),  # chosen by the device
        (0, 8, 4, 2, (2, 4)),
        (6, 1, 6, 1, (3, 2)),
        (1, 4, 1, 1, None),
        (0, 4, 0, 1, None),  # before it was chosen
    ],
)
def test_half_a_batch_keeps_the_effective_batch(
    tuning: FinetuneConfig, batch: int, steps: int, ran_with: int, processes: int, half: tuple[int, int] | None
) -> None:
    config = replace(tuning, batch_size=batch, accumulation_steps=steps)

    smaller = halved(config, ran_with, processes)

    assert (smaller and (smaller.batch_size, smaller.accumulation_steps)) == half
    assert smaller is None or smaller.effective_batch == config.effective_batch


def test_training_processes_see_the_leased_gpus_only() -> None:
    assert _environment(2, ["GPU-a", "GPU-b"])["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert _environment(2, []).get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
