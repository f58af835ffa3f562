"""A GPU has one owner at a time, whoever asks and however owners end; who waits says for what and how long."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from newsjuice_pipelines.runtime import gpu_leases
from newsjuice_pipelines.runtime.gpu_leases import Lease, holders, lease_gpus, release, renew, take

GPUS = ["GPU-a", "GPU-b", "GPU-c"]
DEADLINE_S = 120.0  # of what takes a second or two on an idle machine
# Leases again and again, and locks a file of the GPU while it owns it: the system frees that one too when a process is killed.
HAMMER = """
import fcntl, random, sys, time
from pathlib import Path
from newsjuice_pipelines.runtime.gpu_leases import lease_gpus
folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
for _ in range(rounds):
    with lease_gpus(folder, ["GPU-a", "GPU-b", "GPU-c"], "hammering", count=chance.choice((1, 1, 1, 2)), poll_s=0.002) as gpus:
        inside = [open(folder / f"{gpu}.inside", "w") for gpu in gpus]
        for file in inside:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where another owner is inside
        time.sleep(chance.random() * 0.004)
        for file in inside:
            file.close()
"""
HOLDER = """
import sys, time
from pathlib import Path
from newsjuice_pipelines.runtime.gpu_leases import lease_gpus
with lease_gpus(Path(sys.argv[1]), sys.argv[2:], "holding", poll_s=0.01) as (gpu,):
    print(gpu, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script in a process of its own; what is left of them ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def lease_of_another(folder: Path, gpu: str, **changes: object) -> None:
    """A lease file as some other process would have left it."""
    (lease,) = take(folder, [gpu], "training")
    (folder / f"{gpu}.lease").write_text(json.dumps({**asdict(lease), **changes}))


def test_eight_processes_on_three_gpus_never_share_one_though_owners_are_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    processes = [start(HAMMER, tmp_path, 25, seed) for seed in range(8)]
    for _ in range(4):
        victim = start(HOLDER, tmp_path, *GPUS)
        assert first_line(victim) in GPUS
        victim.send_signal(signal.SIGKILL)  # and it stays a zombie for a while

    for process in processes:
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, errors
    assert len(take(tmp_path, GPUS, "afterwards", count=3)) == 3


def test_a_killed_owner_holds_nothing(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    owner = start(HOLDER, tmp_path, "GPU-a")
    assert first_line(owner) == "GPU-a"
    assert take(tmp_path, ["GPU-a"], "ours") == []

    owner.kill()
    owner.wait()

    assert [lease.gpu for lease in take(tmp_path, ["GPU-a"], "ours")] == ["GPU-a"]


def test_an_owner_that_is_held_up_keeps_its_gpu_beyond_the_expiry(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    owner = start(HOLDER, tmp_path, "GPU-a")
    first_line(owner)
    owner.send_signal(signal.SIGSTOP)
    file = tmp_path / "GPU-a.lease"
    file.write_text(json.dumps({**json.loads(file.read_text()), "expires": time.time() - 1}))

    assert take(tmp_path, ["GPU-a"], "ours") == []


def test_another_process_with_the_number_of_a_dead_owner_is_not_the_owner(tmp_path: Path) -> None:
    lease_of_another(tmp_path, "GPU-a", process_start="before all that runs now")

    assert take(tmp_path, ["GPU-a"], "ours")


def test_an_owner_that_cannot_be_looked_at_holds_its_gpu_until_the_lease_expires(tmp_path: Path) -> None:
    lease_of_another(tmp_path, "GPU-a", host="a-container/1", expires=time.time() + 60)
    assert take(tmp_path, ["GPU-a"], "ours") == []

    lease_of_another(tmp_path, "GPU-b", host="a-container/1", expires=time.time() - 1)
    assert take(tmp_path, ["GPU-b"], "ours")


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_leases, "RENEW_S", 0.01)
    with lease_gpus(tmp_path, ["GPU-a"], "training"):
        first = holders(tmp_path, ["GPU-a"])[0].expires
        deadline = time.monotonic() + DEADLINE_S
        while holders(tmp_path, ["GPU-a"])[0].expires <= first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert holders(tmp_path, ["GPU-a"])[0].expires > first
    assert holders(tmp_path, ["GPU-a"]) == []


def test_a_lease_that_somebody_took_over_is_neither_renewed_nor_given_back(tmp_path: Path) -> None:
    leases = take(tmp_path, ["GPU-a"], "ours")
    theirs = replace(leases[0], token="theirs", what="theirs")
    (tmp_path / "GPU-a.lease").write_text(json.dumps(asdict(theirs)))

    assert renew(tmp_path, leases) == ["GPU-a"]
    release(tmp_path, leases)

    assert holders(tmp_path, ["GPU-a"]) == [theirs]


def test_losing_a_lease_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gpu_leases, "RENEW_S", 0.01)
    with lease_gpus(tmp_path, ["GPU-a"], "ours"):
        lease_of_another_over(tmp_path, "GPU-a")
        deadline = time.monotonic() + DEADLINE_S
        while "somebody else has it" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "the lease of GPU-a expired while this process was held up" in caplog.text


def lease_of_another_over(folder: Path, gpu: str) -> None:
    """Somebody's lease in the place of one that is held."""
    with gpu_leases._exclusive(folder):
        gpu_leases._write(folder, replace(holders_unlocked(folder, gpu), token="theirs"))


def holders_unlocked(folder: Path, gpu: str) -> Lease:
    found = gpu_leases._read(folder, gpu)
    assert found is not None
    return found


def test_who_waits_says_for_what_how_long_and_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gpu_leases, "NEWS_S", 0.05)
    got: list[str] = []

    def step() -> None:
        with lease_gpus(tmp_path, ["GPU-a"], "the second", poll_s=0.01) as (gpu,):
            got.append(gpu)

    with lease_gpus(tmp_path, ["GPU-a"], "the first"):
        waiting = threading.Thread(target=step)
        waiting.start()
        deadline = time.monotonic() + DEADLINE_S
        while caplog.text.count("the second: waiting for a GPU, 0 s so far") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not got
    waiting.join(DEADLINE_S)
    assert got == ["GPU-a"]
    assert f"(held: GPU-a: the first, process {os.getpid()} on " in caplog.text
    assert "the second: leased GPU-a" in caplog.text


def test_several_are_leased_together_or_none_of_them(tmp_path: Path) -> None:
    held = take(tmp_path, ["GPU-b"], "theirs")
    assert take(tmp_path, GPUS, "ours", count=3) == []
    assert [lease.gpu for lease in holders(tmp_path, GPUS)] == ["GPU-b"]

    release(tmp_path, held)

    with lease_gpus(tmp_path, GPUS, "ours", count=3) as gpus:
        assert gpus == tuple(GPUS)
    assert holders(tmp_path, GPUS) == []


def test_more_gpus_than_there_are_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="4 GPUs are wanted for training, and there are 3"),
        lease_gpus(tmp_path, GPUS, "training", count=4),
    ):
        pass


def test_an_error_within_the_block_gives_the_gpu_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"), lease_gpus(tmp_path, GPUS, "training"):
        raise RuntimeError("out of luck")

    assert holders(tmp_path, GPUS) == []


def test_a_lease_file_that_cannot_be_read_frees_its_gpu_with_time_only(tmp_path: Path) -> None:
    file = tmp_path / "GPU-a.lease"
    file.write_text("{")
    assert take(tmp_path, ["GPU-a"], "ours") == []

    os.utime(file, (0, 0))

    assert take(tmp_path, ["GPU-a"], "ours")


def test_a_lease_names_this_process_as_it_is_known_to_the_system(tmp_path: Path) -> None:
    (lease,) = take(tmp_path, ["GPU-a"], "training minilm")

    assert lease.pid == os.getpid() == psutil.Process().pid
    assert lease.is_in_force(time.time())
    assert str(lease).startswith(f"GPU-a: training minilm, process {os.getpid()} on ")
