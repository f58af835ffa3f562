"""Continuous batching inside transformers: a finished request leaves its place to the next one at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import Capabilities, EngineError, EngineOptions, Request, Result, refuse_ignored
from newsjuice_pipelines.podcast.engines.loaded import LoadedModel, most_tokens, of_like_length
from newsjuice_pipelines.runtime.devices import Device

logger = logging.getLogger("newsjuice.engines")

HEEDED = ("concurrent_requests", "temperature", "seed")  # others are dropped by transformers, with no more than a warning
ATTEMPTS = 2
PAGE_TOKENS = 64
# On a CPU the defaults would take half of the memory for the cache, so both sizes are given there.
CPU_STEP_TOKENS = 1024
CPU_REQUESTS, CUDA_REQUESTS = 8, 64
POLL_S = 1.0


@dataclass(frozen=True)
class _Failed:
    """Stands for the output of a request that never ran."""

    error: str


class TransformersBatchEngine:
    """Runs many requests at once. A request that fails or gets lost is run once more, then reported as an error.

    With a temperature the same requests in the same order and the same seed give the same answers; an answer depends on
    its neighbours though, as all draw from one stream of random numbers.
    """

    def __init__(self, model: Path, device: Device, options: EngineOptions) -> None:
        refuse_ignored("transformers", options, HEEDED)
        self._concurrent = options.concurrent_requests or (CPU_REQUESTS if device.type == "cpu" else CUDA_REQUESTS)
        self._seed, self._draws = options.seed, options.temperature > 0
        self._kept: _Sizes | None = None
        self._busy = False
        self._loaded = LoadedModel.load(model, device, options)

    def capabilities(self) -> Capabilities:
        """What this engine is and can do."""
        device, loaded = self._loaded.device, self._loaded
        return Capabilities(
            "transformers", f"{device.type}: {device.name}", device.dtype, self._concurrent, True, loaded.context_tokens
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        """Answer the requests in the order of their completion."""
        loaded = self._loaded
        waiting: dict[str, Request] = {}
        for position, request in enumerate(requests):
            refused = loaded.unanswerable(request)
            if refused is not None:
                yield refused
            else:
                waiting[str(position)] = request
        errors: dict[str, str] = {}
        for attempt in range(ATTEMPTS):
            if not waiting:
                return
            passes = [(list(waiting), self._concurrent)]
            if attempt:
                # As the memory is what most often fails. The longest apart, since all pay for the room that they take.
                groups = of_like_length(waiting, lambda number: most_tokens(waiting[number]))
                passes = [(numbers, max(1, min(self._concurrent, len(numbers)) // 2)) for numbers in groups]
                logger.warning("%d requests failed or got lost and are run once more, half as many at once", len(waiting))
                loaded.free_scratch()
            for numbers, concurrent in passes:
                for number, output in self._run({number: waiting[number] for number in numbers}, concurrent):
                    if output.error is not None:
                        errors[number] = str(output.error)
                        continue
                    request = waiting.pop(number)
                    yield loaded.answer(request, len(request.tokens), list(output.generated_tokens), *_times(output))
        for number, request in waiting.items():
            yield loaded.failure(request, len(request.tokens), errors.get(number, "the batch ended without an answer"))
        if waiting:
            loaded.free_scratch()

    def close(self) -> None:
        """Free the model's memory."""
        self._forget_manager()
        self._loaded.close()

    def _run(self, todo: Mapping[str, Request], concurrent: int) -> Iterator[tuple[str, Any]]:
        """Outputs of one pass over the requests `todo`; lost ones give none."""
        sizes = self._sizes(todo, concurrent)
        if self._busy:
            raise EngineError("the transformers engine is still at an earlier call: read its results to the end, or close them.")
        answered, done = 0, False
        manager = self._manager_of(sizes, concurrent)
        self._busy = True
        try:
            try:
                self._start(manager, todo)
            except RuntimeError as error:  # mostly out of memory
                yield from ((number, _Failed(f"continuous batching could not start: {error}")) for number in todo)
                return
            for output in _finished(manager, set(todo)):
                answered += output.error is None
                yield output.request_id, output
            done = True
        finally:
            self._busy = False
            # Its cache and graphs serve the next call, unless something went wrong. Draws begin anew from their seed.
            keep = done and answered == len(todo) and not self._draws
            # Whoever stops reading early does not wait for the rest.
            manager.stop(block=True, hard_stop=not done, keep_for_next_session=keep)
            if not keep:
                manager.destroy()
                self._forget_manager()

    def _start(self, manager: Any, todo: Mapping[str, Request]) -> None:
        """Start the manager's thread with the requests `todo`."""
        if self._loaded.device.type != "cpu" and not manager.warmed_up:
            manager.warmup()
        if not self._draws:
            manager.start()  # one that ran before takes no requests until it has been started again
        for number, request in todo.items():
            manager.add_request(
                list(request.tokens), request_id=number, max_new_tokens=request.max_new_tokens, record_timestamps=True
            )
        if self._draws:
            manager.start()  # the first step sees all of them, so that batches, and with them random draws, repeat

    def _manager_of(self, sizes: _Sizes, concurrent: int) -> Any:
        """A manager with room for `sizes`: the one of the last call where that has the room, else a new one."""
        import torch

        kept, model = self._kept, self._loaded.model
        if kept is None or not sizes.places <= kept.places <= concurrent or kept.pages < sizes.pages:
            self._forget_manager()
            kept = sizes
        with torch.no_grad():
            manager = model.init_continuous_batching(
                generation_config=model.generation_config, continuous_batching_config=self._configuration(kept)
            )
        self._kept = kept
        return manager

    def _sizes(self, todo: Mapping[str, Request], concurrent: int) -> _Sizes:
        places = min(concurrent, len(todo))
        if self._loaded.device.type != "cpu":
            return _Sizes(places, 0)
        longest = sorted(map(most_tokens, todo.values()))[-places:]
        return _Sizes(places, sum(math.ceil(tokens / PAGE_TOKENS) + 1 for tokens in longest))

    def _configuration(self, sizes: _Sizes) -> Any:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        settings: dict[str, Any] = {"max_requests_per_batch": sizes.places, "seed": self._seed}
        if self._loaded.device.type == "cpu":
            settings |= {
                "page_size": PAGE_TOKENS,
                "num_blocks": sizes.pages,
                "max_batch_tokens": CPU_STEP_TOKENS,
                "allow_block_sharing": False,
            }
        return ContinuousBatchingConfig(**settings)

    def _forget_manager(self) -> None:
        """Free the manager of the last call with its cache."""
        self._kept = None
        if self._loaded.model is not None:
            self._loaded.model.destroy_cached_continuous_batching_manager()


@dataclass(frozen=True)
class _Sizes:
    """What a manager has room for: so many requests at once, and so many pages of cache (0 on a GPU, which sizes it itself)."""

    places: int
    pages: int


def _finished(manager: Any, pending: set[str]) -> Iterator[Any]:
    """The final outputs of the `pending` requests; ends early when no more can come, be it that requests got lost."""
    idle_polls = 0
    while pending and idle_polls < 2:  # twice: an output is on its way for a moment after its request has left the scheduler
        output = manager.get_result(timeout=POLL_S)
        if output is not None:
            idle_polls = 0
            if output.is_finished() and output.request_id in pending:
                pending.discard(output.request_id)
                yield output
        elif not manager.is_running() or _idle(manager):
            idle_polls += 1
    if pending:
        logger.warning("continuous batching ended with %d requests unanswered", len(pending))


def _idle(manager: Any) -> bool:
    """Whether a running manager has nothing left to do."""
    processor = manager.batch_processor
    return processor is not None and manager.input_queue.empty() and not processor.has_pending_requests()


def _times(output: Any) -> tuple[float | None, float | None]:
    """Time to the first and to the last token in seconds, from the moment the request left the queue."""
    started, finished = output.lifespan
    if started < 0 or finished < 0:
        return None, None
    return (output.timestamps[0] - started if output.timestamps else None), finished - started
