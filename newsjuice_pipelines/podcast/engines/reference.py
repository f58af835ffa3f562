"""The reference engine: plain `generate`, one request at a time. The others are held against it, in text and speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import Capabilities, EngineError, EngineOptions, Request, Result, refuse_ignored
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel
from newsjuice_pipelines.runtime.devices import Device

HEEDED = ("prompt_lookup_tokens", "temperature", "seed", "repetition_penalty")


class ReferenceEngine:
    """Greedy `generate` for one request after another; measures the time to the first token of each.

    With `prompt_lookup_tokens` it guesses the next tokens from the prompt and checks them in one pass, which keeps the text.
    A temperature draws from the seed anew for each request, so that an answer does not depend on its neighbours.
    """

    def __init__(self, model: Path, device: Device, options: EngineOptions) -> None:
        if options.concurrent_requests not in (None, 1):
            raise EngineError(
                f"the reference engine runs one request at a time, not {options.concurrent_requests}: leave "
                "concurrent_requests out, or choose another engine."
            )
        refuse_ignored("reference", options, (*HEEDED, "concurrent_requests"))
        if options.prompt_lookup_tokens and options.temperature > 0:
            raise EngineError(
                "prompt lookup keeps the text of greedy decoding only: set temperature or prompt_lookup_tokens to 0."
            )
        self._seed = options.seed if options.temperature > 0 else None
        self._loaded = LoadedModel.load(model, device, options)

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        device = self._loaded.device
        return Capabilities("reference", f"{device.type}: {device.name}", device.dtype, 1, True, self._loaded.context_tokens)

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests in their order."""
        for request in requests:
            yield self._loaded.unanswerable(request) or self._answer(request)

    def close(self) -> None:
        """Free the model's memory."""
        self._loaded.close()

    def _answer(self, request: Request) -> Result:
        loaded = self._loaded
        clock = _first_token_clock()
        started = time.perf_counter()
        failed = None
        try:
            tokens = self._decode(request, clock)
        except RuntimeError as error:  # what PyTorch raises, out of memory included
            failed = loaded.failure(request, len(request.tokens), f"{type(error).__name__}: {error}")
        if failed is not None:  # here, since the error above holds on to the tensors
            loaded.free_scratch()
            return failed
        latency_s = time.perf_counter() - started
        ttft_s = None if clock.first_token_at is None else clock.first_token_at - started
        return loaded.answer(request, len(request.tokens), tokens, ttft_s, latency_s)

    def _decode(self, request: Request, clock: Any) -> list[int]:
        import torch

        model = self._loaded.model
        ids = torch.tensor([request.tokens], device=model.device)
        with torch.inference_mode(), torch.random.fork_rng(enabled=self._seed is not None):
            if self._seed is not None:
                torch.manual_seed(self._seed)
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, streamer=clock
            )
        tokens: list[int] = whole[0, len(request.tokens) :].tolist()  # waits for the device
        return tokens


def _first_token_clock() -> Any:
    """A streamer that notes when the first new token was on the host.

    `generate` hands it the prompt first, then new tokens: one at a time, or with prompt lookup all that one pass accepted.
    """
    from transformers.generation.streamers import BaseStreamer

    class FirstTokenClock(BaseStreamer):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self.first_token_at: float | None = None
            self._prompt_seen = False

        def put(self, value: Any) -> None:
            if self._prompt_seen and self.first_token_at is None:
                self.first_token_at = time.perf_counter()
            self._prompt_seen = True

        def end(self) -> None:
            """Nothing to close."""

    return FirstTokenClock()
