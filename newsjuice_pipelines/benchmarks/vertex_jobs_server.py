"""A local server that speaks the custom job protocol of Vertex AI, with a process of this machine as the container.

It checks requests as the real service does, runs each job's command, and can be told to refuse, to lose an answer, and to take
a machine away. For tests and for trying things out: `with VertexJobsServer(folder) as server`, then `server.url`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")
STOCKOUT = "Resources are insufficient in region: us-central1. Please try a different region or a different accelerator. STOCKOUT"
QUOTA = "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_nvidia_l4_gpus"

_JOBS = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+)/customJobs(?:/(\d+))?(:cancel)?")
_LABEL_FILTER = re.compile(r'labels\.([a-z0-9_-]+)\s*=\s*"([^"]*)"')
_LABEL_KEY, _LABEL_VALUE = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[a-z0-9_-]{0,63}")
_MOST_VARIABLES = 100


@dataclass(frozen=True)
class Refusal:
    """An error answer as Google gives it."""

    code: int
    status: str
    message: str

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "status": self.status, "message": self.message}}


@dataclass
class Job:
    """A custom job and the process that plays its container."""

    resource: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    cancelled: bool = False

    @property
    def state(self) -> str:
        return str(self.resource["state"])

    @property
    def env(self) -> dict[str, str]:
        """The variables of its container, as they were asked for."""
        container = self.resource["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
        return {item["name"]: item["value"] for item in container.get("env", [])}


@dataclass
class Behaviour:
    """What the server does to the next requests."""

    refusals: deque[Refusal] = field(default_factory=deque)
    """Answers to the next requests for a job, in place of one."""
    lost_answers: int = 0
    """So many of the next jobs are made without their maker being told."""
    preemptions: int = 0
    """So many of the next jobs lose their machine when their container has started."""
    unavailable: int = 0
    """So many of the next looks at a job are answered 503."""
    pending_s: float = 0.0
    """Seconds before a container starts."""
    grace_s: float = 10.0
    """Seconds between SIGTERM and SIGKILL for a cancelled container."""


class VertexJobsServer:
    """The server and its record.

    Args:
        folder: gets the output of each container, `ID.log`.
        environment: variables that every container finds in place of its image's own, such as where an object store is.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.environment = folder, dict(environment or {})
        self.behaviour = Behaviour()
        self.jobs: dict[str, Job] = {}
        self.authorizations: set[str] = set()
        """Values of the header that came."""
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> VertexJobsServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        for job in self.jobs.values():
            if job.process is not None and job.process.poll() is None:
                job.process.kill()
                job.process.wait()

    def log(self, job: Job) -> str:
        """What the container of a job wrote to standard output and error."""
        path = self.folder / f"{_id(job)}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def create(self, parent: str, body: dict[str, Any]) -> Job | Refusal:
        """A new job, or why there is none."""
        with self._lock:
            if self.behaviour.refusals:
                return self.behaviour.refusals.popleft()
            if (wrong := _what_is_wrong(body)) is not None:
                return Refusal(400, "INVALID_ARGUMENT", wrong)
            number = str(7_000_000_000_000_000_000 + len(self.jobs))
            now = _now()
            resource = {
                **body,
                "name": f"{parent}/customJobs/{number}",
                "state": "JOB_STATE_PENDING",
                "createTime": now,
                "updateTime": now,
            }
            job = self.jobs[number] = Job(resource)
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return job

    def listed(self, wanted: str) -> list[Job]:
        """The jobs that a filter leaves."""
        labels = dict(_LABEL_FILTER.findall(wanted))
        return [job for job in self.jobs.values() if labels.items() <= job.resource.get("labels", {}).items()]

    def cancel(self, job: Job) -> None:
        """Begin to end a job that has not ended."""
        if job.state in ENDED:
            return
        job.cancelled = True
        self._set(job, "JOB_STATE_CANCELLING")
        if job.process is not None:
            job.process.terminate()

    def _run(self, job: Job) -> None:
        """The life of a job, from its request to its end."""
        deadline = time.monotonic() + self.behaviour.pending_s
        while time.monotonic() < deadline and not job.cancelled:
            time.sleep(0.02)
        if not job.cancelled:
            with self._lock:
                taken_away = self.behaviour.preemptions > 0
                self.behaviour.preemptions -= taken_away
            job.process = self._start(job)
            self._set(job, "JOB_STATE_RUNNING")
            if taken_away:
                job.process.send_signal(signal.SIGKILL)
                job.process.wait()
                self._end(job, "JOB_STATE_FAILED", 8, STOCKOUT)
                return
            self._wait(job, job.process)
        if job.cancelled:
            self._end(job, "JOB_STATE_CANCELLED", 1, "CANCELED")
            return
        assert job.process is not None
        status = job.process.returncode
        if status == 0:
            self._end(job, "JOB_STATE_SUCCEEDED")
            return
        status = 128 - status if status < 0 else status
        reason = f"The replica workerpool0-0 exited with a non-zero status of {status}."
        advice = f"To find out more about why your job exited please check the logs: {self.folder / _id(job)}.log"
        self._end(job, "JOB_STATE_FAILED", 3, f"{reason} {advice}")

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        container = job.resource["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
        command = [*container.get("command", []), *container.get("args", [])]
        if command[0] == "python":  # the image's own
            command[0] = sys.executable
        usual = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with (self.folder / f"{_id(job)}.log").open("wb") as output:
            return subprocess.Popen(
                command, env={**usual, **job.env, **self.environment}, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def _wait(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        """Wait for the container; one that is cancelled gets its grace and is killed then."""
        deadline: float | None = None
        while process.poll() is None:
            if job.cancelled:
                if deadline is None:
                    process.terminate()
                    deadline = time.monotonic() + self.behaviour.grace_s
                elif time.monotonic() > deadline:
                    process.kill()
            time.sleep(0.02)

    def _set(self, job: Job, state: str) -> None:
        with self._lock:
            if job.state not in ENDED and not (job.cancelled and state == "JOB_STATE_RUNNING"):
                job.resource |= {"state": state, "updateTime": _now()}

    def _end(self, job: Job, state: str, code: int = 0, message: str = "") -> None:
        error = {"error": {"code": code, "message": message}} if code else {}
        with self._lock:
            job.resource |= {"state": state, "endTime": _now(), "updateTime": _now(), **error}


def _handler(server: VertexJobsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            path = self._path()
            if path is None:
                return
            parent, number, cancel = path.groups()
            if cancel:
                if (found := self._job(number)) is not None:
                    server.cancel(found)
                    self._answer(200, {})
                return
            made = server.create(parent, body)
            if isinstance(made, Refusal):
                self._answer(made.code, made.body)
            elif server.behaviour.lost_answers:
                server.behaviour.lost_answers -= 1
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self._answer(200, made.resource)

        def do_GET(self) -> None:
            path = self._path()
            if path is None:
                return
            if path.group(2) is None:
                wanted = parse_qs(urlsplit(self.path).query).get("filter", [""])[0]
                self._answer(200, {"customJobs": [job.resource for job in server.listed(wanted)]})
            elif server.behaviour.unavailable:
                server.behaviour.unavailable -= 1
                self._answer(503, Refusal(503, "UNAVAILABLE", "The service is currently unavailable.").body)
            elif (job := self._job(path.group(2))) is not None:
                self._answer(200, job.resource)

        def _path(self) -> re.Match[str] | None:
            """The parts of the address; None when an error was answered."""
            authorization = self.headers.get("Authorization", "")
            server.authorizations.add(authorization)
            found = _JOBS.fullmatch(urlsplit(self.path).path)
            if not authorization.startswith("Bearer "):
                message = f"Request had invalid authentication credentials: {authorization}"
                self._answer(401, Refusal(401, "UNAUTHENTICATED", message).body)
                return None
            if found is None:
                self._answer(404, Refusal(404, "NOT_FOUND", f"no such address: {self.path}").body)
            return found

        def _job(self, number: str) -> Job | None:
            job = server.jobs.get(number)
            if job is None:
                self._answer(404, Refusal(404, "NOT_FOUND", f"The CustomJob {number} does not exist.").body)
            return job

        def _answer(self, status: int, value: Mapping[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """No lines on standard error."""

    return Handler


def _what_is_wrong(body: Mapping[str, Any]) -> str | None:
    """Why the service would answer 400; None for a request that it takes."""
    if not body.get("displayName"):
        return "The display name must not be empty."
    for key, value in body.get("labels", {}).items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            return f"Invalid label: {key}={value}."
    pools = body.get("jobSpec", {}).get("workerPoolSpecs", [])
    if not pools:
        return "The worker pool specs must not be empty."
    container, machine = pools[0].get("containerSpec", {}), pools[0].get("machineSpec", {})
    if not container.get("imageUri") or not machine.get("machineType"):
        return "Image URI and machine type must be set."
    if bool(machine.get("acceleratorType")) != bool(machine.get("acceleratorCount")):
        return "Accelerator type and count must be set together."
    if len(container.get("env", [])) > _MOST_VARIABLES:
        return f"At most {_MOST_VARIABLES} environment variables may be set."
    return None


def _id(job: Job) -> str:
    return str(job.resource["name"]).rpartition("/")[2]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
