"""The executor follows the setting; a step tagged as a GPU step asks each of them for a GPU, and other steps do not."""

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._utils.tags import normalize_tags

from newsjuice_pipelines.assets import ALL_ASSETS
from newsjuice_pipelines.automation import executors
from newsjuice_pipelines.automation.executors import celery_config, executor_for
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS, GPU_POOL, GPU_QUEUE
from newsjuice_pipelines.settings import Settings

STEPS = """
import dagster as dg
from newsjuice_pipelines.automation.executors import executor_for
from newsjuice_pipelines.automation.op_tags import GPU_OP_TAGS
from newsjuice_pipelines.settings import load_settings

@dg.asset(op_tags=GPU_OP_TAGS)
def heavy() -> None: ...

@dg.asset(deps=[heavy])
def light() -> None: ...

defs = dg.Definitions([heavy, light], executor=executor_for(load_settings()), jobs=[dg.define_asset_job("both")])
"""


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.mark.parametrize(
    ("name", "executor"), [("in-process", "in_process"), ("multiprocess", "multiprocess"), ("kubernetes", "k8s")]
)
def test_the_executor_follows_the_setting(name: str, executor: str) -> None:
    if name == "kubernetes":
        pytest.importorskip("dagster_k8s", reason="the k8s extra is not installed")

    assert executor_for(settings(executor=name, max_concurrent_steps=3)).name == executor


@pytest.mark.parametrize(("name", "extra"), [("docker", "docker"), ("kubernetes", "k8s"), ("celery", "celery")])
def test_a_missing_package_is_an_error_that_says_how_to_install_it(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(executors.importlib, "import_module", missing)

    with pytest.raises(
        ImportError, match=rf"NEWSJUICE_EXECUTOR={name} needs the {extra} extra: .*newsjuice-pipelines\[{extra}\]"
    ):
        executor_for(settings(executor=name, celery_broker="redis://127.0.0.1/0"))


def test_celery_without_a_broker_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match="NEWSJUICE_CELERY_BROKER"):
        celery_config(settings(executor="celery"))


@pytest.mark.parametrize(
    ("broker", "backend", "chosen"),
    [
        ("redis://host/0", None, "redis://host/0"),
        ("rediss://host/0", None, "rediss://host/0"),
        ("amqp://host//", None, "rpc://"),
        ("amqp://host//", "redis://results/1", "redis://results/1"),
    ],
)
def test_the_result_backend_fits_the_broker_unless_it_is_set(broker: str, backend: str | None, chosen: str) -> None:
    config = celery_config(settings(executor="celery", celery_broker=broker, celery_backend=backend))

    assert (config["broker"], config["backend"]) == (broker, chosen)


def test_every_asset_in_the_gpu_pool_carries_the_one_set_of_gpu_tags() -> None:
    pooled = [asset for asset in ALL_ASSETS if isinstance(asset, dg.AssetsDefinition) and asset.op.pool == GPU_POOL]

    assert pooled
    assert [asset.key for asset in pooled if not normalize_tags(GPU_OP_TAGS).items() <= asset.op.tags.items()] == []


def test_a_gpu_step_on_kubernetes_gets_a_gpu_a_node_that_has_one_and_shared_memory() -> None:
    job = pytest.importorskip("dagster_k8s.job", reason="the k8s extra is not installed")
    made = job.construct_dagster_k8s_job(
        job.DagsterK8sJobConfig(job_image="newsjuice-code", dagster_home="/opt/dagster"),
        args=["dagster"],
        job_name="step",
        user_defined_k8s_config=job.get_user_defined_k8s_config(normalize_tags(GPU_OP_TAGS)),
    )

    pod = made.to_dict()["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert pod["node_selector"] == {"nvidia.com/gpu.present": "true"}
    assert [(found["key"], found["operator"], found["effect"]) for found in pod["tolerations"]] == [
        ("nvidia.com/gpu", "Exists", "NoSchedule")
    ]
    assert "/dev/shm" in {mount["mount_path"] for mount in container["volume_mounts"]}
    assert {volume["name"]: (volume["empty_dir"] or {}).get("medium") for volume in pod["volumes"]}["shm"] == "Memory"


def test_a_gpu_step_on_celery_goes_to_the_queue_of_the_gpu_workers() -> None:
    tags = importlib.import_module("dagster_celery.tags") if importlib.util.find_spec("dagster_celery") else None
    if tags is None:
        pytest.skip("the celery extra is not installed")

    assert GPU_OP_TAGS[tags.DAGSTER_CELERY_QUEUE_TAG] == GPU_QUEUE


class FakeDocker(ThreadingHTTPServer):
    """Speaks as much of the Docker Engine's protocol as the executor needs; a container is a local process."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.created: dict[str, dict[str, Any]] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}


class _Requests(BaseHTTPRequestHandler):
    server: FakeDocker
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/version"):
            self._answer(200, {"ApiVersion": "1.43", "MinAPIVersion": "1.24", "Version": "24.0"})
        else:
            name = path.split("/containers/")[1].removesuffix("/json")
            self._answer(200, {"Id": name, "Name": f"/{name}", "State": {"Status": self._status(name)}, "Image": "sha256:0"})

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if path.endswith("/containers/create"):
            name = query.removeprefix("name=").partition("&")[0]
            self.server.created[name] = body
            self._answer(201, {"Id": name, "Warnings": []})
            return
        name, _, verb = path.split("/containers/")[1].partition("/")
        if verb == "start":
            wanted = self.server.created[name]
            environment = {**os.environ, **dict(item.split("=", 1) for item in wanted["Env"])}
            command = [sys.executable, "-m", *wanted["Cmd"]]  # `dagster api execute_step …`
            self.server.running[name] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            self._answer(204)
        elif verb == "wait":
            self._answer(200, {"StatusCode": self.server.running[name].wait()})
        else:
            self._answer(204)

    def _status(self, name: str) -> str:
        process = self.server.running.get(name)
        return "created" if process is None else "running" if process.poll() is None else "exited"

    def _answer(self, status: int, body: Any = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def docker() -> Iterator[FakeDocker]:
    pytest.importorskip("dagster_docker", reason="the docker extra is not installed")
    server = FakeDocker()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    for process in server.running.values():
        process.kill()
        process.wait()
    server.server_close()


def test_on_docker_only_the_container_of_a_gpu_step_gets_the_gpus(docker: FakeDocker, tmp_path: Path) -> None:
    (tmp_path / "docker_steps.py").write_text(STEPS)
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster/dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "NEWSJUICE_HOME": str(tmp_path / "home"),
        "NEWSJUICE_EXECUTOR": "docker",
        "DAGSTER_CURRENT_IMAGE": "newsjuice-code",
        "DAGSTER_STEP_DELEGATING_EXECUTOR_SLEEP_SECONDS": "0.1",
        "DOCKER_HOST": f"tcp://127.0.0.1:{docker.server_address[1]}",
        "PYTHONPATH": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", "-m", "docker_steps", "-j", "both"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,  # seconds on an idle machine
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    asked = {
        dict(item.split("=", 1) for item in body["Env"])["DAGSTER_RUN_STEP_KEY"]: body["HostConfig"]
        for body in docker.created.values()
    }
    assert {body["Image"] for body in docker.created.values()} == {"newsjuice-code"}
    assert [(found["Driver"], found["Count"], found["Capabilities"]) for found in asked["heavy"]["DeviceRequests"]] == [
        ("nvidia", -1, [["gpu"]])
    ]
    assert asked["heavy"]["ShmSize"] == 8 * 2**30
    assert "DeviceRequests" not in asked["light"]
