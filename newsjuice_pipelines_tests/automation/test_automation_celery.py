"""Steps through a real broker on real Celery workers: GPU steps on those of the queue `gpu`, and no secret is stored."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

pytestmark = pytest.mark.whole_system

PASSWORD = "planted-broker-password"
DEADLINE_S = 600.0  # of what takes seconds on an idle machine
CELERY = (sys.executable, "-m", "celery")
APP = "newsjuice_pipelines.automation.celery_app"
STEPS = """
import os, signal
import dagster as dg
from newsjuice_pipelines.automation.executors import executor_for
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS
from newsjuice_pipelines.settings import load_settings

def where():
    return dg.MaterializeResult(metadata={"pid": os.getpid(), "worker": os.getppid()})

@dg.asset(op_tags=GPU_OP_TAGS)
def heavy() -> dg.MaterializeResult:
    return where()

@dg.asset(op_tags=GPU_OP_TAGS, deps=[heavy])
def heavier() -> dg.MaterializeResult:
    return where()

@dg.asset(deps=[heavy])
def light() -> dg.MaterializeResult:
    return where()

@dg.asset
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

@dg.asset
def refused() -> None:
    raise dg.Failure("the data are bad", allow_retries=False)

defs = dg.Definitions(
    [heavy, heavier, light, killed, refused],
    executor=executor_for(load_settings()),
    jobs=[
        dg.define_asset_job("good", ["heavy", "heavier", "light"]),
        dg.define_asset_job("bad", ["killed"]),
        dg.define_asset_job("worse", ["refused"]),
    ],
)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code location and Dagster's home, where the output of every process goes."""
    folder = tmp_path_factory.mktemp("celery")
    (folder / "celery_steps.py").write_text(STEPS)
    (folder / "dagster").mkdir()
    (folder / "dagster/dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return folder


@pytest.fixture(scope="module")
def broker(place: Path) -> Iterator[str]:
    """The URL of a Redis that wants a password."""
    pytest.importorskip("dagster_celery", reason="the celery extra is not installed")
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server: install the Debian package redis-server")
    port = free_port()
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "", "--dir", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    wait_for(lambda: answers(port), "redis-server did not start")
    yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def environment(place: Path, broker: str) -> dict[str, str]:
    """What all processes of this set-up share."""
    return {
        **os.environ,
        "DAGSTER_HOME": str(place / "dagster"),
        "NEWSJUICE_HOME": str(place / "home"),
        "NEWSJUICE_EXECUTOR": "celery",
        "NEWSJUICE_CELERY_BROKER": broker,
        "PYTHONPATH": str(place),
        "C_FORCE_ROOT": "1",
    }


@pytest.fixture(scope="module")
def workers(place: Path, environment: dict[str, str]) -> Iterator[dict[str, int]]:
    """A worker process for each of the two queues; their process ids."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    for queue in ("gpu", "dagster"):
        command = [*CELERY, "-A", APP, "worker", "-Q", queue, "-c", "1", "-n", f"{queue}@here", "-l", "info"]
        with (place / f"{queue}.log").open("wb") as log:
            started[queue] = subprocess.Popen(command, env=environment, cwd=place, stdout=log, stderr=log)
    for queue in started:
        log_file = place / f"{queue}.log"
        wait_for(lambda file=log_file: " ready." in file.read_text(), f"the worker of {queue} did not start")
    yield {queue: process.pid for queue, process in started.items()}
    for process in started.values():
        process.send_signal(signal.SIGTERM)
    for process in started.values():
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def execute(place: Path, environment: dict[str, str], job: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "celery_steps", "-j", job]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    (place / f"{job}.log").write_text(done.stdout + done.stderr)
    return done


@pytest.fixture(scope="module")
def good(place: Path, environment: dict[str, str], workers: dict[str, int]) -> dict[str, dict[str, int]]:
    """Where each step of a run was executed: its process and its worker's."""
    done = execute(place, environment, "good")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    with dg.DagsterInstance.from_config(str(place / "dagster")) as instance:
        for name in ("heavy", "heavier", "light"):
            event = instance.get_latest_materialization_event(dg.AssetKey(name))
            assert event is not None
            assert event.asset_materialization is not None
            metadata = event.asset_materialization.metadata
            found[name] = {what: int(metadata[what].value) for what in ("pid", "worker")}
    return found


def test_gpu_steps_run_on_the_worker_of_their_queue_and_others_on_the_other(
    good: dict[str, dict[str, int]], workers: dict[str, int]
) -> None:
    assert {name: where["worker"] for name, where in good.items()} == {
        "heavy": workers["gpu"],
        "heavier": workers["gpu"],
        "light": workers["dagster"],
    }


def test_each_step_has_a_process_of_its_own(good: dict[str, dict[str, int]]) -> None:
    assert len({where["pid"] for where in good.values()}) == 3


def test_a_step_whose_process_is_killed_fails_its_run_and_the_worker_goes_on(
    place: Path, environment: dict[str, str], workers: dict[str, int]
) -> None:
    assert execute(place, environment, "bad").returncode != 0
    assert "WorkerLostError" in (place / "bad.log").read_text()

    assert execute(place, environment, "worse").returncode != 0
    assert "the data are bad" in (place / "worse.log").read_text()


def test_the_password_of_the_broker_is_neither_stored_nor_logged(place: Path, good: dict[str, dict[str, int]]) -> None:
    files = [file for file in place.rglob("*") if file.is_file()]
    assert any(file.suffix == ".db" for file in files), "the event storage is among them"

    assert [str(file) for file in files if PASSWORD.encode() in file.read_bytes()] == []


def test_an_asset_of_the_project_is_materialised_by_a_worker(
    place: Path, environment: dict[str, str], workers: dict[str, int]
) -> None:
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "newsjuice_pipelines.definitions"]
    done = subprocess.run(
        [*command, "--select", "huffpost_articles"],
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert list((place / "home/artifacts/huffpost_articles").glob("*/manifest.json"))
    assert 'Submitting celery task for step "huffpost_articles" to queue "dagster"' in done.stdout + done.stderr
