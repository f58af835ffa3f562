"""Training a classifier on a split: fine-tuning an encoder, or fitting the linear model. How good it is: `evaluate.py`."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.training.batches import TokenisedTexts, epoch_batches, padding_share, tokenise
from newsjuice_pipelines.classification.training.checkpoint import CheckpointDescription, write_model_card
from newsjuice_pipelines.classification.training.encoder import class_weights, load_base, set_mean_pooling
from newsjuice_pipelines.classification.training.linear import train_linear
from newsjuice_pipelines.classification.training.loop import Course, EncoderTrainer
from newsjuice_pipelines.classification.training.models import BaseModel, base_model
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig, Recipe, recipe_for
from newsjuice_pipelines.runtime.checkpoints import start_fresh_unless_same

if TYPE_CHECKING:
    import pandas as pd

    from newsjuice_pipelines.runtime.tracking import TrackedRun, Tracker

logger = logging.getLogger("newsjuice.classification")

LINEAR_WEIGHTINGS = ("none", "balanced")


class TrainingRowsError(ValueError):
    """The rows of a split are not enough to train on."""


def train_classifier(
    model: str | BaseModel, split_dir: Path, config: ClassifierConfig, out: Path, scratch: Path, tracker: Tracker | None = None
) -> dict[str, Any]:
    """Train a model of the table, or an added one, on a written split; `out` becomes a checkpoint for `load_classifier`.

    An encoder's states in `scratch` let a second call go on after a crash. The test part is never read, unless the recipe
    lets it pick the checkpoint.

    Raises:
        ModelUnavailable: no such model, or its weights cannot be had; the message says what to do.
        TrainingRowsError: too few rows or classes.
        TrainingFailed: the loss diverged, or the memory is too small even for half of a batch at a time.
    """
    entry = base_model(model) if isinstance(model, str) else model
    recipe = recipe_for(entry, config)
    classes = read_classes(split_dir)
    train = read_part(split_dir, "train")
    _check_train(train, classes)
    common = {"model": entry.name, "recipe": entry.recipe, "classes": list(classes), "train_rows": len(train)}
    common |= {"seed": config.seed, "config": asdict(config)}
    with _tracked(tracker, f"classifier-{entry.name}", common) as run:
        started = time.monotonic()
        if entry.is_encoder:
            selection = read_part(split_dir, recipe.selected_on)
            if selection.empty:
                raise TrainingRowsError(
                    f"The {recipe.selected_on} part is empty, so nothing can pick the checkpoint: make the split with a "
                    f"{recipe.selected_on}_fraction above 0."
                )
            facts = {**common, **_train_encoder(entry, train, selection, classes, config, recipe, out, scratch, run)}
        else:
            facts = {**common, **_train_linear(entry, train, read_part(split_dir, "validation"), classes, config, out)}
        facts["train_s"] = round(time.monotonic() - started, 2)
        facts["tracking_url"] = run.url if run is not None else None
        write_model_card(out, facts, entry.licence, entry.description)
        facts["size_bytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        if run is not None:
            run.log({"train_s": facts["train_s"], "size_bytes": facts["size_bytes"]})
    return facts


def _check_train(train: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Refuse rows that no classifier can be trained on; classes without a training row are only logged."""
    numbers = set(train["label_id"])
    if len(numbers) < 2:
        raise TrainingRowsError(
            f"The train part has {len(train)} rows of {len(numbers)} classes; training needs rows of at least 2. "
            "Check the taxonomy and the fractions of the split."
        )
    if not numbers <= set(range(len(classes))):
        raise TrainingRowsError(
            f"The train part has label ids up to {max(numbers)}, but the split has {len(classes)} classes: "
            "materialise 'balanced_split' again."
        )
    if len(numbers) < len(classes):
        missing = [name for number, name in enumerate(classes) if number not in numbers]
        logger.warning("%d classes have no training row and will never be predicted: %s", len(missing), ", ".join(missing[:5]))


@contextmanager
def _tracked(tracker: Tracker | None, name: str, config: dict[str, Any]) -> Iterator[TrackedRun | None]:
    """The tracker's run, or None without a tracker."""
    if tracker is None:
        yield None
        return
    with tracker.run(name, config) as run:
        yield run


def _train_linear(
    entry: BaseModel,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    classes: tuple[str, ...],
    config: ClassifierConfig,
    out: Path,
) -> dict[str, Any]:
    """Fit the linear model and save it; returns its facts. The validation part scales its margins."""
    if config.class_weighting not in LINEAR_WEIGHTINGS:
        raise ValueError(
            f"class_weighting is {config.class_weighting!r}; the linear model knows {' and '.join(LINEAR_WEIGHTINGS)}."
        )
    balanced = config.class_weighting == "balanced"
    fitted = train_linear(train, validation, len(classes), config.linear_c, config.seed, out, balanced=balanced)
    described = CheckpointDescription(
        entry.name, "linear", classes, None, None, None, selected_on="validation", recipe=entry.recipe
    )
    described.write(out)
    return {**fitted, "base": None, "revision": None, "library": "sklearn", "device": "cpu", "selected_on": "validation"}


def _train_encoder(
    entry: BaseModel,
    train: pd.DataFrame,
    selection: pd.DataFrame,
    classes: tuple[str, ...],
    config: ClassifierConfig,
    recipe: Recipe,
    out: Path,
    scratch: Path,
    run: TrackedRun | None,
) -> dict[str, Any]:
    """Fine-tune an encoder on a GPU of its own, or on the CPU, and save it; returns its facts."""
    from newsjuice_pipelines.runtime.leased_gpu import leased_gpu
    from newsjuice_pipelines.runtime.seeds import set_seeds

    scratch.mkdir(parents=True, exist_ok=True)
    with leased_gpu(f"training {entry.name}") as device:
        set_seeds(recipe.seed)
        network, tokenizer, revision, max_length = load_base(entry, classes, recipe, config)
        pad_id = tokenizer.pad_token_id
        texts, selecting = tokenise(train, tokenizer, max_length), tokenise(selection, tokenizer, max_length)
        start_fresh_unless_same(
            scratch,
            {
                "recipe": asdict(recipe),
                "base": [entry.hub_id, entry.folder, revision, config.base_path],
                "classes": list(classes),
                "rows": _digest(texts, selecting),
            },
        )
        network.to(device.torch_name)
        explained = set_mean_pooling(network, texts, pad_id, device, recipe.seed) if recipe.pooling == "mean" else None
        width = max_length if recipe.pad_to_max_length else None
        weights = class_weights(texts.labels, len(classes), recipe.class_weighting)
        trainer = EncoderTrainer(network, pad_id, recipe, device, width, weights)
        course, first_step = trainer.fit(entry.name, texts, selecting, scratch, run)
        network.save_pretrained(out)
        tokenizer.save_pretrained(out)
    described = CheckpointDescription(
        entry.name, "encoder", classes, max_length, entry.base, revision, recipe.selected_on, entry.recipe
    )
    described.write(out)
    return {
        "selection_rows": len(selection),
        "base": entry.base,
        "revision": revision,
        "library": "transformers",
        "device": f"{device.type}: {device.name}",
        "precision": trainer.precision,
        "parameters": int(network.num_parameters()),
        "settings": asdict(recipe),
        "pooler_fit": None if explained is None else round(explained, 4),
        "texts_at_a_time": trainer.texts_at_a_time,
        "out_of_memory_at_batch_size": recipe.batch_size if trainer.parts > 1 else None,
        "resumed_from_step": first_step,
        "selected_on": recipe.selected_on,
        **_course_facts(course, len(texts)),
        **_text_facts(texts, recipe, width),
    }


def _course_facts(course: Course, rows: int) -> dict[str, Any]:
    """What a training came to; the speed is that of the training steps alone."""
    best = next(item for item in course.history if item["step"] == course.best_step)
    return {
        "steps": course.step,
        "epochs": round(course.texts / rows, 3),
        "stopped_early": course.stopped_early,
        "best_step": course.best_step,
        "train_examples_per_s": round(course.texts / course.seconds, 2) if course.seconds else None,
        "train_loss": round(course.loss_sum / course.step, 5),
        "best_selection_loss": best["loss"],
        "best_selection_accuracy": best["accuracy"],
        "selection_history": course.history,
    }


def _text_facts(texts: TokenisedTexts, recipe: Recipe, width: int | None) -> dict[str, Any]:
    """How long the training texts are, and how much of a batch is padding."""
    batches = epoch_batches(texts.lengths, recipe.batch_size, recipe.seed, 0, group_by_length=recipe.group_by_length)
    return {
        "truncated_texts": texts.truncated,
        "mean_tokens": round(float(texts.lengths.mean()), 2),
        "padding_share": round(padding_share(texts.lengths, batches, width), 4),
    }


def _digest(*parts: TokenisedTexts) -> str:
    """What tells one set of rows, and their order, from another."""
    digest = hashlib.sha256()
    for part in parts:
        for array in (part.starts, part.ids, part.labels):
            digest.update(array.tobytes())
    return digest.hexdigest()
