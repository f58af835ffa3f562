"""A quantised model on the CPU through OpenVINO GenAI: one request as fast as can be, or many at once. Extra `cpu-engine`.

It runs the GGUF file of a folder that `podcast/quantising` has made; making and judging that file is not done here.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import (
    GATE_FILE,
    Capabilities,
    EngineError,
    EngineOptions,
    Request,
    Result,
    refuse_ignored,
)
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel, most_tokens, of_like_length
from newsjuice_pipelines.podcast.quantising.gguf_export import FILES
from newsjuice_pipelines.runtime.devices import Device
from newsjuice_pipelines.runtime.provenance import file_fingerprint

logger = logging.getLogger("newsjuice.engines")

HEEDED = ("concurrent_requests", "prompt_lookup_tokens", "prefix_cache", "temperature", "seed", "repetition_penalty")
CONCURRENT_REQUESTS = 8
ATTEMPTS = 2
BLOCK_TOKENS = 32  # of OpenVINO's cache on a CPU
STEP_TOKENS = 2048
# The cache is laid out when the model is loaded, and once more when longer requests come.
FIRST_CACHE_TOKENS = 1024
LOOKUP_NGRAM_TOKENS = 3


@dataclass
class _Running:
    """A request that is being answered among others."""

    request: Request
    started: float
    handle: Any = None
    tokens: list[int] = field(default_factory=list)
    ttft_s: float | None = None


class _NotLoadedError(Exception):
    """OpenVINO cannot load the model."""


class OpenvinoEngine:
    """Runs several requests at once, or one after another when told so, which is faster for a single one.

    When OpenVINO fails, the requests that were running are run once more, one at a time, then reported as errors.

    With `prompt_lookup_tokens` it guesses the next tokens from the prompt and checks them in one pass. Each of these ways
    rounds a little differently, so that two equally likely tokens may change places; with weights in float16 they agree.
    A temperature draws from the seed anew for each request, so that an answer does not depend on its neighbours.

    Args:
        model: a folder with the GGUF file, tokenizer and configuration of a quantised model.
        device: the CPU.
        options: how to decode.

    Raises:
        EngineError: the extra is not installed, the device is no CPU, the folder has no GGUF file or a damaged one, or an
            option would be ignored.
    """

    def __init__(self, model: Path, device: Device, options: EngineOptions) -> None:
        if device.type != "cpu":
            raise EngineError(f"the openvino engine runs on the CPU, not on {device.type}: leave the device out or say cpu.")
        refuse_ignored("openvino", options, HEEDED)
        if options.prompt_lookup_tokens:
            if options.concurrent_requests not in (None, 1):
                raise EngineError(
                    f"prompt lookup runs one request at a time, not {options.concurrent_requests}: leave concurrent_requests "
                    "out, or set prompt_lookup_tokens to 0."
                )
            if options.temperature > 0:
                raise EngineError(
                    "prompt lookup keeps the text of greedy decoding only: set temperature or prompt_lookup_tokens to 0."
                )
        self._options = options
        self._concurrent = 1 if options.prompt_lookup_tokens else options.concurrent_requests or CONCURRENT_REQUESTS
        self._genai = _import_genai()
        self._file, self._precision = _gguf_file(model)
        self._loaded = LoadedModel.without_weights(model, device)
        self._cache_blocks = 0
        self._numbers = 0  # request numbers are never used twice
        try:
            self._open([min(FIRST_CACHE_TOKENS, self._loaded.context_tokens)] * self._concurrent)
        except _NotLoadedError as error:
            raise EngineError(f"OpenVINO cannot read {self._file} ({error}): {_AGAIN}.") from error

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        device = self._loaded.device
        return Capabilities(
            "openvino", f"{device.type}: {device.name}", self._precision, self._concurrent, True, self._loaded.context_tokens
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests, in the order of their completion."""
        todo: list[Request] = []
        for request in requests:
            refused = self._loaded.unanswerable(request)
            if refused is not None:
                yield refused
            else:
                todo.append(request)
        parts = [(todo, self._concurrent, ATTEMPTS)] if todo else []
        while parts:
            requests, places, attempts = parts.pop(0)
            waiting = deque(requests)
            try:
                lost, why = yield from self._run(waiting, places)
            except _NotLoadedError as error:
                unanswered = [*requests, *(request for part in parts for request in part[0])]
                yield from (self._failure(request, f"OpenVINO cannot load the model: {error}") for request in unanswered)
                return
            if attempts == 1:
                yield from (self._failure(request, f"OpenVINO failed: {why}") for request in lost)
                continue
            if lost:
                logger.warning("OpenVINO failed (%s): %d requests are run once more, one at a time", why, len(lost))
            # The shortest first, so that a request too long for the memory takes no room while others run.
            alone = [([request], 1, attempts - 1) for request in sorted(lost, key=most_tokens)]
            parts = [*alone, *((alike, places, attempts) for alike in of_like_length(waiting, most_tokens)), *parts]

    def close(self) -> None:
        """Free the model's memory."""
        self._loaded.model = None
        gc.collect()

    def _open(self, tokens: Iterable[int]) -> None:
        """Load the model, unless it is there with a cache for requests of so many `tokens` at once.

        Raises:
            _NotLoadedError: it cannot be loaded.
        """
        loaded = self._loaded
        # What prompt lookup guesses stands in the cache until it is checked.
        blocks = sorted(math.ceil((count + self._options.prompt_lookup_tokens) / BLOCK_TOKENS) + 1 for count in tokens)
        needed = sum(blocks) + (blocks[-1] if self._options.prefix_cache else 0)  # room for what is kept
        if loaded.model is not None and (self._plain or needed <= self._cache_blocks):
            return
        import torch

        loaded.model = None  # before the next one takes its memory
        started = time.perf_counter()
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            if self._plain:
                way: dict[str, Any] = {"ATTENTION_BACKEND": "SDPA"}
                loaded.model = self._genai.LLMPipeline(str(self._file), "CPU", **way, **threads)
            elif self._concurrent == 1:
                way = {"prompt_lookup": True} if self._options.prompt_lookup_tokens else {}
                way["scheduler_config"] = self._scheduler(needed)
                loaded.model = self._genai.LLMPipeline(str(self._file), "CPU", **way, **threads)
            else:
                loaded.model = self._genai.ContinuousBatchingPipeline(str(self._file), self._scheduler(needed), "CPU", threads)
        except RuntimeError as error:  # the one type that OpenVINO raises
            raise _NotLoadedError(_first_line(error)) from error
        self._cache_blocks = needed
        logger.info("loaded %s in %.1f s", self._file.name, time.perf_counter() - started)

    @property
    def _plain(self) -> bool:
        """Whether the plain attention serves, which is faster for one request; the other one has prompt lookup and prefixes."""
        return self._concurrent == 1 and not self._options.prompt_lookup_tokens and not self._options.prefix_cache

    def _scheduler(self, blocks: int) -> Any:
        # Given for prompt lookup too: without one, OpenVINO would keep prefixes unasked.
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = blocks
        scheduler.max_num_seqs = self._concurrent
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.enable_prefix_caching = self._options.prefix_cache
        return scheduler

    def _run(self, waiting: deque[Request], places: int) -> Generator[Result, None, tuple[list[Request], str]]:
        """Answer `waiting`, so many at once, until done or until OpenVINO fails: then say which requests were lost, and why.

        Those that had not begun are left in `waiting`.

        Raises:
            _NotLoadedError: the model cannot be loaded.
        """
        self._open(sorted(map(most_tokens, waiting))[-places:])
        running: list[_Running] = []
        pipeline = self._loaded.model
        try:
            while waiting or running:
                try:
                    results = self._step(pipeline, waiting, running, places)
                except RuntimeError as error:
                    # What is left in the pipeline is unknown: it is not used again.
                    self._loaded.model = None
                    lost = [one.request for one in running]
                    running.clear()
                    return lost, _first_line(error)
                yield from results
        finally:
            # A caller that stops early leaves requests behind, which must not run on beside the next ones.
            begun = [one for one in running if one.handle is not None]
            for one in begun:
                one.handle.stop()
            if begun and pipeline.has_non_finished_requests():
                pipeline.step()
        return [], ""

    def _step(self, pipeline: Any, waiting: deque[Request], running: list[_Running], places: int) -> list[Result]:
        """Let `running` go on by a token, joined by some of `waiting` where places are free; the results of those that ended.

        The pipeline for one request at a time gives its whole answer.
        """
        if self._concurrent == 1:
            running.append(_Running(waiting.popleft(), time.perf_counter()))
            result = self._answer(pipeline, running[0].request)
            running.clear()
            return [result]
        # No more than there are places, since the scheduler itself would start all of them.
        while waiting and len(running) < places:
            self._numbers += 1
            running.append(_Running(waiting.popleft(), time.perf_counter()))
            request = running[-1].request
            running[-1].handle = pipeline.add_request(self._numbers, self._ids(request), self._decoding(request))
        pipeline.step()
        ended = [one for one in running if self._read(one)]
        if not ended and not pipeline.has_non_finished_requests():
            ended = running[:]
        running[:] = [one for one in running if one not in ended]
        return [self._result(one) for one in ended]

    def _answer(self, pipeline: Any, request: Request) -> Result:
        clock = _first_token_clock(self._genai)
        started = time.perf_counter()
        found = pipeline.generate(self._inputs(request), self._decoding(request), clock)
        latency_s = time.perf_counter() - started
        ttft_s = None if clock.first_token_at is None else clock.first_token_at - started
        return self._loaded.answer(request, len(request.tokens), list(found.tokens[0]), ttft_s, latency_s)

    def _read(self, one: _Running) -> bool:
        """Take over the new tokens of a request; True when it has ended."""
        ended: bool = one.handle.get_status() != self._genai.GenerationStatus.RUNNING
        while one.handle.can_read():
            for output in one.handle.read().values():
                one.tokens += output.generated_ids
            if one.tokens and one.ttft_s is None:
                one.ttft_s = time.perf_counter() - one.started
        return ended

    def _result(self, one: _Running) -> Result:
        status = one.handle.get_status()
        if status != self._genai.GenerationStatus.FINISHED:
            return self._failure(
                one.request, f"OpenVINO gave the request up ({status.name.lower()}) after {len(one.tokens)} tokens"
            )
        return self._loaded.answer(
            one.request, len(one.request.tokens), one.tokens, one.ttft_s, time.perf_counter() - one.started
        )

    def _failure(self, request: Request, error: str) -> Result:
        return self._loaded.failure(request, len(request.tokens), error)

    def _decoding(self, request: Request) -> Any:
        options = self._options
        decoding = self._genai.GenerationConfig()
        decoding.max_new_tokens = request.max_new_tokens
        decoding.stop_token_ids = set(self._loaded.end_ids)
        decoding.repetition_penalty = options.repetition_penalty
        decoding.do_sample = options.temperature > 0
        if decoding.do_sample:
            decoding.temperature = options.temperature
            decoding.rng_seed = options.seed % 2**32
        if options.prompt_lookup_tokens:
            decoding.num_assistant_tokens = options.prompt_lookup_tokens
            decoding.max_ngram_size = LOOKUP_NGRAM_TOKENS
        return decoding

    def _inputs(self, request: Request) -> Any:
        import numpy as np
        import openvino

        ids = self._ids(request)
        return self._genai.TokenizedInputs(ids, openvino.Tensor(np.ones(ids.shape, dtype=np.int64)))

    def _ids(self, request: Request) -> Any:
        import numpy as np
        import openvino

        return openvino.Tensor(np.array([request.tokens], dtype=np.int64))


_AGAIN = "materialise quantised_model again"


def _gguf_file(model: Path) -> tuple[Path, str]:
    """The GGUF file of a quantised model and its number format, once its checksum has been found right.

    OpenVINO itself reads a file that was cut short without an error and answers with nonsense.
    """
    record = model / GATE_FILE
    gate = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    found = [(model / name, precision) for precision, name in FILES.items() if (model / name).is_file()]
    if len(found) != 1:
        why = gate.get("why") if gate.get("file", "") is None else f"it holds {len(found)} of {', '.join(FILES.values())}"
        raise EngineError(f"{model} has no GGUF file to run ({why}): {_AGAIN}, or choose another engine.")
    file, precision = found[0]
    if "sha256" in gate and file_fingerprint(file) != gate["sha256"]:
        raise EngineError(f"{file} is damaged (its SHA-256 is not the one in {GATE_FILE}): {_AGAIN}.")
    return file, precision


def _import_genai() -> Any:
    """The package, without the report of each import to the vendor's Google Analytics, which is on by default.

    OpenVINO's Python package falls back to a stub of its own when openvino_telemetry cannot be imported.
    """
    hidden = "openvino_telemetry"
    missing = object()
    before = sys.modules.get(hidden, missing)
    sys.modules[hidden] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        return importlib.import_module("openvino_genai")
    except ImportError as error:
        raise EngineError(
            f"the engine openvino needs the package openvino-genai ({error}): pip install 'newsjuice-pipelines[cpu-engine]'."
        ) from error
    finally:
        if before is missing:
            del sys.modules[hidden]
        else:
            sys.modules[hidden] = before  # type: ignore[assignment]


def _first_token_clock(genai: Any) -> Any:
    """A streamer that notes when the first new token was there."""

    class FirstTokenClock(genai.StreamerBase):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            super().__init__()
            self.first_token_at: float | None = None

        def write(self, token: Any) -> Any:
            if self.first_token_at is None:
                self.first_token_at = time.perf_counter()
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing to close."""

    return FirstTokenClock()


def _first_line(error: BaseException) -> str:
    """The message of an OpenVINO error without the places in its source that it starts with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in lines if not line.startswith(("Check ", "Exception from"))), lines[0] if lines else "no message"
    )
