"""One more try after the memory ran out in training: half the sequences a device step, the same effective batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
from newsjuice_pipelines.podcast.training.training_rows import FinetuneError
from newsjuice_pipelines.runtime.devices import free_unused_memory

logger = logging.getLogger("newsjuice.finetune")


class OutOfMemory(FinetuneError):
    """The memory of the device did not suffice for training steps of `batch_size` sequences (0: the size is not known)."""

    def __init__(self, message: str, batch_size: int = 0) -> None:
        super().__init__(message)
        self.batch_size = batch_size


def halved(config: FinetuneConfig, batch_size: int, processes: int) -> FinetuneConfig | None:
    """The configuration with at most half of `batch_size` sequences a device step and the same effective batch.

    None where there is no such thing: a step of one sequence cannot be halved.
    """
    for size in range(batch_size // 2, 0, -1):
        steps, rest = divmod(config.effective_batch, size)
        if not rest and steps % processes == 0:
            return replace(config, batch_size=size, accumulation_steps=steps)
    return None


def train_within_memory(
    train: Callable[[FinetuneConfig], dict[str, Any]], config: FinetuneConfig, processes: int
) -> dict[str, Any]:
    """Train, and once more with half the batch when the memory runs out; the facts say where it did.

    Args:
        train: trains as a configuration says and returns the facts; goes on from the last checkpoint where there is one, which
            holds for both tries, since they learn from the same sequences in each optimiser step.
        config: how to train first.
        processes: that share an optimiser step.

    Raises:
        FinetuneError: the memory did not suffice for the second try either, or for one sequence at a time.
    """
    try:
        return {**train(config), "out_of_memory_at_batch_size": None}
    except OutOfMemory as error:
        smaller = halved(config, error.batch_size, processes)
        if smaller is None:
            raise
        size = error.batch_size
    # After the handler: the error's traceback would keep what filled the memory.
    free_unused_memory()
    logger.warning(
        "out of memory with batch_size %d: trying once more with batch_size %d and accumulation_steps %d, which is the same "
        "effective batch of %d sequences",
        *(size, smaller.batch_size, smaller.accumulation_steps, smaller.effective_batch),
    )
    try:
        return {**train(smaller), "out_of_memory_at_batch_size": size}
    except OutOfMemory as error:
        raise FinetuneError(f"tried with batch_size {size} and {smaller.batch_size}: {error}") from error
