"""Tuning the student: a LoRA adapter for a base model, trained on the answers of the student data set.

Its parts: settings `finetune_config.py`, rows `training_rows.py`, trainer `trainer.py`, reports `training_log.py`, memory
`training_memory.py` and `halved_batch.py`, several processes `processes.py`. Making the data set is `dataset.py`; merging is
`merge.py`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.adapter_card import adapter_card
from newsjuice_pipelines.podcast.training.base_model import base_identity, check_base_folder, load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.finetune_config import PRESETS, FinetuneConfig
from newsjuice_pipelines.podcast.training.halved_batch import train_within_memory
from newsjuice_pipelines.podcast.training.packed_attention import use_packed_attention
from newsjuice_pipelines.podcast.training.trainer import (
    ProcessRank,
    computing_dtype,
    new_trainer,
    steps_per_process,
    weights_dtype,
)
from newsjuice_pipelines.podcast.training.training_log import TrainingLog, check_improvement, patience_is_over, write_loss_curve
from newsjuice_pipelines.podcast.training.training_memory import (
    CheckpointingPlan,
    memory_errors,
    plan_checkpointing,
    sequences_a_step,
)
from newsjuice_pipelines.podcast.training.training_rows import (
    FinetuneError,
    TrainingRows,
    check_tokenizer,
    dataset_fingerprint,
    encode_rows,
    use_plain_template,
)
from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint, repoint_best_checkpoint, start_fresh_unless_same
from newsjuice_pipelines.runtime.devices import Device, best_device, free_memory_bytes, peak_memory_mib, reset_peak_memory
from newsjuice_pipelines.runtime.leased_gpu import leased_gpu, leased_gpus
from newsjuice_pipelines.runtime.reports import write_json
from newsjuice_pipelines.runtime.seeds import set_seeds
from newsjuice_pipelines.runtime.tracking import Tracker

__all__ = [
    "BASE_RECORD",
    "PRESETS",
    "FinetuneConfig",
    "FinetuneError",
    "PreparedTraining",
    "encode_rows",
    "prepare_training",
    "train_adapter",
]

logger = logging.getLogger("newsjuice.finetune")

BASE_RECORD = "base_identity.json"
LOSS_HISTORY = "loss_history.json"


@dataclass(frozen=True)
class PreparedTraining:
    """Everything loaded and set up: `trainer.train()` trains."""

    trainer: Any
    tokenizer: Any
    train_rows: TrainingRows
    validation_rows: TrainingRows
    log: TrainingLog
    config: FinetuneConfig
    """As given, with the batch size settled."""
    device: Device
    compute_dtype: str
    plan: CheckpointingPlan


def train_adapter(
    base: Path, dataset: Path, config: FinetuneConfig, out: Path, scratch: Path, tracker: Tracker | None = None
) -> dict[str, Any]:
    """Train a LoRA adapter on the scripts of a student data set and keep the checkpoint with the lowest validation loss.

    It leases the GPUs it needs, all at once; when the memory runs out, it tries once more at half the batch. With several
    processes (see `FinetuneConfig.processes`) it starts them and waits; under torchrun it is one of them, and all but the first
    return no facts and write nothing.

    Args:
        base: folder of the base model, with tokenizer and chat template.
        dataset: folder with `train.parquet`, `validation.parquet` and `dataset.json` of the student data set.
        config: hyper-parameters.
        out: an existing empty directory; gets the adapter, the tokenizer, two rows as the model sees them, the loss history
            and a model card.
        scratch: keeps checkpoints; a run of the same configuration, base and data that finds one goes on from there.
        tracker: where to send losses and configuration while training; None sends them nowhere.

    Raises:
        FinetuneError: no rows, rows longer than `max_length`, a base without a chat template or with another tokenizer than
            the data set was made with, too little memory even for half the batch, settings that this machine cannot train
            with. The checkpoint with the lowest validation loss is lost.
        TrainingDiverged: the loss is no number, rises, or ends above where it began.
    """
    from newsjuice_pipelines.podcast.training import processes

    if processes.is_worker():  # leases and second tries are the business of the process that started it
        return _train_here(base, dataset, config, out, scratch, tracker)
    count = processes.process_count(config)
    if count > 1:
        check_base_folder(base)
        with leased_gpus("training the student", count) as gpus:
            return train_within_memory(
                lambda tried: processes.train_in_processes(count, base, dataset, tried, out, scratch, tracker, gpus),
                config,
                count,
            )
    with leased_gpu("training the student", first=True) as device:  # the first is what the trainer takes
        return train_within_memory(
            lambda tried: _train_here(base, dataset, tried, out, scratch, tracker, device), config, processes=1
        )


def _train_here(
    base: Path,
    dataset: Path,
    config: FinetuneConfig,
    out: Path,
    scratch: Path,
    tracker: Tracker | None,
    device: Device | None = None,
) -> dict[str, Any]:
    """Train in this process, on its own GPU where it is one of several; the facts."""
    started = time.monotonic()
    ranks = ProcessRank.of_environment()
    identity = base_identity(base)
    data = dataset_fingerprint(dataset)
    device = device or best_device(ranks.local_rank)
    sharing = ranks.processes if device.type == "cpu" else 1
    with memory_errors(config, device.name, sharing=sharing):
        prepared = prepare_training(base, dataset, config, scratch, ranks, device)
    with memory_errors(prepared.config, device.name, checkpointing=prepared.plan.checkpointing, sharing=sharing):
        _train(
            prepared,
            config,
            scratch,
            {**asdict(config), "base_identity": identity["identity"], "dataset_fingerprint": data},
            ranks,
            tracker,
        )
    if ranks.rank:
        return {}
    history = prepared.log.history(prepared.trainer.state.log_history)
    check_improvement(history)
    _check_best_weights(prepared.trainer.state.best_model_checkpoint, history, scratch)
    _write_adapter(prepared, identity, data, config, history, out)
    facts = {
        **_training_facts(prepared, history, config, ranks),
        "base_identity": identity["identity"],
        "dataset_fingerprint": data,
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / "README.md").write_text(adapter_card(facts, config, BASE_RECORD), encoding="utf-8")
    return facts


def prepare_training(
    base: Path,
    dataset: Path,
    config: FinetuneConfig,
    scratch: Path,
    ranks: ProcessRank | None = None,
    device: Device | None = None,
) -> PreparedTraining:
    """Load the base, encode the rows and set up the trainer; nothing is trained yet. Errors as in `train_adapter`."""
    import torch

    ranks = ranks or ProcessRank()
    check_base_folder(base)
    steps_per_process(config, ranks.processes)
    device = device or best_device(ranks.local_rank)
    compute_dtype = computing_dtype(config, device)
    tokenizer = load_tokenizer(base)
    check_tokenizer(dataset, tokenizer)
    if not config.chat_template:
        use_plain_template(tokenizer)
    train_rows = encode_rows(dataset / "train.parquet", tokenizer, config)
    validation_rows = encode_rows(dataset / "validation.parquet", tokenizer, config)

    set_seeds(config.seed)
    if device.type == "cuda":
        torch.cuda.set_device(device.index)
    reset_peak_memory(device.type)  # a run before it in this process must not speak for this one
    model = load_model(base, weights_dtype(compute_dtype), device.torch_name, load_in_4bit=config.load_in_4bit)
    if config.packing:
        use_packed_attention(model)
    free = free_memory_bytes(device.type, device.index) // (ranks.processes if device.type == "cpu" else 1)
    longest = max(train_rows.longest, validation_rows.longest)
    sequence_tokens = min(config.max_length, train_rows.tokens if config.packing else longest)
    batch_size = sequences_a_step(model, config, compute_dtype, sequence_tokens, free, device.type, ranks.processes)
    config = replace(config, batch_size=batch_size, accumulation_steps=config.effective_batch // batch_size)
    plan = plan_checkpointing(model, config, compute_dtype, batch_size * sequence_tokens, free)
    log = TrainingLog(config.patience_epochs, config.checkpoint_steps)
    trainer = new_trainer(
        model,
        tokenizer,
        train_rows,
        validation_rows,
        config,
        compute_dtype,
        scratch,
        log,
        activation_checkpointing=plan.checkpointing,
        ranks=ranks,
    )
    return PreparedTraining(trainer, tokenizer, train_rows, validation_rows, log, config, device, compute_dtype, plan)


def _train(
    prepared: PreparedTraining,
    config: FinetuneConfig,
    scratch: Path,
    run: dict[str, Any],
    ranks: ProcessRank,
    tracker: Tracker | None,
) -> None:
    """Train to the end, from the last checkpoint of the same run if there is one; the trainer holds the best weights then."""
    trainer = prepared.trainer
    # How an effective batch is divided is left out: checkpoints hold for every division.
    same = {name: value for name, value in run.items() if name not in ("batch_size", "accumulation_steps")}
    with trainer.args.main_process_first(desc="looking for checkpoints"):
        if ranks.rank == 0:
            start_fresh_unless_same(scratch, {**same, "effective_batch": config.effective_batch})
            if (found := last_whole_checkpoint(scratch, ranks.processes)) is not None:
                repoint_best_checkpoint(scratch, found)
    checkpoint = last_whole_checkpoint(scratch, ranks.processes)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint.name)
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        trainer.args.eval_on_start = False  # the history in the checkpoint has it
        if patience_is_over(state["log_history"], config.patience_epochs):  # killed after its last epoch
            trainer.args.num_train_epochs = round(state["epoch"])
    else:
        _show_first_row(prepared)
    if tracker is None or ranks.rank:
        tracker = Tracker("disabled", scratch)
    with tracker.run("lora_adapter", run) as tracked:
        prepared.log.tracked = tracked
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _check_best_weights(best: str | None, history: dict[str, Any], scratch: Path) -> None:
    """Raise `FinetuneError` unless the trainer went back to the checkpoint with the lowest validation loss."""
    step = history["best_step"]
    if best is None or not Path(best).is_dir() or Path(best).name != f"checkpoint-{step}":
        raise FinetuneError(
            f"the checkpoint with the lowest validation loss, that of step {step}, is no longer in {scratch}, so its weights "
            "are lost: delete that folder and materialise lora_adapter again, which trains from the start."
        )


def _show_first_row(prepared: PreparedTraining) -> None:
    from newsjuice_pipelines.podcast.training.masked_rows import masked_rows

    logger.info("the first training row:\n%s", masked_rows(prepared.tokenizer, prepared.train_rows.examples(1), 1))


def _write_adapter(
    prepared: PreparedTraining, identity: dict[str, Any], data: str, config: FinetuneConfig, history: dict[str, Any], out: Path
) -> None:
    from newsjuice_pipelines.podcast.training.masked_rows import MASKED_ROWS_FILE, masked_rows

    tuned = prepared.trainer.model
    # The folder of this machine means nothing elsewhere; the base is known by its identity.
    tuned.peft_config["default"].base_model_name_or_path = f"base-{identity['identity']}"
    tuned.save_pretrained(out, safe_serialization=True, save_embedding_layers=False)
    prepared.tokenizer.save_pretrained(out)
    record = {
        **identity,
        "load_in_4bit": config.load_in_4bit,
        "trained_in": weights_dtype(prepared.compute_dtype),
        "dataset_fingerprint": data,
    }
    write_json(out / BASE_RECORD, record)
    write_json(out / LOSS_HISTORY, history)
    write_loss_curve(history, out / "loss_curve.png")
    shown = masked_rows(prepared.tokenizer, prepared.train_rows.examples(2))
    (out / MASKED_ROWS_FILE).write_text(shown, encoding="utf-8")


def _training_facts(
    prepared: PreparedTraining, history: dict[str, Any], config: FinetuneConfig, ranks: ProcessRank
) -> dict[str, Any]:
    """What was trained, on what, how fast, and how well, as JSON values."""
    trainer, rows, log, device = prepared.trainer, prepared.train_rows, prepared.log, prepared.device
    trainable, total = trainer.model.get_nb_trainable_parameters()  # quantised ones counted as what they stand for
    speed = log.tokens_per_s(trainer.state.num_input_tokens_seen)
    return {
        "train_rows": len(rows),
        "validation_rows": len(prepared.validation_rows),
        "rows_cut": rows.cut,
        "rows_without_answer": rows.without_answer,
        "rows_without_end_token": rows.without_end_token,
        "longest_row_tokens": max(rows.longest, prepared.validation_rows.longest),
        "steps": trainer.state.global_step,
        "resumed_from_step": log.first_step,
        "epochs": round(float(trainer.state.epoch or 0.0), 2),
        "best_epoch": history["best_epoch"],
        "train_loss": history["train_loss"][-1] if history["train_loss"] else None,
        "validation_loss_before": history["validation_loss_before"],
        "validation_loss": history["best_validation_loss"],
        "tokens_per_s": speed,
        "useful_tokens_per_s": None if speed is None else speed * rows.useful_tokens / rows.tokens,
        "padding_share": log.padding_share,
        "peak_memory_mib": peak_memory_mib(device.type),
        "activation_checkpointing": prepared.plan.checkpointing,
        "activation_memory_mib": prepared.plan.needed_mib,
        "free_memory_mib": prepared.plan.free_mib,
        "trainable_parameters": int(trainable),
        "trainable_share": trainable / total,
        "batch_size": prepared.config.batch_size,
        "accumulation_steps": prepared.config.accumulation_steps,
        "effective_batch": config.effective_batch,
        "processes": ranks.processes,
        "device": f"{device.type}: {device.name}",
        "dtype": "nf4" if config.load_in_4bit else weights_dtype(prepared.compute_dtype),
        "compute_dtype": prepared.compute_dtype,
        "tracking_url": log.tracked.url,
        "tracking_run": None if log.tracked.folder is None else Path(log.tracked.folder).name,
    }
