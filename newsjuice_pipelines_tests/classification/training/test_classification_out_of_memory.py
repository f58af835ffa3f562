"""A training whose memory runs out goes on with half a batch at a time and learns the same; then it says what to lower."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training import loop
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, train_classifier
from newsjuice_pipelines.classification.training.loop import EncoderTrainer, TrainingFailed
from newsjuice_pipelines.classification.training.models import BaseModel, catalogue

TEXTS = ["Ten Soups For A Cold Night", "Senate Passes The Budget Bill", ""]
CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


@pytest.fixture(scope="module")
def steady(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The tiny encoder without dropout, whose training depends on the texts of a step alone, however they are divided."""
    folder = tmp_path_factory.mktemp("steady")
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(settings))
    return catalogue(f"tiny={folder}")["tiny"]


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """A device with room for so many texts; gives a list that fills with the texts of every computation begun."""

    def install(texts: int, *, evaluating: int = 10_000, error: Callable[[], Exception] | None = None) -> list[int]:
        import torch

        begun: list[int] = []
        compute = EncoderTrainer._logits

        def logits(trainer: EncoderTrainer, rows: Any, batch: np.ndarray) -> Any:
            begun.append(len(batch))
            if len(batch) > (texts if trainer.network.training else evaluating):
                raise error() if error else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return compute(trainer, rows, batch)

        monkeypatch.setattr(EncoderTrainer, "_logits", logits)
        return begun

    return install


def train(entry: BaseModel, split: Path, folder: Path, **config: Any) -> dict[str, Any]:
    (folder / "out").mkdir(parents=True)
    return train_classifier(entry, split, ClassifierConfig(**config), folder / "out", folder / "scratch")


@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_half_a_batch_at_a_time_learns_what_the_whole_batch_teaches(
    weighting: str,
    steady: BaseModel,
    topic_split: Path,
    room_for: Callable[..., list[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = {"max_steps": 6, "batch_size": 30, "learning_rate": 1e-3, "class_weighting": weighting, "label_smoothing": 0.1}
    whole = train(steady, topic_split, tmp_path / "whole", **config)
    begun = room_for(20)

    with caplog.at_level(logging.WARNING):
        facts = train(steady, topic_split, tmp_path / "halves", **config)

    assert begun[:5] == [30, 15, 15, 15, 15]
    assert (facts["texts_at_a_time"], facts["out_of_memory_at_batch_size"], facts["steps"]) == (15, 30, 6)
    assert (whole["texts_at_a_time"], whole["out_of_memory_at_batch_size"]) == (30, None)
    assert facts["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-4)
    found, wanted = (load_classifier(tmp_path / name / "out").predict_logits(TEXTS) for name in ("halves", "whole"))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert caplog.text.count("with 30 texts at a time: going on with 15 at a time") == 1


def test_memory_that_runs_out_in_validation_halves_that(
    steady: BaseModel,
    topic_split: Path,
    room_for: Callable[..., list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "EVALUATION_BATCH_TEXTS", 16)
    begun = room_for(10_000, evaluating=10)

    facts = train(steady, topic_split, tmp_path, max_steps=2, batch_size=8)

    assert begun[:5] == [8, 8, 16, 8, 8]
    assert facts["out_of_memory_at_batch_size"] == 8


@pytest.mark.parametrize("error", [None, lambda: RuntimeError(CPU_ERROR)])
def test_memory_that_does_not_suffice_for_half_a_batch_ends_training_with_what_to_lower(
    error: Callable[[], Exception] | None,
    steady: BaseModel,
    topic_split: Path,
    room_for: Callable[..., list[int]],
    tmp_path: Path,
) -> None:
    begun = room_for(4, error=error)

    with pytest.raises(TrainingFailed, match="too small for 16 texts of up to 128 tokens, and for 8 at a time: lower batch_size"):
        train(steady, topic_split, tmp_path, max_steps=2, batch_size=16)
    whole, half = begun  # and no third try
    assert 4 < half == whole // 2


def test_a_batch_of_one_text_is_not_tried_again(
    steady: BaseModel, topic_split: Path, room_for: Callable[..., list[int]], tmp_path: Path
) -> None:
    begun = room_for(0)

    with pytest.raises(TrainingFailed, match="too small for 1 texts of up to 128 tokens: lower batch_size or max_length"):
        train(steady, topic_split, tmp_path, max_steps=2, batch_size=1)
    assert begun == [1]


def test_other_errors_stay_what_they_are(
    steady: BaseModel, topic_split: Path, room_for: Callable[..., list[int]], tmp_path: Path
) -> None:
    begun = room_for(0, error=lambda: RuntimeError("a broken kernel"))

    with pytest.raises(RuntimeError, match="a broken kernel"):
        train(steady, topic_split, tmp_path, max_steps=2, batch_size=16)
    assert len(begun) == 1, "there should be no second try"
