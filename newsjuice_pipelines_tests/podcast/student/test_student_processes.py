"""Training in two real processes on the CPU: started, heard, and ended."""

import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig, FinetuneError, train_adapter
from newsjuice_pipelines.podcast.training.processes import process_count, write_job

MODULE = "newsjuice_pipelines.podcast.training.processes"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An empty output folder and a scratch folder."""
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    return tmp_path / "out", tmp_path / "scratch"


def test_two_processes_train_what_one_trains(
    base: Path,
    dataset: Path,
    tuning: FinetuneConfig,
    folders: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(tuning, epochs=2, batch_size=1, accumulation_steps=2)
    for name in ("alone", "alone_scratch"):
        (tmp_path / name).mkdir()
    alone = train_adapter(base, dataset, config, tmp_path / "alone", tmp_path / "alone_scratch")

    with caplog.at_level(logging.INFO):
        facts = train_adapter(base, dataset, replace(config, processes=2), *folders)

    assert (facts["processes"], facts["effective_batch"], facts["steps"]) == (2, 2, alone["steps"])
    assert facts["validation_loss_before"] == pytest.approx(alone["validation_loss_before"], rel=1e-5)
    assert facts["validation_loss"] == pytest.approx(alone["validation_loss"], rel=0.02)
    assert len(list(folders[0].glob("*.safetensors"))) == 1
    assert load_tokenizer(folders[0]).chat_template
    assert caplog.text.count("tuning: 16/16 steps") == 1  # the first process reports, the second is silent


def test_the_error_of_a_worker_arrives_as_it_was(
    base: Path, dataset: Path, tuning: FinetuneConfig, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(FinetuneError, match="longer than max_length 20 tokens"):
        train_adapter(base, dataset, replace(tuning, processes=2, accumulation_steps=2, max_length=20), *folders)


def test_accumulation_that_processes_cannot_share_is_refused(tuning: FinetuneConfig) -> None:
    with pytest.raises(FinetuneError, match=r"2 processes cannot share accumulation_steps 3 evenly.*multiple of 2"):
        process_count(replace(tuning, processes=2, accumulation_steps=3))


@pytest.mark.parametrize(("gpus", "accumulation", "count"), [(0, 4, 1), (1, 4, 1), (2, 4, 2), (3, 4, 2), (8, 4, 4), (2, 1, 1)])
def test_zero_takes_as_many_gpus_as_can_share_the_accumulation(
    tuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, gpus: int, accumulation: int, count: int
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    assert process_count(replace(tuning, processes=0, accumulation_steps=accumulation)) == count


def test_more_processes_than_gpus_are_refused(tuning: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(FinetuneError, match="processes is 4, but there are 2 GPUs"):
        process_count(replace(tuning, processes=4, accumulation_steps=4))


def test_workers_end_when_the_process_that_started_them_is_killed(
    base: Path, dataset: Path, tuning: FinetuneConfig, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    job = tmp_path / "job.json"
    write_job(job, base, dataset, replace(tuning, processes=2, accumulation_steps=2, epochs=10_000), *folders, None)
    parent = subprocess.Popen([sys.executable, "-m", MODULE, str(job)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(workers) < 3 and time.monotonic() < deadline:  # torchrun and its two workers
        workers = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(0.05)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    _, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert len(workers) >= 3
    assert not alive
