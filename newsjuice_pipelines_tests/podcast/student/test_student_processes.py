"""Training in two real processes on the CPU: started, heard, and ended."""

import json
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
from newsjuice_pipelines.podcast.training.processes import _error_of, process_count, write_job
from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint

MODULE = "newsjuice_pipelines.podcast.training.processes"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An empty output folder and a scratch folder."""
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    return tmp_path / "out", tmp_path / "scratch"


def first_gradient_norm(scratch: Path, processes: int) -> float:
    """Norm of the gradient in the first step of the run whose checkpoints are in `scratch`."""
    checkpoint = last_whole_checkpoint(scratch, processes)
    assert checkpoint is not None
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    norm: float = next(entry["grad_norm"] for entry in log if entry["step"] == 1 and "grad_norm" in entry)
    return norm


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
    caplog.clear()

    with caplog.at_level(logging.INFO):
        facts = train_adapter(base, dataset, replace(config, processes=2), *folders)

    assert (facts["processes"], facts["effective_batch"], facts["steps"]) == (2, 2, alone["steps"])
    assert facts["validation_loss_before"] == pytest.approx(alone["validation_loss_before"], rel=1e-5)
    assert facts["validation_loss"] == pytest.approx(alone["validation_loss"], rel=0.02)
    norms = first_gradient_norm(folders[1], processes=2), first_gradient_norm(tmp_path / "alone_scratch", processes=1)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert len(list(folders[0].glob("*.safetensors"))) == 1
    assert load_tokenizer(folders[0]).chat_template
    assert caplog.text.count("tuning: 16/16 steps") == 1  # the first process reports, the second is silent


def test_the_error_of_a_worker_arrives_as_it_was(
    base: Path, dataset: Path, tuning: FinetuneConfig, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(FinetuneError, match="longer than max_length 20 tokens"):
        train_adapter(base, dataset, replace(tuning, processes=2, accumulation_steps=2, max_length=20), *folders)


LOST_PEER = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:45969: Connection reset by peer."
KILLED_WORKER = (  # what torchrun writes
    "E1122 22:21:26.495000 7403 multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 7408) of binary: python",
    "  exitcode  : -9 (pid: 7408)  (SIGKILL)",
    "  traceback : Signal 9 (SIGKILL) received by PID 7408",
)


@pytest.mark.parametrize("line", KILLED_WORKER)
def test_a_worker_that_was_killed_is_reported_before_the_one_that_lost_it(
    tuning: FinetuneConfig, tmp_path: Path, line: str
) -> None:
    (tmp_path / "error-0.json").write_text(json.dumps({"type": "RuntimeError", "message": LOST_PEER}))

    message = str(_error_of(tmp_path, 1, ["Root Cause:", line], replace(tuning, processes=2)))

    assert message.startswith("a training process was killed, as the system does when this machine's (or its container's) memory")
    assert "batch_size 2" in message
    assert "Lower processes (they share this memory), lower batch_size" in message
    assert message.endswith(f"Another process then failed: RuntimeError: {LOST_PEER}")


def test_an_error_in_words_of_ours_is_raised_even_when_a_worker_was_killed(tuning: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "error-0.json").write_text(json.dumps({"type": "RuntimeError", "message": LOST_PEER}))
    (tmp_path / "error-1.json").write_text(json.dumps({"type": "FinetuneError", "message": "rows are too long"}))

    error = _error_of(tmp_path, 1, KILLED_WORKER, tuning)

    assert (type(error), str(error)) == (FinetuneError, "rows are too long")


def test_a_worker_that_failed_by_itself_is_not_said_to_be_killed(tuning: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "error-0.json").write_text(json.dumps({"type": "KeyError", "message": "'x'"}))

    error = _error_of(tmp_path, 1, ["  exitcode  : -15 (pid: 7407)  (SIGTERM)"], tuning)

    assert str(error) == "a training process failed: KeyError: 'x'"


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
