"""Training a classifier on a split: fine-tuning an encoder, or fitting the linear model. How good it is: `evaluate.py`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.training.checkpoint import CheckpointDescription, write_model_card
from newsjuice_pipelines.classification.training.linear import train_linear
from newsjuice_pipelines.classification.training.models import BaseModel, ModelUnavailable, base_model, weights_location
from newsjuice_pipelines.runtime.checkpoints import last_whole_checkpoint
from newsjuice_pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from newsjuice_pipelines.runtime.tracking import TrackedRun, Tracker

logger = logging.getLogger("newsjuice.classification")

KEPT_CHECKPOINTS = 2
LOGGING_STEPS = 10


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained. Fields are for encoders unless they say otherwise."""

    epochs: float = 3.0
    """Passes over the training part at most; early stopping may end sooner."""
    learning_rate: float | None = None
    """Peak learning rate; None takes the model's own from the table."""
    head_learning_rate_factor: float = 10.0
    """How many times the learning rate the fresh classification head learns with; 1 treats it like the encoder."""
    batch_size: int = 16
    """Texts a training step."""
    max_length: int = 128
    """Longest text in tokens; longer ones are cut, and counted."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    label_smoothing: float = 0.0
    """Probability mass spread over the other classes in the training targets."""
    early_stopping_patience: int = 2
    """Epochs without a lower validation loss before training ends."""
    max_steps: int = 0
    """Training steps at most; 0 means no limit but the epochs."""
    seed: int = 42
    """Seed of initialisation, dropout and order; also used by the linear model."""
    base_path: str = ""
    """A folder with the base model's files instead of the table's source, for machines without a network."""
    revision: str = ""
    """Hub revision instead of the pinned one."""
    linear_c: float = 0.3
    """Inverse regularisation strength of the linear model; unused by encoders."""
    pad_to_max_length: bool = False
    """Pad every text to `max_length`, as the original did; only for measuring what that costs."""
    select_on_test: bool = False
    """Let the test part pick the checkpoint, as the original did; only for measuring how optimistic that is."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "linear_c", "early_stopping_patience", "head_learning_rate_factor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("warmup_fraction", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0, or None for the model's own.")
        if self.max_steps < 0:
            raise ValueError(f"max_steps is {self.max_steps}; it must be 0 (no limit) or more.")


def train_classifier(
    model: str, split_dir: Path, config: ClassifierConfig, out: Path, scratch: Path, tracker: Tracker | None = None
) -> dict[str, Any]:
    """Train the named model of the table on a written split; `out` becomes a checkpoint that `load_classifier` reads.

    An encoder's checkpoints in `scratch` let a second call go on after a crash. The test part is never read, unless
    `select_on_test` asks for it.

    Raises:
        ModelUnavailable: no such model, or its weights cannot be had; the message says what to do.
    """
    entry = base_model(model)
    classes = read_classes(split_dir)
    train = read_part(split_dir, "train")
    selection = read_part(split_dir, "test" if config.select_on_test else "validation")
    common = {"model": model, "classes": list(classes), "seed": config.seed, "config": asdict(config)}
    common |= {"train_rows": len(train), "validation_rows": len(selection)}
    with _tracked(tracker, f"classifier-{model}", common) as run:
        started = time.monotonic()
        if entry.is_encoder:
            facts = {**common, **_train_encoder(entry, train, selection, classes, config, out, scratch, run)}
        else:
            fitted = train_linear(train, len(classes), config.linear_c, config.seed, out)
            CheckpointDescription(model, "linear", classes, None, None, None).write(out)
            facts = {**common, **fitted, "base": None, "revision": None, "library": "sklearn", "device": "cpu"}
        facts["train_s"] = round(time.monotonic() - started, 2)
        facts["tracking_url"] = run.url if run is not None else None
        write_model_card(out, facts, entry.licence, entry.description)
        facts["size_bytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        if run is not None:
            run.log({"train_s": facts["train_s"], "size_bytes": facts["size_bytes"]})
    return facts


@contextmanager
def _tracked(tracker: Tracker | None, name: str, config: dict[str, Any]) -> Iterator[TrackedRun | None]:
    """The tracker's run, or None without a tracker."""
    if tracker is None:
        yield None
        return
    with tracker.run(name, config) as run:
        yield run


def _train_encoder(
    entry: BaseModel,
    train: pd.DataFrame,
    selection: pd.DataFrame,
    classes: tuple[str, ...],
    config: ClassifierConfig,
    out: Path,
    scratch: Path,
    run: TrackedRun | None,
) -> dict[str, Any]:
    """Fine-tune an encoder and save it; returns its facts."""
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    from newsjuice_pipelines.runtime.devices import best_device
    from newsjuice_pipelines.runtime.seeds import set_seeds

    set_seeds(config.seed)
    device = best_device()
    network, tokenizer, source = _load_base(entry, classes, config)
    train_items, truncated = _tokenise(train, tokenizer, config)
    selection_items, _ = _tokenise(selection, tokenizer, config)
    selection_items.sort(key=lambda item: len(item["input_ids"]))
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size * 2,
        warmup_steps=config.warmup_fraction,
        label_smoothing_factor=config.label_smoothing,
        train_sampling_strategy="random" if config.pad_to_max_length else "group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=LOGGING_STEPS,
        disable_tqdm=True,
        report_to="none",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=device.type == "cpu",
        bf16=device.dtype == "bfloat16",
        fp16=device.dtype == "float16",
    )
    trainer = Trainer(
        model=network,
        args=arguments,
        train_dataset=train_items,
        eval_dataset=selection_items,
        processing_class=tokenizer,
        data_collator=batch_collator(tokenizer, config),
        optimizers=(_optimizer(network, entry, config), None),
        callbacks=[
            EarlyStoppingCallback(config.early_stopping_patience),
            _reporting_callback(entry.name, config.batch_size, run),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # progress goes to the log, not to standard output
    resume_from = last_whole_checkpoint(scratch)
    if resume_from is not None:
        logger.info("%s: going on from %s", entry.name, resume_from.name)
    result = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    trainer.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    revision = getattr(network.config, "_commit_hash", None) or source[1]
    CheckpointDescription(entry.name, "encoder", classes, config.max_length, entry.hub_id, revision).write(out)
    history = [item for item in trainer.state.log_history if "eval_loss" in item]
    first_step = int(resume_from.name.rpartition("-")[2]) if resume_from else 0
    examples = (trainer.state.global_step - first_step) * config.batch_size
    seconds = float(result.metrics["train_runtime"])
    return {
        "base": entry.hub_id,
        "revision": revision,
        "library": "transformers",
        "device": f"{device.type}: {device.name}",
        "parameters": int(network.num_parameters()),
        "steps": trainer.state.global_step,
        "epochs": round(float(trainer.state.epoch or 0), 3),
        "resumed_from_step": first_step,
        "train_examples_per_s": round(examples / seconds, 2) if seconds and examples else None,
        "train_loss": round(float(result.training_loss), 5),
        "best_validation_loss": round(float(trainer.state.best_metric), 5),
        "validation_history": [{"epoch": round(item["epoch"], 3), "loss": round(item["eval_loss"], 5)} for item in history],
        "truncated_texts": truncated,
        "mean_tokens": round(sum(len(item["input_ids"]) for item in train_items) / len(train_items), 2),
        "selected_on": "test" if config.select_on_test else "validation",
    }


def _load_base(entry: BaseModel, classes: tuple[str, ...], config: ClassifierConfig) -> tuple[Any, Any, tuple[str, str | None]]:
    """The encoder with a fresh classification head, its tokenizer, and where both came from."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = location, revision = weights_location(entry.name, config.base_path, config.revision)
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
        network = AutoModelForSequenceClassification.from_pretrained(
            location, revision=revision, num_labels=len(classes), dtype=torch.float32, use_safetensors=True, **labels
        )
    except OSError as error:
        raise ModelUnavailable(
            f"The weights of {entry.name} ({location}{f' at {revision}' if revision else ''}) cannot be loaded: "
            f"{str(error).splitlines()[0]} On a machine without a network, train 'linear' or 'minilm', fill the hub cache "
            "beforehand, or set base_path to a folder with config.json, tokenizer files and model.safetensors."
        ) from error
    return network, tokenizer, source


def batch_collator(tokenizer: Any, config: ClassifierConfig) -> Any:
    """What makes a batch: texts padded to the longest of them, or to `max_length` as the original did."""
    from transformers import DataCollatorWithPadding

    if config.pad_to_max_length:
        return DataCollatorWithPadding(tokenizer, padding="max_length", max_length=config.max_length)
    return DataCollatorWithPadding(tokenizer)


def _optimizer(network: Any, entry: BaseModel, config: ClassifierConfig) -> Any:
    """AdamW in which the fresh head learns faster than the pretrained encoder; vectors (biases, norms) do not decay."""
    import torch

    rate = config.learning_rate or entry.learning_rate
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in network.named_parameters():
        is_head = not name.startswith(f"{network.base_model_prefix}.")
        groups.setdefault((is_head, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate * (config.head_learning_rate_factor if is_head else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (is_head, decays), parameters in groups.items()
        ]
    )


def _tokenise(rows: pd.DataFrame, tokenizer: Any, config: ClassifierConfig) -> tuple[list[dict[str, Any]], int]:
    """Token ids and labels, one item a row, and how many texts were longer than `max_length`."""
    full = tokenizer(rows["text"].tolist(), truncation=False, verbose=False)["input_ids"]
    cut = tokenizer(rows["text"].tolist(), truncation=True, max_length=config.max_length)
    names = list(cut.keys())
    columns = [cut[name] for name in names]
    items = [
        {**dict(zip(names, values, strict=True)), "labels": int(label)}
        for *values, label in zip(*columns, rows["label_id"], strict=True)
    ]
    return items, sum(len(ids) > config.max_length for ids in full)


def _reporting_callback(name: str, batch_size: int, run: TrackedRun | None) -> Any:
    """A trainer callback that logs progress and sends losses to the tracker."""
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):  # type: ignore[misc]
        """Progress lines and tracked losses."""

        progress: Progress | None = None
        step = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.step = state.global_step
            self.progress = Progress(f"training {name}", state.max_steps * batch_size, "texts", done=self.step * batch_size)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.progress is not None:
                self.progress.advance((state.global_step - self.step) * batch_size)
            self.step = state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
            numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
            if run is not None and numbers:
                run.log({**numbers, "step": state.global_step})
            if "eval_loss" in numbers:
                logger.info("%s: epoch %.2f, validation loss %.4f", name, state.epoch or 0, numbers["eval_loss"])

    return Reporting()
