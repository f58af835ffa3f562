"""Any OpenAI-compatible server (vLLM, SGLang, llama.cpp …) as an engine: token ids sent, answers streamed back.

The server runs elsewhere and is not started here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import Capabilities, EngineError, EngineOptions, Request, Result, refuse_ignored
from newsjuice_pipelines.podcast.engines.completion_stream import (
    Connections,
    ServerError,
    completion_events,
    http_client,
    problem_of,
    served_models,
    well_formed,
    without_key,
)
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel
from newsjuice_pipelines.runtime.devices import Device

logger = logging.getLogger("newsjuice.engines")

HEEDED = ("concurrent_requests", "temperature", "seed", "server_url", "server_model")
CONCURRENT_REQUESTS = 32
ATTEMPTS = 2
BACK_OFF_S, LONGEST_BACK_OFF_S = 1.0, 30.0


class OpenAIServerEngine:
    """Sends prompts as token ids to `/completions` of a server and measures the time to the first token of each answer.

    The server must serve the model of the folder: only token ids are sent, and its tokenizer is not asked. A server that
    gives no token ids back (vLLM and SGLang do, llama.cpp does not) has its text encoded again, and the end token added
    where the server says that it stopped; the ids can then differ from those generated where a text has several encodings.

    Args:
        model: the folder of the served model; tokenizer and limits are read from it, its weights are not.
        device: not used, as the server has its own.
        options: `server_url` is needed; see `EngineOptions`.
        api_key: sent as a bearer token, never logged or shown.

    Raises:
        EngineError: no usable address, no server there, a key that it refuses, or a model that it does not serve.
    """

    def __init__(self, model: Path, device: Device, options: EngineOptions, api_key: str | None = None) -> None:
        refuse_ignored("vllm", options, HEEDED)
        self._loaded = LoadedModel.without_weights(model, Device("server", "", "as served"))
        self._concurrent = options.concurrent_requests or CONCURRENT_REQUESTS
        self._connections = Connections()
        self._client, self._address = http_client(options.server_url, api_key, self._concurrent)
        try:
            models = served_models(self._client, self._address, self._connections)
            served, context_tokens = _choose(models, options.server_model, self._address)
        except BaseException:
            self._client.close()
            raise
        self._fields = _standard_fields(served, options, self._loaded)
        self._extra_fields = _extra_fields(options, self._loaded)
        self._extra_fields_taken = False
        if context_tokens is not None:
            self._loaded.context_tokens = min(self._loaded.context_tokens, context_tokens)

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        loaded = self._loaded
        return Capabilities(
            "vllm", f"server: {self._address}", loaded.device.dtype, self._concurrent, True, loaded.context_tokens
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests in the order of their completion."""
        stopped, done = threading.Event(), False
        pool = ThreadPoolExecutor(self._concurrent, thread_name_prefix="newsjuice-server")
        try:
            refused = {position: self._loaded.unanswerable(request) for position, request in enumerate(requests)}
            asked: dict[Future[_Answer | str], Request] = {
                pool.submit(self._ask, request, stopped): request
                for position, request in enumerate(requests)
                if refused[position] is None
            }
            yield from (result for result in refused.values() if result is not None)
            for future in as_completed(asked):
                yield self._result(asked[future], future.result())
            done = True
        finally:
            stopped.set()
            if not done:
                # Whoever stops reading early does not wait for a silent server. Should another call be under way, its
                # requests are sent once more.
                self._connections.break_off()
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, request: Request, stopped: threading.Event) -> _Answer | str:
        """The server's answer, or what went wrong. What may pass is tried once more."""
        import httpx

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._stream(request, stopped)
            except (ServerError, httpx.HTTPError) as error:
                problem = problem_of(error, self._client)
            if stopped.is_set() or not problem.passing or attempt == ATTEMPTS:
                break
            logger.warning("request %s is sent once more: %s", request.request_id, problem.text)
            stopped.wait(min(problem.retry_after_s or BACK_OFF_S, LONGEST_BACK_OFF_S))
        return problem.text

    def _stream(self, request: Request, stopped: threading.Event) -> _Answer:
        body = {**self._fields, "prompt": list(request.tokens), "max_tokens": request.max_new_tokens}
        extra = self._extra_fields
        try:
            answer = self._read({**body, **extra}, stopped)
            self._extra_fields_taken = True
            return answer
        except ServerError as error:
            if error.status not in (400, 422) or not extra or self._extra_fields_taken:
                raise
        # A server that is strict about fields of others: without them its answers are encoded again.
        answer = self._read(body, stopped)
        if self._extra_fields:
            logger.warning("%s takes the fields of OpenAI only: token ids are made from its text", self._address)
            self._extra_fields = {}
        return answer

    def _read(self, body: dict[str, Any], stopped: threading.Event) -> _Answer:
        answer = _Answer(time.perf_counter())
        for choice in completion_events(self._client, body, self._connections.watch(stopped)):
            if stopped.is_set():
                break
            answer.add(choice)
        answer.finished_at = time.perf_counter()
        if answer.finish_reason not in ("stop", "length"):
            passing = answer.finish_reason is None
            reason = without_key(str(answer.finish_reason), self._client)[:40]
            raise ServerError(f"the answer broke off (finish reason {reason!r})", passing=passing)
        return answer

    def _result(self, request: Request, answer: _Answer | str) -> Result:
        loaded = self._loaded
        if isinstance(answer, str):
            return loaded.failure(request, len(request.tokens), answer)
        text = well_formed("".join(answer.text))
        for token in loaded.tokenizer.convert_ids_to_tokens(loaded.end_ids):
            text = text.removesuffix(token)
        tokens = answer.tokens or loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        if answer.finish_reason == "stop" and (not tokens or tokens[-1] not in loaded.end_ids):
            tokens = [*tokens, loaded.tokenizer.eos_token_id]
        if not tokens:
            return loaded.failure(request, len(request.tokens), "the server sent an answer without text")
        if not 0 <= min(tokens) <= max(tokens) < (loaded.vocabulary_tokens or 0):
            return loaded.failure(request, len(request.tokens), "the server sent unknown token ids: it runs another model")
        first_at = answer.first_token_at or answer.finished_at
        result = loaded.answer(
            request, len(request.tokens), tokens, first_at - answer.started_at, answer.finished_at - answer.started_at
        )
        return result if answer.tokens else replace(result, text=text.strip())


@dataclass
class _Answer:
    """What a server has sent of one answer, with the times in seconds of the process clock."""

    started_at: float
    first_token_at: float | None = None
    finished_at: float = 0.0
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        text, tokens = choice.get("text") or "", choice.get("token_ids") or []
        if self.first_token_at is None and (text or tokens):
            self.first_token_at = time.perf_counter()
        self.text.append(text)
        self.tokens.extend(tokens)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason


def _standard_fields(served: str, options: EngineOptions, loaded: LoadedModel) -> dict[str, Any]:
    """Fields that OpenAI's own interface has. The end tokens as text stop a server that does not know them by itself."""
    ends = loaded.tokenizer.convert_ids_to_tokens(loaded.end_ids)
    fields = {"model": served, "stream": True, "temperature": options.temperature, "seed": options.seed, "stop": ends[:4]}
    return fields | ({"top_p": 1.0} if options.temperature > 0 else {})


def _extra_fields(options: EngineOptions, loaded: LoadedModel) -> dict[str, Any]:
    """Fields of vLLM and SGLang, some of llama.cpp too; others mostly ignore them.

    Left out, a server takes penalties and sampling settings from its own or the model's configuration.
    """
    fields: dict[str, Any] = {
        "stop_token_ids": loaded.end_ids,
        "return_token_ids": True,
        "repetition_penalty": 1.0,
        "repeat_penalty": 1.0,
    }
    return fields | ({"top_k": 0, "min_p": 0.0} if options.temperature > 0 else {})


def _choose(models: dict[str, int | None], wanted: str | None, address: str) -> tuple[str, int | None]:
    """The model to ask for and its context in tokens, when the server tells it."""
    names = ", ".join(sorted(models)[:10]) or "none"
    if wanted is None and len(models) != 1:
        raise EngineError(f"{address} serves several models or none ({names}): set server_model to one of them.")
    if wanted is not None and wanted not in models:
        raise EngineError(f"{address} does not serve the model {wanted!r}, but {names}: correct server_model.")
    name = wanted or next(iter(models))
    return name, models[name]
