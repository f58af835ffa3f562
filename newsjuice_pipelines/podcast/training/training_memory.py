"""Memory of a training step: an estimate that decides on activation checkpointing, and readable errors when it runs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
from newsjuice_pipelines.podcast.training.halved_batch import OutOfMemory
from newsjuice_pipelines.runtime.devices import is_out_of_memory

logger = logging.getLogger("newsjuice.finetune")

USABLE_SHARE = 0.8  # of the free memory; the rest is for the allocator's gaps, buffers and other programs
# Bytes that autograd keeps for a token in one layer, per unit of the layer's widths, and what dropout adds: upper bounds
# of what was measured on Qwen3 shapes (hidden 256 to 2,048) with LoRA on all linear layers and fused attention.
BYTES_PER_WIDTH = {"float32": (16, 12), "bfloat16": (12, 8), "float16": (12, 8)}
ADAPTER_BYTES = 16  # a weight in fp32, its gradient and AdamW's two moments
HEAD_TILE_TOKENS, HEAD_TILE_VOCABULARY, HEAD_BYTES = 4096, 32768, 12  # the fused LM head works in tiles of this size


def sequences_a_step(
    model: Any, config: FinetuneConfig, compute_dtype: str, sequence_tokens: int, free_bytes: int, device: str, processes: int
) -> int:
    """Sequences that a device step takes: as configured, or (`batch_size` 0) what suits the device.

    A GPU is kept busy by as many of an optimiser step's sequences as its memory holds without checkpointing; a CPU gets one,
    which its caches hold best. The answer divides the sequences that each process has in an optimiser step.

    Args:
        model: the base model, loaded.
        config: how the adapter is trained.
        compute_dtype: dtype of the arithmetic.
        sequence_tokens: tokens of a sequence, at most.
        free_bytes: memory that this process may still take on the device.
        device: `cpu` or `cuda`.
        processes: that share the optimiser step.
    """
    if config.batch_size or device == "cpu":
        return max(1, config.batch_size)
    mine = config.accumulation_steps // processes
    usable = USABLE_SHARE * free_bytes - adapter_bytes(model, config.lora_rank)
    fitting = [
        count
        for count in range(1, mine + 1)
        if mine % count == 0
        and activation_bytes(model.config, count * sequence_tokens, compute_dtype, dropout=config.lora_dropout > 0) <= usable
    ]
    return max(fitting, default=1)


@dataclass(frozen=True)
class CheckpointingPlan:
    """Whether activations are recomputed, and the figures behind it."""

    checkpointing: bool
    needed_mib: int
    """Estimate for a device step without checkpointing, weights of the base excluded."""
    free_mib: int


def plan_checkpointing(
    model: Any, config: FinetuneConfig, compute_dtype: str, step_tokens: int, free_bytes: int
) -> CheckpointingPlan:
    """Decide on activation checkpointing, and log the figures.

    The estimate is layers x tokens x (hidden + query + key-and-value + feed-forward width) x bytes, see `BYTES_PER_WIDTH`,
    plus a tile of the LM head and the adapter with its optimiser.

    Args:
        model: the base model, loaded.
        config: `auto` checkpoints when the estimate is above `USABLE_SHARE` of the free memory.
        compute_dtype: dtype of the arithmetic.
        step_tokens: tokens of a device step, padding included.
        free_bytes: memory that this process may still take on the device.
    """
    needed = activation_bytes(model.config, step_tokens, compute_dtype, dropout=config.lora_dropout > 0)
    needed += adapter_bytes(model, config.lora_rank)
    automatic = needed > USABLE_SHARE * free_bytes
    plan = CheckpointingPlan(
        checkpointing=automatic if config.activation_checkpointing == "auto" else config.activation_checkpointing == "always",
        needed_mib=needed // 2**20,
        free_mib=free_bytes // 2**20,
    )
    logger.info(
        "activation checkpointing %s (%s): a step of %s tokens needs about %s MiB without it, %s MiB are free",
        "on" if plan.checkpointing else "off",
        config.activation_checkpointing,
        f"{step_tokens:,}",
        f"{plan.needed_mib:,}",
        f"{plan.free_mib:,}",
    )
    return plan


def activation_bytes(shape: Any, tokens: int, dtype: str, *, dropout: bool) -> int:
    """Estimated bytes of the activations that a step of `tokens` tokens keeps, for a model configuration `shape`."""
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    queries = head * shape.num_attention_heads
    keys = head * (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads)
    feed_forward = getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size
    kept, dropped = BYTES_PER_WIDTH[dtype]
    widths = shape.hidden_size + queries + keys + feed_forward
    layers = tokens * shape.num_hidden_layers * widths * (kept + (dropped if dropout else 0))
    tile = min(tokens, HEAD_TILE_TOKENS) * min(shape.vocab_size, HEAD_TILE_VOCABULARY) * HEAD_BYTES
    return int(layers + tile)


def adapter_bytes(model: Any, rank: int) -> int:
    """Bytes of an adapter of `rank` on all linear layers but the head, with gradients and optimiser."""
    import torch

    head = model.get_output_embeddings()
    widths = sum(
        module.in_features + module.out_features
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    return int(rank * widths * ADAPTER_BYTES)


@contextmanager
def memory_errors(config: FinetuneConfig, device: str, *, checkpointing: bool | None = None, sharing: int = 1) -> Iterator[None]:
    """Turns an exhausted memory into an `OutOfMemory` error that names the settings in force, and what to change.

    Args:
        config: how the adapter is trained.
        device: its name.
        checkpointing: as in `memory_advice`.
        sharing: as in `memory_advice`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"the memory of the device ({device}) did not suffice for training. "
            f"{memory_advice(config, checkpointing=checkpointing, sharing=sharing)} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'})",
            config.batch_size,
        ) from error


def memory_advice(config: FinetuneConfig, *, checkpointing: bool | None = None, sharing: int = 1) -> str:
    """The settings in force that decide on memory, and those of them that can still be changed to need less.

    Args:
        config: how the adapter is trained.
        checkpointing: whether activations are recomputed; None: not decided yet, but for the configuration.
        sharing: processes that share the memory that ran out.
    """
    asked = config.activation_checkpointing
    recomputed = asked == "always" if checkpointing is None else checkpointing
    decided = "" if asked != "auto" or checkpointing is None else f" ({'on' if recomputed else 'off'})"
    in_force = (
        f"batch_size {config.batch_size}, max_length {config.max_length}, activation_checkpointing {asked}{decided}, "
        f"load_in_4bit {str(config.load_in_4bit).lower()}" + (f", processes {sharing}" if sharing > 1 else "")
    )
    changes = {
        "lower processes (they share this memory)": sharing > 1,
        "lower batch_size (and raise accumulation_steps as much)": config.batch_size > 1,
        "set activation_checkpointing to always": not recomputed,
        "set load_in_4bit": not config.load_in_4bit,
        "lower max_length (with the data set's max_tokens where rows are longer)": True,
    }
    *others, last = [change for change, helps in changes.items() if helps]
    advice = ", ".join(others) + (", or " if others else "") + last
    return f"In force: {in_force}. {advice[0].upper()}{advice[1:]}."
