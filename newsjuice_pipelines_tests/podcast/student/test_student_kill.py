"""A training that is killed in the middle of an epoch ends, once resumed, at the weights of one that was not."""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig, FinetuneError, train_adapter
from newsjuice_pipelines.podcast.training.processes import write_job
from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint

WEIGHTS = "adapter_model.safetensors"


def train(base: Path, dataset: Path, config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return train_adapter(base, dataset, config, folder / "out", folder / "scratch")


def test_a_killed_run_resumes_within_its_epoch_and_ends_at_the_same_weights(
    base: Path, make_dataset: Callable[..., Path], tuning: FinetuneConfig, tmp_path: Path
) -> None:
    (tmp_path / "dataset").mkdir()
    dataset = make_dataset(tmp_path / "dataset", train=40)
    config = replace(
        tuning, epochs=3, batch_size=1, max_length=512, packing=True, lora_dropout=0.1, checkpoint_steps=4, accumulation_steps=1
    )
    killed = tmp_path / "killed"
    for name in ("out", "scratch"):
        (killed / name).mkdir(parents=True)
    job = tmp_path / "job.json"
    write_job(job, base, dataset, config, killed / "out", killed / "scratch", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "newsjuice_pipelines.podcast.training.processes", str(job)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while last_whole_checkpoint(killed / "scratch") is None and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9

    unbroken = train(base, dataset, config, tmp_path / "whole")
    resumed = train(base, dataset, config, killed)

    steps_per_epoch = unbroken["steps"] // config.epochs
    assert 0 < resumed["resumed_from_step"] < unbroken["steps"]
    assert resumed["resumed_from_step"] % steps_per_epoch  # in the middle of an epoch
    assert (killed / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole/out" / WEIGHTS).read_bytes()
    assert resumed["validation_loss_before"] == unbroken["validation_loss_before"]


def test_checkpoints_within_epochs_change_nothing(base: Path, dataset: Path, tuning: FinetuneConfig, tmp_path: Path) -> None:
    config = replace(tuning, epochs=2)
    train(base, dataset, replace(config, checkpoint_steps=3), tmp_path / "often")
    train(base, dataset, replace(config, checkpoint_steps=0), tmp_path / "seldom")

    assert (tmp_path / "often/out" / WEIGHTS).read_bytes() == (tmp_path / "seldom/out" / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def stopped_early(
    base: Path, dataset: Path, tuning: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinetuneConfig, Path, dict[str, Any]]:
    """A run that stopped early: its configuration, its folder, which was moved afterwards, and its facts."""
    config = replace(tuning, epochs=20, learning_rate=0.012, patience_epochs=1)
    folder = tmp_path_factory.mktemp("stopped_early")
    facts = train(base, dataset, config, folder / "before")
    (folder / "before").rename(folder / "moved")
    assert facts["best_epoch"] < facts["epochs"] < 20
    return config, folder / "moved", facts


def test_a_run_killed_after_it_stopped_early_is_not_trained_further_and_gives_its_best_weights(
    base: Path, dataset: Path, stopped_early: tuple[FinetuneConfig, Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, folder, whole = stopped_early
    shutil.copytree(folder / "scratch", tmp_path / "scratch")

    again = train(base, dataset, config, tmp_path)

    best_step = json.loads((tmp_path / "out/loss_history.json").read_text())["best_step"]
    weights = (tmp_path / "out" / WEIGHTS).read_bytes()
    assert (again["resumed_from_step"], again["steps"]) == (whole["steps"], whole["steps"])
    assert weights == (folder / f"scratch/checkpoint-{best_step}" / WEIGHTS).read_bytes()
    assert weights == (folder / "out" / WEIGHTS).read_bytes()


def test_weights_other_than_the_best_are_not_written(
    base: Path, dataset: Path, stopped_early: tuple[FinetuneConfig, Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, folder, _ = stopped_early
    shutil.copytree(folder / "scratch", tmp_path / "scratch")
    best_step = json.loads((folder / "out/loss_history.json").read_text())["best_step"]
    shutil.rmtree(tmp_path / f"scratch/checkpoint-{best_step}")

    with pytest.raises(FinetuneError, match=rf"that of step {best_step}, is no longer in .*materialise lora_adapter again"):
        train(base, dataset, config, tmp_path)

    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_checkpoints_of_other_data_are_not_resumed(
    base: Path,
    dataset: Path,
    make_dataset: Callable[..., Path],
    tuning: FinetuneConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(tuning, epochs=1)
    train(base, dataset, config, tmp_path)
    (tmp_path / "other").mkdir()

    with caplog.at_level(logging.INFO):
        facts = train(base, make_dataset(tmp_path / "other", train=18), config, tmp_path)

    assert facts["resumed_from_step"] == 0
    assert "of a run with another dataset_fingerprint" in caplog.text
