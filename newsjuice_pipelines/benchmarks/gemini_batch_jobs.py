"""Batch jobs of the local Gemini server: `batchPredictionJobs` with input and output as JSON lines in folders.

Output is written as Vertex AI writes it: one line a request with `status`, `processed_time`, `request` and `response`, unordered.
"""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

    from newsjuice_pipelines.benchmarks.gemini_answers import Answer
    from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer

_ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")
_FILTER = re.compile(r'(?:display_name|displayName)\s*=\s*"([^"]*)"')


@dataclass
class Job:
    """A batch job; its state follows from the clock when it is asked for."""

    resource: dict[str, Any]
    created_at: float
    """Seconds, `time.monotonic`."""
    failure: str | None = None


class BatchJobs:
    """The jobs of one server. `fail_next` makes the next job fail with that message."""

    def __init__(self, server: GeminiServer) -> None:
        self.server = server
        self.jobs: dict[str, Job] = {}
        self.fail_next: str | None = None

    def add_routes(self, application: web.Application) -> None:
        """The four calls on `/{version}/projects/P/locations/L/batchPredictionJobs`."""
        jobs = r"/{version}/projects/{project}/locations/{location}/batchPredictionJobs"
        application.router.add_post(jobs, self._create)
        application.router.add_get(jobs, self._list)
        application.router.add_get(jobs + r"/{id:\d+}", self._get)
        application.router.add_post(jobs + r"/{id:\d+}:cancel", self._cancel)

    async def _create(self, request: web.Request) -> web.Response:
        from aiohttp import web

        trouble = self.server.prepared_trouble()
        if trouble is not None and trouble.status != 200:
            return web.json_response(trouble.body, status=trouble.status, headers=trouble.headers)
        body = await request.json()
        number = str(1000 + len(self.jobs))
        name = request.path.split("/", 2)[2] + f"/{number}"
        stamp = _now()
        resource = body | {"name": name, "state": "JOB_STATE_PENDING", "createTime": stamp, "updateTime": stamp}
        self.jobs[number] = Job(resource, time.monotonic(), self.fail_next)
        self.fail_next = None
        if trouble is not None and request.transport is not None:  # the job is made, and its maker does not learn it
            request.transport.close()
        return web.json_response(resource)

    async def _list(self, request: web.Request) -> web.Response:
        from aiohttp import web

        found = _FILTER.search(request.query.get("filter", ""))
        resources = [self._current(job) for job in self.jobs.values()]
        chosen = [each for each in resources if not found or each.get("displayName") == found.group(1)]
        return web.json_response({"batchPredictionJobs": chosen} if chosen else {})

    async def _get(self, request: web.Request) -> web.Response:
        from aiohttp import web

        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return _not_found()
        return web.json_response(self._current(job))

    async def _cancel(self, request: web.Request) -> web.Response:
        from aiohttp import web

        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return _not_found()
        resource = self._current(job)
        if resource["state"] not in _ENDED:
            self._write_output(job, share=0.5)
            self._end(job, "JOB_STATE_CANCELLED", {"code": 1, "message": "the job was cancelled"})
        return web.json_response({})

    def _current(self, job: Job) -> dict[str, Any]:
        """The job's resource as of now; its output is written when its time has come."""
        config, age_s = self.server.config, time.monotonic() - job.created_at
        if job.resource["state"] not in _ENDED and age_s >= config.batch_pending_s:
            job.resource["state"] = "JOB_STATE_RUNNING"
            if age_s >= config.batch_pending_s + config.batch_running_s:
                if job.failure is not None:
                    self._end(job, "JOB_STATE_FAILED", {"code": 3, "message": job.failure})
                else:
                    self._write_output(job, share=1.0)
                    self._end(job, "JOB_STATE_SUCCEEDED", None)
        return job.resource

    def _end(self, job: Job, state: str, error: dict[str, Any] | None) -> None:
        stamp = _now()
        job.resource |= {"state": state, "endTime": stamp, "updateTime": stamp} | ({"error": error} if error else {})

    def _write_output(self, job: Job, share: float) -> None:
        """The rows that are done, shuffled; `share` of the input was worked on."""
        from upath import UPath

        config = self.server.config
        source = UPath(job.resource["inputConfig"]["gcsSource"]["uris"][0])
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = []
        for number, line in enumerate(lines[: round(len(lines) * share)], start=1):
            if config.batch_missing_every and number % config.batch_missing_every == 0:
                continue
            rows.append(self._row(number, line["request"]))
        random.Random(config.seed).shuffle(rows)
        prefix = UPath(job.resource["outputConfig"]["gcsDestination"]["outputUriPrefix"])
        folder = prefix / f"prediction-model-{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
        job.resource["outputInfo"] = {"gcsOutputDirectory": folder.as_uri()}
        failed = sum(1 for row in rows if row["status"])
        job.resource["completionStats"] = {"successfulCount": str(len(rows) - failed), "failedCount": str(failed)}

    def _row(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
        answer: Answer = self.server.batch_answer(number, request)
        body = self.server.body_of(answer, request)
        ok = answer.status == 200
        status = "" if ok else json.dumps(body)
        return {"status": status, "processed_time": _now(), "request": request, "response": body if ok else {}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _not_found() -> web.Response:
    from aiohttp import web

    return web.json_response({"error": {"code": 404, "status": "NOT_FOUND", "message": "no such batch job"}}, status=404)
