"""Engines run a model for inference: chat prompts in, scripts out, greedily. What the scripts are used for is elsewhere.

Every engine gives the tokens that plain greedy decoding gives, except for `onnx_genai`, which quantises the model; they
differ in speed and in what they can measure.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from newsjuice_pipelines.podcast.training.chat_tokens import Message
from newsjuice_pipelines.runtime.devices import Device, best_device

logger = logging.getLogger("newsjuice.engines")

FinishReason = Literal["eos", "length", "error"]

ENGINES = {
    "reference": "newsjuice_pipelines.podcast.engines.reference:ReferenceEngine",
    "transformers_batch": "newsjuice_pipelines.podcast.engines.transformers_batch:TransformersBatchEngine",
    "onnx_genai": "newsjuice_pipelines.podcast.engines.onnx_genai:OnnxGenaiEngine",
}
DEFAULT_ENGINE = {"cpu": "transformers_batch", "cuda": "transformers_batch"}
ONE_AT_A_TIME = ("reference", "onnx_genai")
CPU_ONLY = ("onnx_genai",)


class EngineError(ValueError):
    """An engine cannot be opened, or cannot do what a request asks."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer. Decoding is greedy and ends with the model's end-of-turn token or after `max_new_tokens`."""

    request_id: str
    prompt: Sequence[Message]
    max_new_tokens: int = 400

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise EngineError(f"max_new_tokens of request {self.request_id!r} is {self.max_new_tokens}: ask for at least 1.")


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


def open_engine(name: str, model: Path, device: str | None = None, concurrent_requests: int | None = None) -> Engine:
    """Load `model` into an engine.

    Args:
        name: a key of `ENGINES`, or `auto` for the default of the device.
        model: a local model folder with tokenizer and chat template.
        device: `cpu` or `cuda`; None takes the best one there is that the engine runs on.
        concurrent_requests: how many requests run at once; None is the engine's default. Only for batching engines.

    Raises:
        EngineError: an unknown engine, a device that is not there, or an option that this engine would ignore.
    """
    best = best_device()
    if device is not None and device not in ("cpu", best.type):
        raise EngineError(f"the device {device!r} is not there: this machine has {best.type} ({best.name}).")
    target = best if device in (None, best.type) else Device("cpu", "CPU", "float32")
    chosen = DEFAULT_ENGINE[target.type] if name == "auto" else name
    if chosen not in ENGINES:
        raise EngineError(f"there is no engine {name!r}: choose auto, {' or '.join(ENGINES)}.")
    if chosen in ONE_AT_A_TIME and concurrent_requests not in (None, 1):
        raise EngineError(f"the {chosen} engine runs one request at a time: leave concurrent_requests={concurrent_requests} out.")
    if chosen in CPU_ONLY and device is None and target.type != "cpu":
        target = Device("cpu", "CPU", "float32")
    module, _, factory = ENGINES[chosen].partition(":")
    options = {} if concurrent_requests is None or chosen in ONE_AT_A_TIME else {"concurrent_requests": concurrent_requests}
    engine: Engine = getattr(importlib.import_module(module), factory)(model, target, **options)
    can = engine.capabilities()
    logger.info("engine: %s on %s, %s, %d requests at once", can.engine, can.device, can.dtype, can.concurrent_requests)
    return engine
