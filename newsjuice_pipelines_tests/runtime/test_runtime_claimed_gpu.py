"""Parallel steps get different GPUs, wait when all are taken, and leave no claim behind however they end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.runtime import devices
from newsjuice_pipelines.runtime.devices import Device, claimed_gpu


def pretend_gpus(count: int, folder: Path) -> None:
    """Let this process believe in GPUs, which this machine may not have; the locks are real."""
    tempfile.tempdir = str(folder)
    devices.gpu_ids = lambda: [f"GPU-{number}" for number in range(count)]
    devices.best_device = lambda index=0: Device("cuda", f"card {index}", "bfloat16", 16.0, index)
    devices._current_gpu = lambda index: nullcontext()


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    for owner, name in ((devices, "gpu_ids"), (devices, "best_device"), (devices, "_current_gpu"), (tempfile, "tempdir")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return lambda count: pretend_gpus(count, tmp_path)


def _hold(count: int, folder: Path, taken: Any) -> None:
    pretend_gpus(count, folder)
    with claimed_gpu() as device:
        taken.put(device.index)
        time.sleep(60)


def test_without_a_gpu_the_step_runs_on_the_cpu_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_ids", list)
    with claimed_gpu() as one, claimed_gpu() as other:
        assert one.torch_name == other.torch_name == "cpu"


def test_steps_at_the_same_time_get_different_gpus_and_free_ones_come_again(gpus: Callable[[int], None]) -> None:
    gpus(3)
    for _ in range(2):
        with ExitStack() as stack:
            held = [stack.enter_context(claimed_gpu()) for _ in range(3)]
            assert [device.torch_name for device in held] == ["cuda:0", "cuda:1", "cuda:2"]


def test_who_comes_when_all_are_taken_waits_and_says_so(gpus: Callable[[int], None], caplog: pytest.LogCaptureFixture) -> None:
    gpus(1)
    caplog.set_level(logging.INFO)
    got: list[int] = []

    def step() -> None:
        with claimed_gpu(poll_s=0.02) as device:
            got.append(device.index)

    with claimed_gpu():
        waiting = threading.Thread(target=step)
        waiting.start()
        waiting.join(0.3)
        assert not got
    waiting.join(10)
    assert got == [0]
    assert caplog.text.count("other steps hold all 1") == 1


def test_a_killed_step_leaves_its_gpu_to_the_next(gpus: Callable[[int], None], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    taken = context.Queue()
    process = context.Process(target=_hold, args=(1, tmp_path, taken))
    process.start()
    assert taken.get(timeout=30) == 0
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    gpus(1)
    with claimed_gpu(poll_s=0.01) as device:
        assert device.index == 0


def test_an_error_within_gives_the_gpu_back(gpus: Callable[[int], None]) -> None:
    gpus(1)
    with pytest.raises(RuntimeError, match="out of luck"), claimed_gpu():
        raise RuntimeError("out of luck")
    with claimed_gpu() as device:
        assert device.index == 0
