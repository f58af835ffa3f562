"""Continuous batching inside transformers: a finished request leaves its place to the next one at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import Capabilities, EngineError, Request, Result
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel
from newsjuice_pipelines.runtime.devices import Device

logger = logging.getLogger("newsjuice.engines")

ATTEMPTS = 2
PAGE_TOKENS = 64
# On a CPU the defaults would take half of the memory for the cache, so both sizes are given there.
CPU_STEP_TOKENS = 1024
CPU_REQUESTS, CUDA_REQUESTS = 8, 64
POLL_S = 1.0


class TransformersBatchEngine:
    """Runs many requests at once. A request that fails or gets lost is run once more, then reported as an error."""

    def __init__(self, model: Path, device: Device, concurrent_requests: int | None = None) -> None:
        default = CPU_REQUESTS if device.type == "cpu" else CUDA_REQUESTS
        self._concurrent = default if concurrent_requests is None else concurrent_requests
        if self._concurrent < 1:
            raise EngineError(f"concurrent_requests is {self._concurrent}: it must be at least 1.")
        self._loaded = LoadedModel.load(model, device)

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        device, loaded = self._loaded.device, self._loaded
        return Capabilities(
            "transformers_batch", f"{device.type}: {device.name}", device.dtype, self._concurrent, True, loaded.context_tokens
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests in the order of their completion."""
        loaded = self._loaded
        waiting: dict[str, tuple[Request, list[int]]] = {}
        for position, request in enumerate(requests):
            prompt = loaded.encode(request)
            refused = loaded.too_long(request, len(prompt))
            if refused is not None:
                yield refused
            else:
                waiting[str(position)] = (request, prompt)
        errors: dict[str, str] = {}
        for attempt in range(ATTEMPTS):
            if not waiting:
                return
            if attempt:
                logger.warning("%d requests failed or got lost and are run once more", len(waiting))
            for number, output in self._run(waiting):
                if output.error is not None:
                    errors[number] = str(output.error)
                    continue
                request, prompt = waiting.pop(number)
                yield loaded.answer(request, len(prompt), list(output.generated_tokens), *_times(output))
        for number, (request, prompt) in waiting.items():
            yield loaded.failure(request, len(prompt), errors.get(number, "the batch ended without an answer"))

    def close(self) -> None:
        """Free the model's memory."""
        self._loaded.close()

    def _run(self, waiting: dict[str, tuple[Request, list[int]]]) -> Iterator[tuple[str, Any]]:
        """Outputs of one pass over the waiting requests; lost ones give none. Copies, as the caller removes what is done."""
        todo = dict(waiting)
        model = self._loaded.model
        with model.continuous_batching_context_manager(
            generation_config=model.generation_config,
            continuous_batching_config=self._sizes(todo),
            warmup=self._loaded.device.type != "cpu",
        ) as manager:
            for number, (request, prompt) in todo.items():
                manager.add_request(prompt, request_id=number, max_new_tokens=request.max_new_tokens, record_timestamps=True)
            pending = set(todo)
            while pending:
                output = manager.get_result(timeout=POLL_S)
                if output is None:
                    if not manager.is_running():
                        logger.warning("continuous batching stopped with %d requests unanswered", len(pending))
                        return
                elif output.is_finished() and output.request_id in pending:
                    pending.discard(output.request_id)
                    yield output.request_id, output

    def _sizes(self, waiting: dict[str, tuple[Request, list[int]]]) -> Any:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        places = min(self._concurrent, len(waiting))
        if self._loaded.device.type != "cpu":
            return ContinuousBatchingConfig(max_requests_per_batch=places)
        longest = max(len(prompt) + request.max_new_tokens for request, prompt in waiting.values())
        return ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=places * (math.ceil(longest / PAGE_TOKENS) + 1),
            max_batch_tokens=CPU_STEP_TOKENS,
            max_requests_per_batch=places,
            allow_block_sharing=False,
        )


def _times(output: Any) -> tuple[float | None, float | None]:
    """Time to the first and to the last token in seconds, from the moment the request left the queue."""
    started, finished = output.lifespan
    if started < 0 or finished < 0:
        return None, None
    return (output.timestamps[0] - started if output.timestamps else None), finished - started
