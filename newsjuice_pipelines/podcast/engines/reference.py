"""The reference engine: plain greedy decoding, one request at a time. The others are held against it, in text and speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import Capabilities, Request, Result
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel
from newsjuice_pipelines.runtime.devices import Device


class ReferenceEngine:
    """Greedy `generate` for one request after another; measures the time to the first token of each."""

    def __init__(self, model: Path, device: Device) -> None:
        self._loaded = LoadedModel.load(model, device)

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        device = self._loaded.device
        return Capabilities("reference", f"{device.type}: {device.name}", device.dtype, 1, True, self._loaded.context_tokens)

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests in their order."""
        for request in requests:
            yield self._answer(request)

    def close(self) -> None:
        """Free the model's memory."""
        self._loaded.close()

    def _answer(self, request: Request) -> Result:
        import torch

        loaded = self._loaded
        prompt = loaded.encode(request)
        refused = loaded.too_long(request, len(prompt))
        if refused is not None:
            return refused
        clock = _first_token_clock()
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                ids = torch.tensor([prompt], device=loaded.model.device)
                whole = loaded.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, streamer=clock
                )
            tokens = whole[0, len(prompt) :].tolist()  # waits for the device
        except torch.OutOfMemoryError as error:
            return loaded.failure(request, len(prompt), f"out of memory: {error}")
        latency_s = time.perf_counter() - started
        ttft_s = None if clock.first_token_at is None else clock.first_token_at - started
        return loaded.answer(request, len(prompt), tokens, ttft_s, latency_s)


def _first_token_clock() -> Any:
    """A streamer that notes when the first new token was there. `generate` hands it the prompt first."""
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
