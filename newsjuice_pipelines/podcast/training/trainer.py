"""The trainer of the student: TRL's SFTTrainer, set up from a `FinetuneConfig`, on one device or as one of several processes.

What is trained on is `training_rows.py`; what the trainer reports is `training_log.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL
from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
from newsjuice_pipelines.podcast.training.training_log import TrainingLog
from newsjuice_pipelines.podcast.training.training_rows import FinetuneError, TrainingRows
from newsjuice_pipelines.runtime.devices import Device

OPTIMIZER_NAMES = {"adamw": "adamw_torch_fused", "paged_adamw_8bit": "paged_adamw_8bit"}


@dataclass(frozen=True)
class ProcessRank:
    """Which of several training processes this one is, as torchrun says it in the environment; the only one without it."""

    rank: int = 0
    local_rank: int = 0
    processes: int = 1

    @classmethod
    def of_environment(cls) -> ProcessRank:
        """The rank that torchrun or `accelerate launch` gave this process."""
        values = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        rank, local_rank, processes = (None if value is None else int(value) for value in values)
        return cls(rank or 0, local_rank or 0, processes or 1)


def computing_dtype(config: FinetuneConfig, device: Device) -> str:
    """The dtype of the arithmetic.

    Raises:
        FinetuneError: the device cannot train in the dtype that was asked for.
    """
    if config.dtype == "auto":
        return device.dtype
    if config.dtype == "float16" and device.type == "cpu":
        raise FinetuneError("dtype float16 trains on GPUs only, and there is none: set dtype to auto, float32 or bfloat16.")
    if config.dtype == "bfloat16" and device.dtype == "float16":
        raise FinetuneError(f"{device.name} does not compute in bfloat16: set dtype to auto or float16.")
    return config.dtype


def weights_dtype(compute_dtype: str) -> str:
    """The dtype of the base's weights: fp16 is computed around fp32 weights, since fp16 weights would not train."""
    return "bfloat16" if compute_dtype == "bfloat16" else "float32"


def steps_per_process(config: FinetuneConfig, processes: int) -> int:
    """Device steps of each process in an optimiser step, so that the effective batch is the configured one.

    Raises:
        FinetuneError: the processes cannot share the accumulation steps evenly.
    """
    if config.accumulation_steps % processes:
        raise FinetuneError(
            f"{processes} processes cannot share accumulation_steps {config.accumulation_steps} evenly, and the effective batch "
            f"of {config.effective_batch} sequences must stay: set accumulation_steps to a multiple of {processes} (with a "
            "smaller batch_size), or set processes to a number that divides it."
        )
    return config.accumulation_steps // processes


def new_trainer(
    model: Any,
    tokenizer: Any,
    train_rows: TrainingRows,
    validation_rows: TrainingRows,
    config: FinetuneConfig,
    compute_dtype: str,
    scratch: Path,
    log: TrainingLog,
    *,
    activation_checkpointing: bool,
    ranks: ProcessRank | None = None,
) -> Any:
    """A trainer that is ready to train an adapter on `model`; checkpoints go to `scratch`, reports to `log`."""
    import datasets
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig

    datasets.disable_progress_bars()
    _keep_4bit_weights_trainable(model)
    on_cpu = model.device.type == "cpu"
    processes = (ranks or ProcessRank()).processes
    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=1,  # no padding, and each row is counted once over all processes
        gradient_accumulation_steps=steps_per_process(config, processes),
        optim=_optimizer_name(config),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        max_length=config.max_length,
        packing=config.packing,
        eval_packing=config.packing,
        activation_checkpointing=activation_checkpointing,
        use_cpu=on_cpu,
        bf16=compute_dtype == "bfloat16",
        fp16=compute_dtype == "float16",
        ddp_backend=None if processes == 1 else "gloo" if on_cpu else "nccl",
        ddp_find_unused_parameters=False,
        eval_on_start=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    if processes == 1 and arguments.n_gpu > 1:  # several GPUs are the work of several processes, not of DataParallel
        arguments._n_gpu = 1
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        target_modules="all-linear",
    )
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        train_dataset=_as_dataset(train_rows),
        eval_dataset=_as_dataset(validation_rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[log.callback()],
    )
    trainer.log_of_run = log
    _keep_adapter_in_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)  # progress goes to the log instead
    return trainer


def _keep_4bit_weights_trainable(model: Any) -> None:
    """Keep bitsandbytes from packing NF4 weights for fast inference on the CPU.

    It does so at the first evaluation and does not undo it, and its packed product has no gradient: after one evaluation the
    adapter's gradients would be wrong, silently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _keep_adapter_in_float32(model: Any) -> None:
    """Undo TRL's cast of the adapter of a 4-bit base to bf16.

    The 8 significant bits of bf16 weights swallow most of the optimiser's updates, and the gradient scaler of fp16 refuses
    bf16 gradients.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _as_dataset(rows: TrainingRows) -> Any:
    import datasets

    return datasets.Dataset.from_dict({"input_ids": rows.input_ids, "labels": rows.labels})


def _optimizer_name(config: FinetuneConfig) -> str:
    if config.optimizer == "paged_adamw_8bit":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise FinetuneError(
                "optimizer paged_adamw_8bit needs the package bitsandbytes: install newsjuice-pipelines[gpu], or set optimizer "
                "to adamw."
            ) from error
    return OPTIMIZER_NAMES[config.optimizer]


@lru_cache(maxsize=1)
def _trainer_class() -> Any:
    """The trainer's class; made here, since TRL takes seconds to import."""
    import torch
    from trl import SFTTrainer

    class ScriptTrainer(SFTTrainer):  # type: ignore[misc]  # untyped base
        """Scores only what has a label, counts padding, and takes the validation loss over all tokens alike."""

        log_of_run: TrainingLog

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.log_of_run.count(inputs)
            return super().training_step(model, inputs, num_items_in_batch)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            with _scoring_labels_only():
                result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not self.model.training:
                loss = result[0] if return_outputs else result
                count = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
                mine = torch.stack([loss.detach().float() * count, count.float()])[None]
                self._scored.append(self.accelerator.gather_for_metrics(mine).cpu())
            return result

        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            """The loop of the base class, whose mean of batch means would weigh the tokens of short answers more."""
            self._scored: list[Any] = []
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            nats, tokens = torch.cat(self._scored).double().sum(0).tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = nats / max(1.0, tokens)
            return output

    return ScriptTrainer


@contextmanager
def _scoring_labels_only() -> Iterator[None]:
    """Let TRL's fused LM head skip positions without a label on the CPU too, as it does on a GPU.

    It computes all positions where it has no Triton, to keep shapes constant for devices that compile; the CPU does not. With
    a vocabulary of 150,000 the head is a third of the work, and most positions are prompt.
    """
    from trl.trainer import utils

    original = utils._use_triton
    utils._use_triton = lambda device: device.type == "cpu" or original(device)
    try:
        yield
    finally:
        utils._use_triton = original
