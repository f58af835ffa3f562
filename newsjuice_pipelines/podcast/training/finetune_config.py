"""How an adapter is trained: every setting with its meaning and limits, and the presets. Training itself is `finetune.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

OPTIMIZERS = ("adamw", "paged_adamw_8bit")
DTYPES = ("auto", "float32", "bfloat16", "float16")
CHECKPOINTING = ("auto", "always", "never")
AT_LEAST_ONE = ("lora_rank", "lora_alpha", "epochs", "accumulation_steps", "patience_epochs")
AT_LEAST_ZERO = ("batch_size", "processes", "checkpoint_steps", "weight_decay", "seed")
MINIMUM_LENGTH = 8


@dataclass(frozen=True)
class FinetuneConfig:
    """How the adapter is trained. The defaults are the preset `recommended`."""

    lora_rank: int = 32
    """Rank of the adapter's matrices, which sit on all linear layers of the blocks."""
    lora_alpha: int = 16
    """Strength of the adapter: alpha / rank, or alpha / sqrt(rank) with use_rslora (16 at rank 32 scales by 2.8)."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs that are dropped while training."""
    use_rslora: bool = True
    """Rank-stabilised scaling, alpha / sqrt(rank), so that one learning rate suits every rank."""
    epochs: int = 3
    """Passes over the training rows, if the validation loss does not stop them earlier."""
    batch_size: int = 0
    """Sequences (packed ones, with packing) a device step of each process. 0: one on a CPU, on a GPU as many as fit into it."""
    accumulation_steps: int = 8
    """Device steps an optimiser step, of one sequence each where batch_size is 0; processes share them."""
    learning_rate: float = 3e-4
    """Peak of the cosine schedule. LoRA wants 0.0001 to 0.001, about ten times the rate of full training."""
    warmup_share: float = 0.05
    """Share of the steps with a rising learning rate."""
    weight_decay: float = 0.0
    """AdamW's, on the adapter's matrices."""
    max_length: int = 1024
    """Tokens of a sequence; longer rows are refused, not cut (see cut_long_rows)."""
    packing: bool = True
    """Several rows in one sequence of up to max_length tokens, each blind to the others."""
    load_in_4bit: bool = False
    """QLoRA: the base in NF4 with double quantisation, for little memory (needs the gpu extra)."""
    optimizer: str = "adamw"
    """adamw, or paged_adamw_8bit of bitsandbytes (8 bits, but not paged, without a GPU)."""
    dtype: str = "auto"
    """Numbers of weights and arithmetic: auto (bfloat16 where the device is fast in it), float32, bfloat16, float16."""
    activation_checkpointing: str = "auto"
    """Recompute activations in the backward pass, less memory but slower: auto (only where memory asks for it), always, never."""
    processes: int = 0
    """Training processes on this machine, one a GPU. 0: as many of the GPUs as share accumulation_steps evenly; 1 without one."""
    checkpoint_steps: int = 100
    """Optimiser steps between checkpoints within an epoch, to resume from after a kill; 0 keeps those of the epochs only."""
    patience_epochs: int = 1
    """Epochs without a lower validation loss before training stops; with as many as `epochs` it never does."""
    seed: int = 42
    """Decides the adapter's first weights, the order of the rows and the dropout."""
    completion_only_loss: bool = True
    """Defect D1, for comparison: off, the loss covers the prompt as well as the script."""
    end_token: bool = True
    """Defect D2, for comparison: off, rows are trained without the end token, so that the student never learns to stop."""
    cut_long_rows: bool = False
    """Defect D3, for comparison: on, rows longer than max_length lose the end of their script instead of being refused."""
    chat_template: bool = True
    """Defect D4, for comparison: off, a plain-text template replaces the chat template, in the adapter and after it."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train.

        Raises:
            ValueError: names the setting, its value and what it may be.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}: give a finite number.")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        for name in AT_LEAST_ZERO:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be above 0; LoRA wants 0.0001 to 0.001.")
        for name in ("lora_dropout", "warmup_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a share, from 0 to below 1.")
        if self.max_length < MINIMUM_LENGTH:
            raise ValueError(f"max_length is {self.max_length}: a sequence needs at least {MINIMUM_LENGTH} tokens.")
        for name, choices in (("optimizer", OPTIMIZERS), ("dtype", DTYPES), ("activation_checkpointing", CHECKPOINTING)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: use one of {', '.join(choices)}.")

    @property
    def effective_batch(self) -> int:
        """Sequences an optimiser step, over all device steps and processes."""
        return max(1, self.batch_size) * self.accumulation_steps


PRESETS: Mapping[str, FinetuneConfig] = {
    "recommended": FinetuneConfig(),
    # The stand-in base knows so little that an adapter must move its weights far within a hundred steps.
    "stand_in": FinetuneConfig(lora_alpha=32, epochs=4, accumulation_steps=1, learning_rate=4e-3, patience_epochs=2),
    "original": FinetuneConfig(
        lora_rank=64,
        lora_alpha=16,
        lora_dropout=0.05,
        use_rslora=False,
        batch_size=1,
        accumulation_steps=4,
        learning_rate=2e-4,
        warmup_share=0.0,
        max_length=1024,
        packing=False,
        load_in_4bit=True,
        optimizer="paged_adamw_8bit",
        activation_checkpointing="always",
        processes=1,
        patience_epochs=3,  # as many as the epochs: it never stops early
    ),
}
