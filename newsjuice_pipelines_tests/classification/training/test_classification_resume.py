"""Training that is cut off goes on, and ends as if it had not been; early stopping brings the best weights back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training import loop
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, train_classifier
from newsjuice_pipelines.classification.training.loop import TrainingFailed
from newsjuice_pipelines.classification.training.models import BaseModel, catalogue

TEXTS = ["Ten Soups For A Cold Night", "Senate Passes The Budget Bill", ""]
EPOCHS = {"epochs": 8, "early_stopping_patience": 0, "learning_rate": 1e-3, "batch_size": 8}
SCRIPT = """
import sys
from pathlib import Path
from newsjuice_pipelines.classification.training import loop
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, train_classifier
from newsjuice_pipelines.classification.training.models import catalogue
loop.SAVE_EVERY_S = 0.05
folder, split, out, scratch = map(Path, sys.argv[1:5])
train_classifier(catalogue(f"tiny={folder}")["tiny"], split, ClassifierConfig(**EPOCHS), out, scratch)
"""


@pytest.fixture
def tiny(tiny_bert: Path) -> BaseModel:
    return catalogue(f"tiny={tiny_bert}")["tiny"]


def folders(tmp_path: Path) -> tuple[Path, Path]:
    out = tmp_path / "out"
    out.mkdir(parents=True)
    return out, tmp_path / "scratch"


def losses(facts: dict[str, Any]) -> list[float]:
    return [item["loss"] for item in facts["selection_history"]]


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, topic_split: Path) -> tuple[dict[str, Any], Path]:
    """Facts and checkpoint of a training that nothing disturbed."""
    out, scratch = folders(tmp_path_factory.mktemp("whole"))
    entry = catalogue(f"tiny={tiny_bert}")["tiny"]
    return train_classifier(entry, topic_split, ClassifierConfig(**EPOCHS), out, scratch), out


def test_a_killed_training_goes_on_and_ends_as_if_there_had_been_no_kill(
    tiny: BaseModel, tmp_path: Path, topic_split: Path, whole: tuple[dict[str, Any], Path]
) -> None:
    out, scratch = folders(tmp_path)
    script = SCRIPT.replace("EPOCHS", repr(EPOCHS))
    arguments = [sys.executable, "-c", script, tiny.folder, str(topic_split), str(out), str(scratch)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(int(path.name.rpartition("-")[2]) > 20 for path in scratch.glob("checkpoint-*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (scratch / "checkpoint-9999").mkdir()  # what a crash within a save of another kind would leave

    facts = train_classifier(tiny, topic_split, ClassifierConfig(**EPOCHS), out, scratch)

    assert 20 < facts["resumed_from_step"] < facts["steps"] == whole[0]["steps"]
    assert losses(facts) == pytest.approx(losses(whole[0]), abs=1e-4)
    resumed, undisturbed = load_classifier(out), load_classifier(whole[1])
    np.testing.assert_allclose(resumed.predict_logits(TEXTS), undisturbed.predict_logits(TEXTS), atol=1e-4)


def test_a_crash_between_an_epoch_and_its_record_costs_only_that_epoch(
    tiny: BaseModel, tmp_path: Path, topic_split: Path, recording_tracker: Any, whole: tuple[dict[str, Any], Path]
) -> None:
    out, scratch = folders(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(tiny, topic_split, ClassifierConfig(**EPOCHS), out, scratch, recording_tracker(crash_at=3))
    facts = train_classifier(tiny, topic_split, ClassifierConfig(**EPOCHS), out, scratch)
    assert facts["resumed_from_step"] == whole[0]["steps"] * 2 // 8
    assert losses(facts) == pytest.approx(losses(whole[0]), abs=1e-4)


def test_states_of_a_training_with_other_settings_are_not_gone_on_from(
    tiny: BaseModel, tmp_path: Path, topic_split: Path
) -> None:
    out, scratch = folders(tmp_path)
    train_classifier(tiny, topic_split, ClassifierConfig(max_steps=2), out, scratch)
    assert train_classifier(tiny, topic_split, ClassifierConfig(max_steps=3), out, scratch)["resumed_from_step"] == 0
    assert train_classifier(tiny, topic_split, ClassifierConfig(max_steps=3), out, scratch)["resumed_from_step"] == 3


def test_scratch_holds_one_state_and_the_best_weights_only(tiny: BaseModel, tmp_path: Path, topic_split: Path) -> None:
    out, scratch = folders(tmp_path)
    facts = train_classifier(tiny, topic_split, ClassifierConfig(**{**EPOCHS, "epochs": 3}), out, scratch)
    assert {path.name for path in scratch.iterdir()} == {
        "run.json",
        f"checkpoint-{facts['steps']}",
        f"best-{facts['best_step']}.safetensors",
    }


def test_training_stops_when_validation_gets_no_better_and_brings_the_best_back(
    tiny: BaseModel, tmp_path: Path, topic_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scratch = folders(tmp_path)
    next_loss = iter([1.0, 0.5, 0.7, 0.6, 0.4])
    scored: list[np.ndarray] = []

    def evaluate(trainer: loop.EncoderTrainer, texts: Any) -> dict[str, float]:
        scored.append(trainer.network.classifier.weight.detach().numpy().copy())
        return {"loss": next(next_loss), "accuracy": 0.5}

    monkeypatch.setattr(loop.EncoderTrainer, "evaluate", evaluate)
    config = ClassifierConfig(epochs=9, early_stopping_patience=2, learning_rate=1e-3)
    facts = train_classifier(tiny, topic_split, config, out, scratch)
    assert facts["stopped_early"]
    assert (facts["epochs"], facts["best_selection_loss"], len(scored)) == (4.0, 0.5, 4)

    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(out / "model.safetensors")["classifier.weight"], scored[1])


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_first_score_that_is_no_number_is_never_the_best(
    loss: float, tiny: BaseModel, tmp_path: Path, topic_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_loss = iter([loss, 0.5])
    monkeypatch.setattr(loop.EncoderTrainer, "evaluate", lambda *_: {"loss": next(next_loss), "accuracy": 0.5})
    with pytest.raises(TrainingFailed, match=f"loss on the validation part is {loss} at step"):
        train_classifier(tiny, topic_split, ClassifierConfig(epochs=2), *folders(tmp_path))


def test_a_loss_that_is_no_number_ends_training_with_what_to_change(tiny: BaseModel, tmp_path: Path, topic_split: Path) -> None:
    out, scratch = folders(tmp_path)
    config = ClassifierConfig(learning_rate=1e18, gradient_clipping=0.0, warmup_fraction=0.0)
    with pytest.raises(TrainingFailed, match="lower learning_rate"):
        train_classifier(tiny, topic_split, config, out, scratch)


def test_too_small_a_gpu_ends_training_with_what_to_change(
    tiny: BaseModel, tmp_path: Path, topic_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def step(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.EncoderTrainer, "step", step)
    with pytest.raises(TrainingFailed, match="32 texts of up to 128 tokens: lower batch_size"):
        train_classifier(tiny, topic_split, ClassifierConfig(), *folders(tmp_path))


def test_progress_says_how_far_how_fast_and_how_long_still(
    tiny: BaseModel, tmp_path: Path, topic_split: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="newsjuice")
    clock = iter(range(0, 10_000, 20))  # 20 s between two looks at it
    progress = partial(loop.Progress, clock=lambda: next(clock))
    monkeypatch.setattr(loop, "Progress", progress)
    train_classifier(tiny, topic_split, ClassifierConfig(**{**EPOCHS, "epochs": 2}), *folders(tmp_path))
    lines = [record.getMessage() for record in caplog.records if record.name == "newsjuice.progress"]
    assert re.fullmatch(r"training tiny: \d+/\d+ texts, [\d.]+ texts/(s|min), .* left, loss \d\.\d+", lines[0])
    assert "done in" in lines[-1]


def test_the_test_part_picks_the_checkpoint_only_where_it_is_told_to(tiny: BaseModel, tmp_path: Path, topic_split: Path) -> None:
    for select_on_test, part in ((True, "test"), (False, "validation")):
        out, scratch = folders(tmp_path / part)
        facts = train_classifier(tiny, topic_split, ClassifierConfig(max_steps=2, select_on_test=select_on_test), out, scratch)
        described = json.loads((out / "classifier.json").read_text(encoding="utf-8"))
        card = (out / "README.md").read_text(encoding="utf-8")
        assert facts["selected_on"] == described["selected_on"] == part
        assert ("test scores are flattered" in card) == select_on_test
