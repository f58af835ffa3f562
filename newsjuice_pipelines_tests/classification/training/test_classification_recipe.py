"""Recipes: what a model's own, a user's settings and the original's come to, and the parts that training is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from newsjuice_pipelines.classification.training.batches import TokenisedTexts
from newsjuice_pipelines.classification.training.encoder import build_optimizer, class_weights, rate_factor, set_mean_pooling
from newsjuice_pipelines.classification.training.loop import chosen_precision, schedule
from newsjuice_pipelines.classification.training.models import BASE_MODELS
from newsjuice_pipelines.classification.training.recipe import RECIPES, ClassifierConfig, recipe_for
from newsjuice_pipelines.runtime.devices import Device

CPU = Device("cpu", "2 CPU cores", "float32")


def test_the_original_recipe_is_the_original_experiments() -> None:
    recipe = recipe_for(BASE_MODELS["roberta-original"], ClassifierConfig())
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.max_length) == (3, 2e-5, 16, 512)
    assert recipe.pad_to_max_length
    assert recipe.selected_on == "test"


@pytest.mark.parametrize("name", ["minilm", "distilbert", "roberta"])
def test_both_recipes_start_from_the_same_weights(name: str) -> None:
    ours, original = BASE_MODELS[name], BASE_MODELS[f"{name}-original"]
    assert (ours.hub_id, ours.revision, ours.licence) == (original.hub_id, original.revision, original.licence)
    assert (ours.recipe, original.recipe) == ("ours", "original")


def test_our_recipe_takes_rate_and_pooling_from_the_model_and_never_looks_at_the_test_part() -> None:
    minilm, roberta = (recipe_for(BASE_MODELS[name], ClassifierConfig()) for name in ("minilm", "roberta"))
    assert (minilm.learning_rate, minilm.pooling) == (3e-4, "mean")
    assert (roberta.learning_rate, roberta.pooling) == (2e-5, "model")
    assert minilm.selected_on == "validation"


@pytest.mark.parametrize("name", ["minilm", "minilm-original"])
def test_a_setting_that_is_filled_in_wins_over_any_recipe(name: str) -> None:
    config = ClassifierConfig(pad_to_max_length=False, select_on_test=False, epochs=1, weight_decay=0.0)
    recipe = recipe_for(BASE_MODELS[name], config)
    assert (recipe.pad_to_max_length, recipe.select_on_test, recipe.epochs, recipe.weight_decay) == (False, False, 1, 0.0)
    assert recipe.batch_size == RECIPES[BASE_MODELS[name].recipe].batch_size


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"warmup_fraction": 1.0},
        {"max_steps": -1},
        {"linear_c": 0},
        {"label_smoothing": -0.1},
        {"layer_decay": 1.5},
        {"max_length": 2},
        {"class_weighting": "inverse"},
        {"pooling": "max"},
        {"precision": "int8"},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClassifierConfig(**wrong)


def test_half_precision_is_refused_on_a_cpu_and_auto_takes_what_the_device_is_best_at() -> None:
    with pytest.raises(ValueError, match="GPU"):
        chosen_precision("float16", CPU)
    assert chosen_precision("auto", Device("cuda", "T4", "float16")) == "float16"
    assert chosen_precision("float32", Device("cuda", "T4", "float16")) == "float32"


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert schedule(0, 10, 0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("bert.encoder.layer.5.output.dense.weight", 1.0),
        ("bert.encoder.layer.4.output.dense.weight", 0.5),
        ("bert.embeddings.word_embeddings.weight", 0.5**6),
        ("bert.pooler.dense.weight", 1.0),
        ("classifier.weight", 10.0),
    ],
)
def test_lower_layers_learn_slower_and_the_fresh_head_faster(name: str, factor: float) -> None:
    recipe = recipe_for(BASE_MODELS["minilm"], ClassifierConfig(layer_decay=0.5, head_learning_rate_factor=10.0))
    assert rate_factor(name, "bert", 6, recipe) == factor


def test_every_parameter_is_trained_and_only_matrices_decay(tiny_bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    groups = build_optimizer(network, recipe_for(BASE_MODELS["minilm"], ClassifierConfig(weight_decay=0.1))).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}


@pytest.mark.parametrize("weighting", ["balanced", "effective"])
def test_rare_classes_weigh_more_and_the_average_row_weighs_one(weighting: str) -> None:
    labels = np.repeat([0, 1], [900, 100])
    weights = class_weights(labels, 3, weighting)
    assert weights is not None
    assert weights[1] > weights[0]
    assert weights[labels].mean() == pytest.approx(1.0)
    assert weights[2] == 1.0  # a class without rows


def test_balanced_weights_give_every_class_the_same_say_and_effective_ones_less_of_it() -> None:
    labels = np.repeat([0, 1], [9000, 1000])
    balanced, effective = (class_weights(labels, 2, name) for name in ("balanced", "effective"))
    assert balanced is not None
    assert effective is not None
    assert balanced[0] * 9000 == pytest.approx(balanced[1] * 1000)
    assert 1 < effective[1] / effective[0] < balanced[1] / balanced[0]
    assert class_weights(labels, 2, "none") is None


def test_a_fitted_pooler_brings_the_head_near_the_mean_of_all_tokens(tiny_bert: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    random = np.random.default_rng(0)
    lengths = random.integers(3, 8, 400)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    texts = TokenisedTexts(random.integers(1000, 1040, starts[-1]).astype(np.int32), starts, np.zeros(400, np.int64), 0)
    explained = set_mean_pooling(network, texts, 0, CPU, seed=0)
    assert explained is not None
    assert 0.1 < explained <= 1.0

    ids = torch.from_numpy(texts.ids[:5].astype(np.int64))[None]
    alone, beside = network(ids).logits, network(torch.cat([ids, ids.flip(1)])).logits[:1]
    torch.testing.assert_close(alone, beside)  # plain layout: nothing but the text itself counts


def test_a_model_that_pools_by_the_mean_is_told_to(tiny_bert: Path) -> None:
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    network = ModernBertForSequenceClassification(ModernBertConfig(**shape, pad_token_id=0, cls_token_id=1, sep_token_id=2))
    assert set_mean_pooling(network, None, 0, CPU, seed=0) is None  # type: ignore[arg-type]
    assert network.config.classifier_pooling == "mean"


def test_mean_pooling_is_refused_where_a_model_cannot_do_it() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    network = DistilBertForSequenceClassification(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=50))
    with pytest.raises(ValueError, match="DistilBertForSequenceClassification cannot do"):
        set_mean_pooling(network, None, 0, CPU, seed=0)  # type: ignore[arg-type]
