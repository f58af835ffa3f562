"""A step's GPU is leased before CUDA starts and is all that it sees; a started CUDA decides for itself; else the CPU is used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from newsjuice_pipelines.runtime import leased_gpu as leasing
from newsjuice_pipelines.runtime import provenance
from newsjuice_pipelines.runtime.devices import Device
from newsjuice_pipelines.runtime.gpu_leases import holders, lease_gpus
from newsjuice_pipelines.runtime.leased_gpu import VISIBLE, leased_gpu, leased_gpus, listed_gpus

A, B, C = "GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"
DEADLINE_S = 120.0
# A step on a machine with the GPUs of a folder, whose CUDA reads the variable when it starts, and never again. It says what it
# sees, and ends when it is told to.
STEP = """
import json, os, sys
from contextlib import nullcontext
from pathlib import Path
from newsjuice_pipelines.runtime import leased_gpu as leasing, provenance
from newsjuice_pipelines.runtime.devices import Device
provenance.NVIDIA_DEVICES = Path(sys.argv[1])
leasing.lease_in(Path(sys.argv[2]))
def gpus_of_cuda():
    assert "torch" not in sys.modules
    return leasing.listed_gpus()
leasing.gpus_of_cuda = gpus_of_cuda
leasing.best_device = lambda index=None: Device("cuda", "a card", "bfloat16", 16.0, index or 0)
leasing._current = lambda device: nullcontext()
with leasing.leased_gpu("a step", poll_s=0.01) as device:
    print(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], device.torch_name]), flush=True)
    sys.stdin.readline()
print(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")), flush=True)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver's list of a machine with three GPUs, which this process believes in, with no lease held."""
    for number, name in enumerate((A, B, C)):
        folder = tmp_path / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t NVIDIA L4\nGPU UUID: \t {name}\nBus Type: \t PCIe\n")
    monkeypatch.setattr(provenance, "NVIDIA_DEVICES", tmp_path / "gpus")
    monkeypatch.delenv(VISIBLE, raising=False)
    fresh = leasing._ProcessLease()
    fresh.folder = tmp_path / "leases"
    monkeypatch.setattr(leasing, "_process", fresh)
    monkeypatch.setattr(leasing, "best_device", lambda index=None: Device("cuda", "a card", "bfloat16", 16.0, index or 0))
    monkeypatch.setattr(leasing, "_current", lambda device: nullcontext())
    return tmp_path


def show(monkeypatch: pytest.MonkeyPatch, *gpus: str, running: bool) -> None:
    """Let CUDA show these GPUs to this process, known to PyTorch (running) or not."""
    monkeypatch.setattr(leasing, "gpus_of_cuda", lambda: list(gpus))
    monkeypatch.setattr(leasing, "cuda_is_running", lambda: running)


def held(machine: Path) -> list[str]:
    folder = machine / "leases"
    folder.mkdir(exist_ok=True)
    return [lease.gpu for lease in holders(folder, [A, B, C])]


def test_steps_in_processes_of_their_own_each_see_one_gpu_and_no_two_the_same(machine: Path) -> None:
    arguments = [sys.executable, "-c", STEP, str(machine / "gpus"), str(machine / "leases")]
    steps = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        seen = [json.loads(step.stdout.readline()) for step in steps if step.stdout is not None]
        rest = [json.loads(step.communicate("\n", timeout=DEADLINE_S)[0]) for step in steps]
    finally:
        for step in steps:
            step.kill()
            step.wait()

    assert sorted(seen) == [[A, "cuda:0"], [B, "cuda:0"], [C, "cuda:0"]]
    assert rest == [None] * 3, "what a step starts later must see all GPUs again"
    assert held(machine) == []


def test_the_leased_gpu_is_the_only_one_that_cuda_will_show(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "gpus_of_cuda", listed_gpus)
    monkeypatch.setenv(VISIBLE, "2,1")

    with leased_gpu("a step") as device:
        assert (os.environ[VISIBLE], device.index, held(machine)) == (C, 0, [C])

    assert (os.environ[VISIBLE], held(machine)) == ("2,1", [])


def test_further_users_in_the_process_share_its_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "gpus_of_cuda", listed_gpus)
    got: list[Device] = []

    def use() -> None:
        with leased_gpu("a thread") as device:
            got.append(device)

    with leased_gpu("a step") as outer:
        with leased_gpu("a part of it") as inner:
            assert inner == outer
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(DEADLINE_S)
        assert (got, held(machine)) == ([outer], [A])
    assert held(machine) == []


def test_where_cuda_runs_already_the_step_takes_a_free_one_of_those_it_shows(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch, C, B, running=True)

    with lease_gpus(machine / "leases", [C], "another step"), leased_gpu("a step") as device:
        assert (device.torch_name, sorted(held(machine))) == ("cuda:1", [B, C])
        assert VISIBLE not in os.environ


def test_a_library_that_takes_the_first_gpu_by_itself_waits_for_that_one(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, A, B, running=True)
    got: list[str] = []

    def train() -> None:
        with leased_gpu("training", first=True, poll_s=0.01) as device:
            got.append(device.torch_name)

    with lease_gpus(machine / "leases", [A], "another step"):
        thread = threading.Thread(target=train)
        thread.start()
        time.sleep(0.2)
        assert (got, held(machine)) == ([], [A])
    thread.join(DEADLINE_S)
    assert got == ["cuda:0"]


def test_a_cuda_that_had_started_unnoticed_decides_which_gpu_is_leased(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, B, running=False)

    with leased_gpu("a step") as device:
        assert (device.torch_name, held(machine)) == ("cuda:0", [B])
        assert VISIBLE not in os.environ


def test_a_gpu_that_pytorch_cannot_use_is_given_back_and_the_cpu_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    show(monkeypatch, running=False)
    monkeypatch.setattr(leasing, "best_device", lambda index=None: Device("cpu", "2 CPU cores", "float32"))

    with leased_gpu("a step") as device:
        assert (device.type, held(machine)) == ("cpu", [])

    assert f"a step: on the CPU, since PyTorch cannot use the GPU {A}" in caplog.text


def test_without_a_gpu_steps_run_on_the_cpu_and_the_first_says_so(
    machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(VISIBLE, "")
    show(monkeypatch, running=False)
    monkeypatch.setattr(leasing, "best_device", lambda index=None: Device("cpu", "2 CPU cores", "float32"))

    for _ in range(2):
        with leased_gpu("training minilm") as device, leased_gpus("training the student", 2) as gpus:
            assert (device.torch_name, gpus) == ("cpu", ())

    assert caplog.text.count("there is no GPU here, so it runs on the CPU") == 1
    assert "training minilm: there is no GPU here" in caplog.text


def test_processes_to_come_get_several_gpus_at_once(machine: Path) -> None:
    with leased_gpus("training the student", 2) as gpus:
        assert gpus == (A, B)
        assert held(machine) == [A, B]
        assert VISIBLE not in os.environ


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ("1", [B]),
        ("2, 0", [C, A]),
        (f"{B},{A}", [B, A]),
        ("GPU-cc", [C]),
        ("0,7,1", [A]),
        ("", []),
        ("-1", []),
        ("MIG-GPU-aaaa/1/0", ["MIG-GPU-aaaa/1/0"]),
    ],
)
def test_the_variable_of_cuda_chooses_and_orders_the_gpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, seen: list[str]
) -> None:
    monkeypatch.setenv(VISIBLE, chosen)

    assert listed_gpus() == seen


def test_where_the_driver_does_not_name_its_gpus_its_tool_is_asked(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unnamed = machine / "gpus/0000:01:00.0/information"
    unnamed.write_text("Model: \t NVIDIA L4\nGPU UUID: \t GPU-????????-????-????-????-????????????\n")
    tool = machine / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho GPU-from-the-tool\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    assert listed_gpus() == ["GPU-from-the-tool"]
