"""An encoder with a fresh classification head: loading it, what its head sees, its optimiser, the weights of the classes."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.training.batches import TokenisedTexts, collate, sorted_batches
from newsjuice_pipelines.classification.training.models import BaseModel, ModelUnavailable, weights_location
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig, Recipe

if TYPE_CHECKING:
    import numpy as np

    from newsjuice_pipelines.runtime.devices import Device

logger = logging.getLogger("newsjuice.classification")

POOLER_TEXTS = 3000  # eight for each of MiniLM's 384 inputs
POOLER_BATCH_TEXTS = 128
POOLER_SPREAD = 0.5  # standard deviation before the tanh, where it is still nearly a straight line
POOLER_RIDGE = 1e-3
POOLER_HELD_OUT = 5  # one text in so many is not fitted, and shows how good the fit is
EFFECTIVE_BETA = 0.999  # Cui et al., 2019: the effective number of n rows is (1 - beta^n) / (1 - beta)
LAYER = re.compile(r"\.layers?\.(\d+)\.")


def load_base(
    entry: BaseModel, classes: tuple[str, ...], recipe: Recipe, config: ClassifierConfig
) -> tuple[Any, Any, str | None, int]:
    """The encoder with a fresh classification head, its tokenizer, its revision, and the longest text in tokens.

    Raises:
        ModelUnavailable: the weights cannot be had; the message says what to do.
        ValueError: a pooling that this model cannot have.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    location, revision = weights_location(entry, config.base_path, config.revision)
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
        network, loading = AutoModelForSequenceClassification.from_pretrained(
            location,
            revision=revision,
            num_labels=len(classes),
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a folder may hold a classifier for other classes; its head is not kept
            output_loading_info=True,
            **labels,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelUnavailable(
            f"The weights of {entry.name} ({location}{f' at {revision}' if revision else ''}) cannot be loaded: "
            f"{str(error).splitlines()[0]} On a machine without a network, train 'linear' or 'minilm', fill the hub cache "
            "beforehand, or set base_path to a folder with config.json, tokenizer files and model.safetensors."
        ) from error
    if tokenizer.pad_token_id is None:
        raise ModelUnavailable(f"{entry.name} ({location}) has no padding token: give an encoder such as BERT or RoBERTa.")
    _reset_loaded_head(network, set(loading["missing_keys"]))
    limits = (recipe.max_length, tokenizer.model_max_length, _positions(network))
    return network, tokenizer, getattr(network.config, "_commit_hash", None) or revision, min(filter(None, limits))


def _positions(network: Any) -> int | None:
    """How many tokens have a position; None where positions are no table. Models of RoBERTa's kind count from behind padding."""
    positions: int | None = getattr(network.config, "max_position_embeddings", None)
    padding = getattr(getattr(getattr(network.base_model, "embeddings", None), "position_embeddings", None), "padding_idx", None)
    return positions if positions is None or padding is None else positions - padding - 1


def _reset_loaded_head(network: Any, fresh: set[str]) -> None:
    """Draw the head anew where the folder held one: its outputs stand for other classes, or for ours in another order."""
    prefix = f"{network.base_model_prefix}."
    for name, module in network.named_modules():
        is_head = not f"{name}.".startswith(prefix) and hasattr(module, "reset_parameters")
        if is_head and any(f"{name}.{own}" not in fresh for own, _ in module.named_parameters(recurse=False)):
            module.reset_parameters()


def set_mean_pooling(network: Any, texts: TokenisedTexts, pad_id: int, device: Device, seed: int) -> float | None:
    """Let the head see the mean of all tokens, in a model that keeps the layout and the class of its kind.

    A sentence encoder was trained through the mean of its tokens; its pooler, a layer on the first token, was not trained at
    all. Some models can pool by the mean as a setting. For those of BERT's kind the pooler is fitted by least squares, so that
    it yields from the first token what comes nearest to the (standardised) mean; training goes on from there.

    Returns:
        The share of the mean's variance that the fitted pooler gives, on texts that it was not fitted on; None where the
        model pools by the mean itself.

    Raises:
        ValueError: a model that offers neither.
    """
    import numpy as np
    import torch

    if hasattr(network.config, "classifier_pooling"):
        network.config.classifier_pooling = "mean"
        return None
    pooler = getattr(getattr(network.base_model, "pooler", None), "dense", None)
    if pooler is None:
        raise ValueError(f"pooling is 'mean', which {type(network).__name__} cannot do: set it to 'model'.")
    chosen = np.random.default_rng(seed).permutation(len(texts))[:POOLER_TEXTS]
    firsts, means = [], []
    network.eval()
    with torch.inference_mode():
        for batch in sorted_batches(texts.lengths[chosen], POOLER_BATCH_TEXTS):
            inputs = collate(texts, chosen[batch], pad_id)
            mask = inputs["attention_mask"].to(device.torch_name)
            hidden = network.base_model(inputs["input_ids"].to(device.torch_name), attention_mask=mask).last_hidden_state
            firsts.append(hidden[:, 0].double().cpu().numpy())
            means.append(((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).double().cpu().numpy())
    order = np.random.default_rng(seed).permutation(len(chosen))  # the batches were sorted by length
    weight, bias, explained = _fitted_pooler(np.vstack(firsts)[order], np.vstack(means)[order])
    with torch.no_grad():
        pooler.weight.copy_(torch.from_numpy(weight))
        pooler.bias.copy_(torch.from_numpy(bias))
    return explained


def _fitted_pooler(first: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Weight and bias that map first tokens to standardised means (ridge regression), and the share of variance explained."""
    import numpy as np

    target = (mean - mean.mean(0)) / np.maximum(mean.std(0), 1e-6) * POOLER_SPREAD
    held_out = np.arange(len(first)) % POOLER_HELD_OUT == 0
    fitted = ~held_out if (~held_out).any() else held_out
    centre, level = first[fitted].mean(0), target[fitted].mean(0)
    inputs, outputs = first[fitted] - centre, target[fitted] - level
    gram = inputs.T @ inputs
    ridge = POOLER_RIDGE * max(float(np.trace(gram)), 1e-6) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram + ridge, inputs.T @ outputs).T
    bias = level - weight @ centre
    left = ((first @ weight.T + bias - target)[held_out] ** 2).sum()
    spread = ((target[held_out] - target[held_out].mean(0)) ** 2).sum()
    return weight, bias, float(1 - left / spread) if spread else 0.0


def build_optimizer(network: Any, recipe: Recipe) -> Any:
    """AdamW: the fresh head learns faster than the encoder's top layer, each layer below slower; vectors do not decay."""
    import torch

    named = list(network.named_parameters())
    layers = 1 + max((int(found[1]) for name, _ in named if (found := LAYER.search(name))), default=-1)
    groups: dict[tuple[float, bool], list[Any]] = {}
    for name, parameter in named:
        factor = rate_factor(name, network.base_model_prefix, layers, recipe)
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.learning_rate * factor,
                "initial_lr": recipe.learning_rate * factor,
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            for (factor, decays), parameters in groups.items()
        ],
        fused=True,
    )


def rate_factor(name: str, base_prefix: str, layers: int, recipe: Recipe) -> float:
    """By how much the learning rate of the parameter `name` differs from the recipe's, in a model of so many layers."""
    if not name.startswith(f"{base_prefix}."):
        return recipe.head_learning_rate_factor
    found = LAYER.search(name)
    if found:
        return float(recipe.layer_decay ** (layers - 1 - int(found[1])))
    return float(recipe.layer_decay**layers) if "embeddings." in name else 1.0


def class_weights(labels: np.ndarray, class_count: int, weighting: str) -> np.ndarray | None:
    """The weight of each class in the loss, 1 for the average row; None when all weigh the same.

    Args:
        labels: class numbers of the training rows.
        class_count: number of classes; one without rows weighs 1.
        weighting: `none`, `balanced` (one over its rows) or `effective` (one over its effective number of rows).
    """
    import numpy as np

    if weighting == "none":
        return None
    counts = np.bincount(labels, minlength=class_count).astype(np.float64)
    seen = counts > 0
    effective = counts if weighting == "balanced" else (1 - EFFECTIVE_BETA**counts) / (1 - EFFECTIVE_BETA)
    weights = np.ones(class_count)
    weights[seen] = 1 / effective[seen]
    weights[seen] *= counts.sum() / (weights[seen] * counts[seen]).sum()
    return weights
