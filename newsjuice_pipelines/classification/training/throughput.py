"""How fast a recipe trains on this machine: a few real steps, timed. What is compared with what: the benchmarks."""

from __future__ import annotations

import time
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple

from newsjuice_pipelines.classification.training.batches import epoch_batches, padding_share, tokenise
from newsjuice_pipelines.classification.training.encoder import class_weights, load_base
from newsjuice_pipelines.classification.training.loop import EncoderTrainer
from newsjuice_pipelines.classification.training.models import BaseModel, base_model
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig, recipe_for

if TYPE_CHECKING:
    import pandas as pd


class Throughput(NamedTuple):
    """Texts trained on a second, and the share of padding in their batches."""

    examples_per_s: float
    padding_share: float


def measure_throughput(
    model: str | BaseModel, rows: pd.DataFrame, config: ClassifierConfig, steps: int, warm_up_steps: int = 1
) -> Throughput:
    """Train for some steps as `train_classifier` would (no validation, nothing saved) and time those after the warm-up.

    Args:
        model: an encoder of the table, or an added one.
        rows: `text` and `label_id`; too few for the steps come again.
        config: settings over the model's recipe.
        steps: optimiser steps that are timed.
        warm_up_steps: optimiser steps before them.

    Raises:
        ModelUnavailable: the weights cannot be had.
    """
    from newsjuice_pipelines.runtime.leased_gpu import leased_gpu
    from newsjuice_pipelines.runtime.seeds import set_seeds

    entry = base_model(model) if isinstance(model, str) else model
    recipe = recipe_for(entry, config)
    classes = tuple(f"class {number}" for number in range(int(rows["label_id"].max()) + 1))
    with leased_gpu(f"timing {entry.name}") as device:
        set_seeds(recipe.seed)
        network, tokenizer, _, max_length = load_base(entry, classes, recipe, config)
        texts = tokenise(rows, tokenizer, max_length)
        width = max_length if recipe.pad_to_max_length else None
        weights = class_weights(texts.labels, len(classes), recipe.class_weighting)
        trainer = EncoderTrainer(network, tokenizer.pad_token_id, recipe, device, width, weights)
        network.train()
        order = epoch_batches(texts.lengths, recipe.batch_size, recipe.seed, 0, group_by_length=recipe.group_by_length)
        batches = list(islice(cycle(order), warm_up_steps + steps))
        for batch in batches[:warm_up_steps]:
            trainer.step(texts, batch, 1.0).item()
        started = time.perf_counter()
        for batch in batches[warm_up_steps:]:
            loss = trainer.step(texts, batch, 1.0)
        loss.item()  # waits for the GPU
        seconds = time.perf_counter() - started
    timed = batches[warm_up_steps:]
    return Throughput(sum(len(batch) for batch in timed) / seconds, padding_share(texts.lengths, timed, width))
