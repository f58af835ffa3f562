"""Tuning the student: a LoRA adapter for a base model, trained on the answers of the student data set.

Making the data set is `dataset.py`; what the trainer reports while it works is `training_log.py`; merging is `merge.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.base_model import base_identity, check_base_folder, load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_example
from newsjuice_pipelines.podcast.training.training_log import TrainingLog, write_loss_curve
from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint
from newsjuice_pipelines.runtime.devices import best_device
from newsjuice_pipelines.runtime.reports import write_json
from newsjuice_pipelines.runtime.seeds import set_seeds
from newsjuice_pipelines.runtime.tracking import Tracker

logger = logging.getLogger("newsjuice.finetune")

BASE_RECORD = "base_identity.json"
NAMED_ROWS = 5


class FinetuneError(ValueError):
    """The adapter cannot be trained on this data set, base model or configuration."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How the adapter is trained. The defaults are the preset `recommended`."""

    lora_rank: int = 32
    """Rank of the adapter's matrices."""
    lora_alpha: int = 32
    """Strength of the adapter: alpha / rank, or alpha / sqrt(rank) with use_rslora."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs that are dropped."""
    use_rslora: bool = True
    """Scale by alpha / sqrt(rank), so that the learning rate suits every rank."""
    epochs: int = 3
    """Passes over the training rows."""
    batch_size: int = 1
    """Sequences (packed ones, with packing) a device step."""
    accumulation_steps: int = 1
    """Device steps an optimiser step."""
    learning_rate: float = 5e-4
    """Peak of the cosine schedule."""
    warmup_share: float = 0.05
    """Share of the steps with a rising learning rate."""
    weight_decay: float = 0.0
    """AdamW."""
    max_length: int = 2048
    """Tokens of a sequence; longer rows are refused, never cut."""
    packing: bool = True
    """Several rows in one sequence of max_length, attention kept apart."""
    completion_only_loss: bool = True
    """Loss on the script alone, not on the prompt."""
    load_in_4bit: bool = False
    """QLoRA: the base in NF4 with double quantisation (needs the gpu extra)."""
    activation_checkpointing: bool = False
    """Recompute activations: less memory, about a fifth slower."""
    patience_epochs: int = 2
    """Epochs without a lower validation loss before stopping."""
    seed: int = 42
    """Adapter weights and order of the rows."""


PRESETS: Mapping[str, FinetuneConfig] = {
    "recommended": FinetuneConfig(),
    # The stand-in base knows so little that an adapter must move its weights far within a hundred steps.
    "stand_in": FinetuneConfig(epochs=4, learning_rate=4e-3),
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
        activation_checkpointing=True,
        patience_epochs=3,
    ),
}


def train_adapter(
    base: Path, dataset: Path, config: FinetuneConfig, out: Path, scratch: Path, tracker: Tracker | None = None
) -> dict[str, Any]:
    """Train a LoRA adapter on the scripts of a student data set and keep the checkpoint with the lowest validation loss.

    Args:
        base: folder of the base model, with tokenizer and chat template.
        dataset: folder with `train.parquet` and `validation.parquet` of the student data set.
        config: hyper-parameters.
        out: an existing empty directory; gets the adapter, the tokenizer, the loss history and a model card.
        scratch: keeps a checkpoint an epoch; a run that finds one goes on from there.
        tracker: where to send the loss while training; None sends it nowhere.

    Raises:
        FinetuneError: no rows, rows longer than `max_length`, a base without a chat template, a loss that is not finite.
    """
    started = time.monotonic()
    check_base_folder(base)
    identity = base_identity(base)
    tokenizer = load_tokenizer(base)
    train_rows = encode_rows(dataset / "train.parquet", tokenizer, config)
    validation_rows = encode_rows(dataset / "validation.parquet", tokenizer, config)

    set_seeds(config.seed)
    device = best_device()
    # A GPU without bf16 computes in fp16 around fp32 weights: fp16 weights themselves would not train.
    weights_dtype = "bfloat16" if device.dtype == "bfloat16" else "float32"
    model = load_model(base, weights_dtype, device.type, load_in_4bit=config.load_in_4bit)
    log = TrainingLog()
    trainer = _new_trainer(model, tokenizer, train_rows, validation_rows, config, device.dtype, scratch, log)
    checkpoint = last_whole_checkpoint(scratch)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint.name)
    with (tracker or Tracker("disabled", scratch)).run("lora_adapter", asdict(config)) as tracked:
        log.tracked = tracked
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        tracking_url = tracked.url

    tuned = trainer.model
    # The folder of this machine means nothing elsewhere; the base is known by its identity.
    tuned.peft_config["default"].base_model_name_or_path = f"base-{identity['identity']}"
    tuned.save_pretrained(out, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(out)
    write_json(out / BASE_RECORD, {**identity, "load_in_4bit": config.load_in_4bit, "trained_in": weights_dtype})
    history = log.history(trainer.state.log_history)
    write_json(out / "loss_history.json", history)
    write_loss_curve(history, out / "loss_curve.png")
    trainable, total = _parameter_counts(tuned)
    facts = {
        "train_rows": len(train_rows["input_ids"]),
        "validation_rows": len(validation_rows["input_ids"]),
        "steps": trainer.state.global_step,
        "resumed_from_step": log.first_step,
        "epochs": round(float(trainer.state.epoch or 0.0), 2),
        "best_epoch": history["best_epoch"],
        "train_loss": history["train_loss"][-1] if history["train_loss"] else None,
        "validation_loss": history["best_validation_loss"],
        "tokens_per_s": log.tokens_per_s(trainer.state.num_input_tokens_seen),
        "padding_share": log.padding_share,
        "trainable_parameters": trainable,
        "trainable_share": trainable / total,
        "longest_row_tokens": max(map(len, train_rows["input_ids"] + validation_rows["input_ids"])),
        "device": f"{device.type}: {device.name}",
        "dtype": "nf4" if config.load_in_4bit else weights_dtype,
        "base_identity": identity["identity"],
        "tracking_url": tracking_url,
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / "README.md").write_text(_model_card(facts, config), encoding="utf-8")
    return facts


def encode_rows(file: Path, tokenizer: Any, config: FinetuneConfig) -> dict[str, list[list[int]]]:
    """Token ids and labels of one split. Each row is whole and its last label is the end of the turn.

    Raises:
        FinetuneError: the split is missing or empty, or rows are longer than `max_length` or lack their end; names them.
    """
    import pandas as pd

    if not file.is_file():
        raise FinetuneError(f"{file.name} is missing in {file.parent}: materialise student_dataset again.")
    table = pd.read_parquet(file, columns=["chunk_id", "prompt", "completion"])
    if table.empty:
        raise FinetuneError(f"{file.name} of the student data set has no rows: give more teacher scripts and make it again.")
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    too_long, without_end = [], []
    for chunk_id, prompt, completion in table.itertuples(index=False):
        ids, labels = encode_example(tokenizer, list(prompt), list(completion))
        if len(ids) > config.max_length:
            too_long.append(f"{chunk_id} ({len(ids)})")
        if labels[-1] != tokenizer.eos_token_id:
            without_end.append(chunk_id)
        rows["input_ids"].append(ids)
        rows["labels"].append(labels if config.completion_only_loss else ids)
    if too_long:
        raise FinetuneError(
            f"{len(too_long)} of {len(table)} rows of {file.name} are longer than max_length {config.max_length} tokens: "
            f"{_some(too_long)}. Raise max_length, or lower the data set's max_tokens; an answer is never cut."
        )
    if without_end:
        raise FinetuneError(
            f"{len(without_end)} of {len(table)} rows of {file.name} do not end with {tokenizer.eos_token!r}, so the student "
            f"would never learn to stop: {_some(without_end)}. The chat template must close the assistant's turn with it."
        )
    return rows


def _new_trainer(
    model: Any,
    tokenizer: Any,
    train_rows: dict[str, list[list[int]]],
    validation_rows: dict[str, list[list[int]]],
    config: FinetuneConfig,
    compute_dtype: str,
    scratch: Path,
    log: TrainingLog,
) -> Any:
    import datasets
    from peft import LoraConfig
    from transformers import EarlyStoppingCallback, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=max(4, config.batch_size),
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        max_length=config.max_length,
        packing=config.packing,
        eval_packing=False,
        activation_checkpointing=config.activation_checkpointing,
        use_cpu=model.device.type == "cpu",
        bf16=compute_dtype == "bfloat16",
        fp16=compute_dtype == "float16",
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
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        target_modules="all-linear",
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(train_rows),
        eval_dataset=datasets.Dataset.from_dict(validation_rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[log.callback(), EarlyStoppingCallback(config.patience_epochs)],
    )
    trainer.remove_callback(PrinterCallback)  # progress goes to the log instead
    trainer.data_collator = log.counting(trainer.data_collator)
    return trainer


def _parameter_counts(model: Any) -> tuple[int, int]:
    """Trainable and all parameters, quantised ones counted as what they stand for."""
    trainable, total = model.get_nb_trainable_parameters()
    return int(trainable), int(total)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_ROWS
    return ", ".join(names[:NAMED_ROWS]) + (f" and {more} more" if more > 0 else "")


def _model_card(facts: Mapping[str, Any], config: FinetuneConfig) -> str:
    scored = "the scripts alone" if config.completion_only_loss else "prompts and scripts"
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
    return f"""---
library_name: peft
pipeline_tag: text-generation
---
# Podcast script adapter

A LoRA adapter that turns a base model into a writer of podcast scripts. It belongs to the base model with the identity
`{facts["base_identity"]}` (see `{BASE_RECORD}`) and to no other; `merged_model` holds the two as one.

Trained on {facts["train_rows"]:,} scripts that a teacher model wrote, with the loss on {scored}.
The checkpoint is that of epoch {facts["best_epoch"]}, which has the lowest validation loss:
{facts["validation_loss"]:.3f} nats a token over {facts["validation_rows"]:,} rows. Whether the teacher's terms allow its output
to train another model is for the owner of the project to check.

Prompts are chat messages with `enable_thinking=False`.

| setting | value |
| --- | --- |
{settings}
"""
