"""Engines run a model for inference: token ids in, scripts out. What the scripts are used for is elsewhere.

Every engine decodes greedily unless told otherwise and stops at the model's end token. Prompts are encoded by the caller
with the model's own tokenizer and chat template, so that all engines see the same ids.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

from newsjuice_pipelines.runtime.devices import Device, best_device

logger = logging.getLogger("newsjuice.engines")

FinishReason = Literal["eos", "length", "error"]

ENGINES = {
    "reference": "newsjuice_pipelines.podcast.engines.reference:ReferenceEngine",
    "transformers": "newsjuice_pipelines.podcast.engines.transformers_batch:TransformersBatchEngine",
    "openvino": "newsjuice_pipelines.podcast.engines.openvino_genai:OpenvinoEngine",
    "vllm": "newsjuice_pipelines.podcast.engines.openai_server:OpenAIServerEngine",
}
QUANTISED = "openvino"  # the engine that runs the files of a quantised model
REMOTE = "vllm"  # the engine that asks a server
GATE_FILE = "gate.json"


class EngineError(ValueError):
    """An engine cannot be opened, or cannot do what a request asks."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer, as token ids of the model's own tokenizer and chat template.

    The answer ends with the model's end-of-turn token or after `max_new_tokens`.
    """

    request_id: str
    tokens: tuple[int, ...]
    max_new_tokens: int = 400

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise EngineError(f"max_new_tokens of request {self.request_id!r} is {self.max_new_tokens}: ask for at least 1.")
        if not self.tokens:
            raise EngineError(f"request {self.request_id!r} has no prompt tokens: encode its prompt with the chat template.")


@dataclass(frozen=True)
class Result:
    """The answer to one request, or the error that it ended in (then `tokens` and `text` are empty).

    `tokens` and `new_tokens` include the end token. `latency_s` runs from the moment the engine took the request up to
    the last token, `ttft_s` up to the first; in a batch both include the work on its neighbours.
    """

    request_id: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    ttft_s: float | None
    latency_s: float | None
    error: str | None = None

    @property
    def new_tokens(self) -> int:
        """Number of tokens generated."""
        return len(self.tokens)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine decodes. Anything but a default is refused by an engine that would ignore it."""

    concurrent_requests: int | None = None
    """Requests that run at once; None is the engine's default."""
    prompt_lookup_tokens: int = 0
    """Tokens guessed ahead from the prompt and checked in one pass, which keeps the text, but for rounding where weights are
    quantised; 0 switches it off."""
    prefix_cache: bool = False
    """Keep what requests share at the beginning of their prompts, such as an instruction, instead of reading it each time."""
    temperature: float = 0.0
    """Above 0, tokens are drawn at random at this temperature; 0 takes the most probable one."""
    repetition_penalty: float = 1.0
    """Divides the scores of tokens that came before; 1 leaves them alone."""
    seed: int = 42
    """Of the random draws; without a temperature it changes nothing."""
    server_url: str | None = None
    """Address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    server_model: str | None = None
    """Name of the model on that server; None takes the only one there is."""

    def __post_init__(self) -> None:
        if self.concurrent_requests is not None and self.concurrent_requests < 1:
            raise EngineError(f"concurrent_requests is {self.concurrent_requests}: it must be at least 1.")
        if self.prompt_lookup_tokens < 0:
            raise EngineError(f"prompt_lookup_tokens is {self.prompt_lookup_tokens}: it must be at least 0.")
        if not 0 <= self.temperature < math.inf:
            raise EngineError(f"temperature is {self.temperature}: it must be a number of at least 0.")
        if not 0 < self.repetition_penalty < math.inf:
            raise EngineError(f"repetition_penalty is {self.repetition_penalty}: it must be a number above 0; 1 switches it off.")
        if not 0 <= self.seed < 2**32:
            raise EngineError(f"seed is {self.seed}: it must be at least 0 and below 2**32.")


@dataclass(frozen=True)
class Capabilities:
    """What an engine is and can do: its name, device, number format, how many requests it runs at once, TTFT or not."""

    engine: str
    device: str
    dtype: str
    concurrent_requests: int
    measures_ttft: bool
    context_tokens: int


class Engine(Protocol):
    """Runs one model. Results come in the order of completion, one for every request."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer `requests`; a request that cannot be answered gives a result with `finish_reason` error."""
        ...

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        ...

    def close(self) -> None:
        """Free the model's memory. The engine is not usable afterwards."""
        ...


def open_engine(
    name: str,
    model: Path,
    *,
    quantised: Path | None = None,
    device: str | None = None,
    options: EngineOptions | None = None,
    api_key: str | None = None,
) -> Engine:
    """Load `model` into an engine.

    Args:
        name: a key of `ENGINES`, or `auto` for the default of the device.
        model: a local model folder with tokenizer and chat template.
        quantised: the folder of its quantised form, which only the engine `openvino` runs.
        device: `cpu` or `cuda`; None takes the best one there is that the engine runs on.
        options: how to decode.
        api_key: of the server; only the engine `vllm` sends it.

    Raises:
        EngineError: an unknown engine, a device that is not there, a quantised model that is missing, or an option that
            this engine would ignore.
    """
    options = options or EngineOptions()
    best = best_device()
    if device is not None and device not in ("cpu", best.type):
        raise EngineError(f"the device {device!r} is not there: this machine has {best.type} ({best.name}).")
    target = best if device in (None, best.type) else Device("cpu", "CPU", "float32")
    chosen, why = default_engine(target.type, quantised) if name == "auto" else (name, "as asked for")
    if chosen not in ENGINES:
        raise EngineError(f"there is no engine {name!r}: choose auto, {' or '.join(ENGINES)}.")
    if chosen == QUANTISED:
        if quantised is None:
            raise EngineError("the engine openvino runs a quantised model: materialise the asset 'quantised_model' first.")
        model, target = quantised, Device("cpu", "CPU", "int8")
    module, _, factory = ENGINES[chosen].partition(":")
    secret = {"api_key": api_key} if chosen == REMOTE else {}
    engine: Engine = getattr(importlib.import_module(module), factory)(model, target, options, **secret)
    can = engine.capabilities()
    logger.info("engine: %s (%s) on %s, %s, %d requests at once", can.engine, why, can.device, can.dtype, can.concurrent_requests)
    return engine


def default_engine(device: str, quantised: Path | None) -> tuple[str, str]:
    """The engine that `auto` takes on `cpu` or `cuda`, and why. A quantised model whose gate did not pass is no default."""
    if device != "cpu":
        return "transformers", "the default on a GPU"
    if quantised is None:
        return "transformers", "the default on a CPU without a quantised model"
    if importlib.util.find_spec("openvino_genai") is None:
        return "transformers", "the extra cpu-engine is not installed"
    try:
        passed = json.loads((quantised / GATE_FILE).read_text(encoding="utf-8"))["passed"]
    except (OSError, ValueError, KeyError, TypeError):
        return "transformers", "the quantised model has no readable gate"
    if passed is not True:
        return "transformers", f"the quantised model's gate {'failed' if passed is False else 'was not measured'}"
    return QUANTISED, "the default on a CPU"


def refuse_ignored(engine: str, options: EngineOptions, heeded: Sequence[str]) -> None:
    """Raise `EngineError` when `options` sets what this engine does not heed."""
    defaults = EngineOptions()
    for item in fields(EngineOptions):
        value = getattr(options, item.name)
        if value != getattr(defaults, item.name) and item.name not in heeded:
            raise EngineError(f"the {engine} engine would ignore {item.name}={value!r}: leave it out, or choose another engine.")
