"""A local server that speaks the protocol of Gemini on Vertex AI, for tests and measurements: `generateContent` and batch jobs.

It answers with a plausible script of the article in the prompt unless told otherwise, and records every request. It runs in a
thread (`with GeminiServer() as server`) or in its own process (`python -m newsjuice_pipelines.benchmarks.gemini_server`).
Answers are in `gemini_answers.py`, batch jobs in `gemini_batch_jobs.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.benchmarks.gemini_answers import (
    Answer,
    error_answer,
    lost_answer,
    prompt_of,
    script_answer,
    usual_answer,
)

if TYPE_CHECKING:
    from aiohttp import web
    from google.genai import Client

_LONG_S = 3600.0


@dataclass
class Received:
    """A request that arrived."""

    path: str
    prompt: str
    body: dict[str, Any]
    arrived_at: float
    """Seconds, `time.monotonic`."""
    status: int | None = None
    """HTTP status that was decided on; 200 is work that the real service would bill, also where the answer got lost."""
    answered: bool = False
    """Whether the whole answer was sent and the client was still there."""

    @property
    def prompt_sha256(self) -> str:
        return prompt_sha256(self.prompt)


@dataclass(frozen=True)
class ServerConfig:
    """How the server behaves where no answer is prepared. A fault comes in place of each n-th request, 0 for never."""

    latency_s: float = 0.0
    """Seconds until an answer."""
    requests_per_minute: int = 0
    """Beyond these a request is answered 429 with the delay until the next is free; 0 for no limit."""
    most_at_once: int = 0
    """With more requests under way the next is answered 429; 0 for no limit."""
    retry_delay_s: float = 1.0
    """Delay named in the 429 of `most_at_once` and `rate_limited_every`."""
    rate_limited_every: int = 0
    """A 429 with `RetryInfo`."""
    unavailable_every: int = 0
    """A 503."""
    silent_every: int = 0
    """No answer at all."""
    dropped_every: int = 0
    """The connection is closed without an answer."""
    blocked_every: int = 0
    """An answer stopped for safety."""
    token: str | None = None
    """Access token that a request must carry, else it is answered 401; None for any."""
    batch_pending_s: float = 0.0
    """Seconds that a batch job stays pending."""
    batch_running_s: float = 0.2
    """Seconds that it runs."""
    batch_missing_every: int = 0
    """A row of a batch that is not in the output."""
    batch_error_every: int = 0
    """A row of a batch with an error in place of a response."""
    seed: int = 0
    """Order of the rows in the output of a batch."""


def prompt_sha256(prompt: str) -> str:
    """By which `GET /stats` counts requests."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def local_client(url: str, token: str = "token") -> Client:  # noqa: S107  # no secret: the local server takes any
    """A client of google-genai on a local server."""
    from google.genai import Client
    from google.genai.types import HttpOptions
    from google.oauth2.credentials import Credentials

    return Client(
        enterprise=True,
        project="P",
        location="L",
        credentials=Credentials(token),
        http_options=HttpOptions(base_url=url),
    )


class GeminiServer:
    """The server, its prepared answers and its record.

    Args:
        config: behaviour where nothing is prepared.
        rule: called with the request's number (from 1) and its prompt; an `Answer`, or None for the usual behaviour.
        port: 0 for any that is free.
    """

    def __init__(
        self, config: ServerConfig | None = None, rule: Callable[[int, str], Answer | None] | None = None, port: int = 0
    ) -> None:
        from newsjuice_pipelines.benchmarks.gemini_batch_jobs import BatchJobs

        self.config = config or ServerConfig()
        self.rule = rule
        self.port = port
        self.received: list[Received] = []
        self.in_flight = 0
        self.peak_in_flight = 0
        self.jobs = BatchJobs(self)
        self._prepared: deque[Answer] = deque()
        self._accepted_at: deque[float] = deque()
        self._number = 0
        self._closing: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self, *answers: Answer) -> None:
        """Answers for the next requests, in this order, before rule and config."""
        self._prepared.extend(answers)

    def always(self, answer: Answer) -> None:
        """The same answer for every request from now on."""
        self.rule = lambda number, prompt: answer

    def client(self) -> Client:
        """A client on this server."""
        return local_client(self.url)

    def stats(self) -> dict[str, Any]:
        """What `GET /stats` answers: totals, and per prompt (SHA-256) requests, those that were worked on, answers sent."""
        received = list(self.received)
        prompts: dict[str, dict[str, int]] = {}
        for request in received:
            entry = prompts.setdefault(request.prompt_sha256, {"requests": 0, "worked": 0, "answered": 0})
            entry["requests"] += 1
            entry["worked"] += request.status == 200
            entry["answered"] += request.answered and request.status == 200
        return {
            "requests": len(received),
            "worked": sum(entry["worked"] for entry in prompts.values()),
            "answered": sum(entry["answered"] for entry in prompts.values()),
            "statuses": dict(Counter(str(request.status) for request in received)),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "batch_jobs": len(self.jobs.jobs),
            "prompts": prompts,
        }

    def __enter__(self) -> GeminiServer:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(started)), name="gemini-server", daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the local Gemini server did not start within 10 s.")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._loop and self._closing and self._thread:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(10)

    async def serve(self, started: threading.Event | None = None) -> None:
        """Serve until closed; `started` is set, and `port` known, when requests are taken."""
        from aiohttp import web

        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_get("/stats", self._stats)
        application.router.add_post("/prepare", self._prepare)
        self.jobs.add_routes(application)
        application.router.add_post(r"/{path:.*:generateContent}", self._generate)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            # A port of its own choice is read back from the socket.
            await web.TCPSite(runner, "127.0.0.1", self.port, backlog=1024).start()
            self.port = runner.addresses[0][1]
            if started:
                started.set()
            else:
                print(self.port, flush=True)
            await self._closing.wait()
        finally:
            await runner.cleanup()

    def prepared_trouble(self) -> Answer | None:
        """The next prepared answer when it is an error or gets lost; for the creation of a batch job."""
        trouble = bool(self._prepared) and (self._prepared[0].status != 200 or self._prepared[0].lost != "no")
        return self._prepared.popleft() if trouble else None

    def batch_answer(self, number: int, body: dict[str, Any]) -> Answer:
        """What a row of a batch is answered with; it counts as a request for its prompt."""
        prompt = prompt_of(body)
        ruled = self.rule(number, prompt) if self.rule else None
        every = self.config.batch_error_every
        fault = error_answer(500, "INTERNAL") if every and number % every == 0 else None
        answer = ruled or fault or Answer()
        self.received.append(Received("batch", prompt, body, time.monotonic(), answer.status, answered=True))
        return answer

    def body_of(self, answer: Answer, body: dict[str, Any]) -> Any:
        """The answer's body, or the usual one for this request."""
        return usual_answer(prompt_of(body)) if answer.body is None else answer.body

    async def _stats(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.json_response(self.stats())

    async def _prepare(self, request: web.Request) -> web.Response:
        from aiohttp import web

        self.prepare(*(Answer(**entry) for entry in await request.json()))
        return web.json_response({"prepared": len(self._prepared)})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        received = Received(request.path, prompt_of(body), body, time.monotonic())
        self.received.append(received)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            answer = self._answer(request, received)
            received.status = answer.status
            return await self._send(request, received, answer)
        finally:
            self.in_flight -= 1

    def _answer(self, request: web.Request, received: Received) -> Answer:
        """What this request is answered with, decided at its arrival."""
        self._number += 1
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token or (self.config.token is not None and token != self.config.token):
            return error_answer(401, "UNAUTHENTICATED")
        if self._prepared:
            return self._prepared.popleft()
        ruled = self.rule(self._number, received.prompt) if self.rule else None
        return ruled or self._too_fast() or self._fault() or Answer()

    def _too_fast(self) -> Answer | None:
        now = time.monotonic()
        if self.config.most_at_once and self.in_flight > self.config.most_at_once:
            return error_answer(429, "RESOURCE_EXHAUSTED", retry_delay=f"{self.config.retry_delay_s:g}s")
        if self.config.requests_per_minute:
            while self._accepted_at and self._accepted_at[0] <= now - 60:
                self._accepted_at.popleft()
            if len(self._accepted_at) >= self.config.requests_per_minute:
                return error_answer(429, "RESOURCE_EXHAUSTED", retry_delay=f"{self._accepted_at[0] + 60 - now:.3f}s")
            self._accepted_at.append(now)
        return None

    def _fault(self) -> Answer | None:
        config = self.config
        faults: tuple[tuple[int, Callable[[], Answer]], ...] = (
            (
                config.rate_limited_every,
                lambda: error_answer(429, "RESOURCE_EXHAUSTED", retry_delay=f"{config.retry_delay_s:g}s"),
            ),
            (config.unavailable_every, lambda: error_answer(503, "UNAVAILABLE")),
            (config.silent_every, lambda: lost_answer("silent")),
            (config.dropped_every, lambda: lost_answer("unanswered")),
            (config.blocked_every, lambda: script_answer(None, "SAFETY")),
        )
        return next((make() for every, make in faults if every and self._number % every == 0), None)

    async def _send(self, request: web.Request, received: Received, answer: Answer) -> web.StreamResponse:
        from aiohttp import web

        if answer.lost == "silent":
            await self._wait(_LONG_S)
        elif answer.status == 200:  # errors come at once
            await self._wait(self.config.latency_s if answer.latency_s is None else answer.latency_s)
        body = self.body_of(answer, received.body)
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        if answer.lost != "no":
            return await _lose_connection(request, raw, halfway=answer.lost == "halfway")
        response = web.Response(status=answer.status, body=raw, headers={"Content-Type": "application/json", **answer.headers})
        await response.prepare(request)
        await response.write_eof()
        received.answered = request.transport is not None and not request.transport.is_closing()
        return response

    async def _wait(self, seconds: float) -> None:
        """Until then, or until the server closes."""
        if seconds > 0 and self._closing is not None:
            try:
                await asyncio.wait_for(self._closing.wait(), seconds)
            except TimeoutError:
                return


async def _lose_connection(request: web.Request, raw: bytes, *, halfway: bool) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(raw))})
    if halfway:
        await response.prepare(request)
        await response.write(raw[: len(raw) // 2])
        await asyncio.sleep(0.01)
    if request.transport is not None:
        request.transport.close()
    return response


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve in this process until it is ended; the first line of output is the port."""
    parser = argparse.ArgumentParser(description=GeminiServer.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    for name, option in ServerConfig.__dataclass_fields__.items():
        kind = {"int": int, "float": float}.get(str(option.type), str)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=option.default)
    chosen = vars(parser.parse_args(arguments))
    port = chosen.pop("port")
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        asyncio.run(GeminiServer(ServerConfig(**chosen), port=port).serve())
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
