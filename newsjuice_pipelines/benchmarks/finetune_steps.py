"""A few optimiser steps of one tuning recipe, timed: useful tokens, model FLOPs, peak memory. Runs in a process of its own.

Which recipes, how often, and the table are `finetune.py`; the rows and what is useful in them `finetune_rows.py`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.finetune_rows import rows_of_batch, useful_tokens
from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL
from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig

MATMUL_SIZE = 8192
MATMUL_REPEATS = 20
BATCH_PARTS = ("input_ids", "labels", "attention_mask", "position_ids")


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    base: Path
    dataset: Path
    config: FinetuneConfig
    steps: int
    """Optimiser steps that are timed."""
    warmup_steps: int
    """Optimiser steps before them."""
    gpu: bool
    """Whether it may use the GPU."""


def measure(job: Job) -> dict[str, Any]:
    """Train as `train_adapter` does, without validation and checkpoints, and stop after the steps.

    Returns:
        Seconds and processor seconds of the timed steps; their rows, positions, positions with a label, useful tokens and
        model FLOPs; peak memory (MiB) of the process on its device; `matmul_flops_per_s`, on a GPU only.
    """
    if not job.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from newsjuice_pipelines.podcast.training.finetune import prepare_training
    from newsjuice_pipelines.runtime.devices import peak_memory_mib

    # Rows come again once all were seen, and nothing but steps is to be timed.
    config = replace(job.config, epochs=job.warmup_steps + job.steps, checkpoint_steps=0, processes=1)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_training(job.base, job.dataset, config, Path(scratch))
        trainer = prepared.trainer
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        trainer.args.eval_on_start = trainer.args.load_best_model_at_end = False
        counter = _StepCounter(useful_tokens(job.dataset, prepared.tokenizer, config.max_length), trainer.model, job)
        counter.attach(trainer)
        trainer.train()
    peak = peak_memory_mib(prepared.device.type)
    return {
        **counter.counted,
        "peak_memory_mib": peak,
        "device": prepared.device.name,
        "compute_dtype": prepared.compute_dtype,
        "activation_checkpointing": prepared.plan.checkpointing,
        "matmul_flops_per_s": matmul_flops_per_s(prepared.device.type) if prepared.device.type == "cuda" else None,
    }


def model_flops(shape: Any, adapter_parameters: int, rows: list[tuple[int, int]]) -> float:
    """Floating-point operations that LoRA training of these rows needs.

    A weight takes 2 for a token forward and 2 for the gradient of its input (Kaplan et al. 2020, section 2.1); the base is
    frozen, so that the 2 for its own gradient fall away: 4 for a weight of the blocks at every position, 4 for one of
    the head at every position that is scored, 6 for one of the adapter. Attention takes 12 x layers x heads x head size for
    each pair of tokens (Chowdhery et al. 2022, appendix B), and half of it since a token sees only those before it.
    What is computed a second time, for checkpointing or in the fused loss, does not count.

    Args:
        shape: the model's configuration.
        adapter_parameters: trainable ones.
        rows: tokens, and tokens that are scored, of each row.
    """
    hidden, head = shape.hidden_size, shape.head_dim
    queries, keys = head * shape.num_attention_heads, head * shape.num_key_value_heads
    block = hidden * (2 * queries + 2 * keys + 3 * shape.intermediate_size)
    every_token = 4 * shape.num_hidden_layers * block + 6 * adapter_parameters
    attention = 6 * shape.num_hidden_layers * queries
    scored = 4 * hidden * shape.vocab_size
    return float(sum(every_token * length + attention * length**2 + scored * labels for length, labels in rows))


def matmul_flops_per_s(device: str, size: int = MATMUL_SIZE, repeats: int = MATMUL_REPEATS) -> float:
    """What the device reaches in a large bf16 matrix product: its peak as far as a program can have it."""
    import torch

    left = torch.randn(size, size, device=device).to(torch.bfloat16)
    right = torch.randn(size, size, device=device).to(torch.bfloat16)
    best_s = float("inf")
    for _ in range(repeats):
        _wait_for(device)
        started = time.perf_counter()
        torch.mm(left, right)
        _wait_for(device)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * size**3 / best_s


class _StepCounter:
    """Times the steps of a trainer and counts what it trains on, then stops it."""

    def __init__(self, useful: Mapping[tuple[int, ...], int], model: Any, job: Job) -> None:
        self._useful, self._job = useful, job
        self._shape = model.config
        self._adapter_parameters = model.get_nb_trainable_parameters()[0]
        self.counted = dict.fromkeys(("steps", "rows", "positions", "labels", "useful_tokens", "flops", "wall_s", "cpu_s"), 0.0)
        self._batches: list[dict[str, Any]] = []

    def attach(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        counter, train_on = self, trainer.training_step

        def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            counter._batches.append({name: inputs[name] for name in BATCH_PARTS if name in inputs})
            return train_on(model, inputs, num_items_in_batch)

        class Timing(TrainerCallback):  # type: ignore[misc]  # untyped base
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                counter._batches.clear()
                _wait_for(args.device.type)
                self.started = time.perf_counter(), time.process_time()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                _wait_for(args.device.type)
                ended = time.perf_counter(), time.process_time()
                if state.global_step > counter._job.warmup_steps:
                    counter._count(ended[0] - self.started[0], ended[1] - self.started[1])
                if state.global_step >= counter._job.warmup_steps + counter._job.steps:
                    control.should_training_stop = True

        trainer.training_step = training_step
        trainer.add_callback(Timing())

    def _count(self, wall_s: float, cpu_s: float) -> None:
        rows = [row for batch in self._batches for row in rows_of_batch(batch)]
        labels = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in self._batches)
        # Attention is counted row by row, the rest does not depend on which row a token is in.
        flops = model_flops(self._shape, self._adapter_parameters, [(len(row), 0) for row in rows])
        flops += model_flops(self._shape, self._adapter_parameters, [(0, labels)])
        counts = {
            "steps": 1,
            "rows": len(rows),
            "positions": sum(batch["input_ids"].numel() for batch in self._batches),
            "labels": labels,
            "useful_tokens": sum(self._useful[row] for row in rows),
            "flops": flops,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
        }
        for name, value in counts.items():
            self.counted[name] += value


def _wait_for(device: str) -> None:
    """Let the GPU finish, so that its work counts where it was asked for."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
