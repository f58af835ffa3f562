"""The table of classifiers: pinned sources, what works without a network, and adding a model in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training.checkpoint import read_description
from newsjuice_pipelines.classification.training.encoder import load_base
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, train_classifier
from newsjuice_pipelines.classification.training.models import (
    BASE_MODELS,
    ModelUnavailable,
    available_offline,
    base_model,
    catalogue,
    weights_location,
)
from newsjuice_pipelines.classification.training.recipe import recipe_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_local_folder_is_added_by_one_line_and_trained(tiny_bert: Path, tmp_path: Path, topic_split: Path) -> None:
    entry = base_model("mine", catalogue(f"mine={tiny_bert}"))
    assert available_offline(entry)
    out = tmp_path / "out"
    out.mkdir()
    facts = train_classifier(entry, topic_split, ClassifierConfig(max_steps=3), out, tmp_path / "scratch")
    assert (facts["model"], facts["base"], facts["steps"]) == ("mine", tiny_bert.name, 3)
    assert load_classifier(out).classes == read_classes(topic_split)


def test_models_are_added_beside_the_table() -> None:
    models = catalogue(f" mpnet = microsoft/mpnet-base@{COMMIT}, other=bert-base-uncased@{COMMIT} ,")
    assert list(models) == [*BASE_MODELS, "mpnet", "other"]
    assert weights_location(models["mpnet"]) == ("microsoft/mpnet-base", COMMIT)
    assert models["other"].is_encoder
    assert catalogue("") == BASE_MODELS


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("mine", "name=folder or name=hub-id@commit"),
        ("Mine=a/b@" + COMMIT, "lower-case"),
        ("../mine=a/b@" + COMMIT, "lower-case"),
        ("minilm=a/b@" + COMMIT, "already is one named 'minilm'"),
        (f"a=x/y@{COMMIT}, a=x/z@{COMMIT}", "already is one named 'a'"),
        ("mine=a/b", "40 hexadecimal digits"),
        ("mine=a/b@main", "40 hexadecimal digits"),
        ("mine=https://hub.example/a/b", "neither a folder nor a hub id"),
    ],
)
def test_a_wrong_line_is_refused_with_what_it_should_be(added: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        catalogue(added)


def test_a_folder_that_only_the_training_machine_has_can_be_listed_here_but_not_trained(tmp_path: Path) -> None:
    entry = catalogue("mine=/models/elsewhere")["mine"]
    assert not available_offline(entry)
    with pytest.raises(ModelUnavailable, match=r"mine: '/models/elsewhere' holds no config\.json"):
        weights_location(entry)


def test_the_head_of_a_folder_with_other_labels_is_not_kept(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = shutil.copytree(tiny_bert, tmp_path / "folder")
    for count in (3, 5):  # as many labels as are wanted, in whatever order, and another number of them
        held = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=count)
        held.save_pretrained(folder)
        entry = catalogue(f"mine={folder}")["mine"]
        config = ClassifierConfig()
        network, *_ = load_base(entry, ("A", "B", "C"), recipe_for(entry, config), config)
        assert network.config.id2label == {0: "A", 1: "B", 2: "C"}
        assert not np.array_equal(network.classifier.weight.detach(), held.classifier.weight.detach()[:3])
        name = "encoder.layer.1.output.dense.weight"
        np.testing.assert_array_equal(network.bert.get_parameter(name).detach(), held.bert.get_parameter(name).detach())


def test_positions_that_stand_for_padding_hold_no_token(tiny_bert: Path, tmp_path: Path, topic_split: Path) -> None:
    import torch
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    roberta = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **shape)
    RobertaModel(roberta).save_pretrained(tmp_path / "roberta")
    tokenizer.model_max_length = 10_000  # the folder of a user need not know it
    tokenizer.save_pretrained(tmp_path / "roberta")
    split = shutil.copytree(topic_split, tmp_path / "split")
    for part in ("train", "validation"):
        read_part(split, part).assign(text="rain and snow " * 100).to_parquet(split / f"{part}.parquet")
    out = tmp_path / "out"
    out.mkdir()
    entry = catalogue(f"mine={tmp_path / 'roberta'}")["mine"]
    train_classifier(entry, split, ClassifierConfig(max_steps=1, max_length=512), out, tmp_path / "scratch")
    assert read_description(out).max_length == 64
    assert np.isfinite(load_classifier(out).predict_logits(["rain and snow " * 100])).all()


def test_weights_that_are_a_pointer_file_say_what_to_do(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "folder")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    entry, config = catalogue(f"mine={folder}")["mine"], ClassifierConfig()
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_base(entry, ("A", "B"), recipe_for(entry, config), config)


def test_an_unknown_model_is_refused_with_the_known_names(tmp_path: Path, topic_split: Path) -> None:
    with pytest.raises(ModelUnavailable, match="linear, minilm, distilbert"):
        train_classifier("bert", topic_split, ClassifierConfig(), tmp_path, tmp_path)


def test_a_hub_model_without_a_network_says_what_to_do(
    tmp_path: Path, topic_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelUnavailable, match=r"roberta-base at e2da8e2f.*set base_path"):
        train_classifier("roberta", topic_split, ClassifierConfig(), tmp_path, tmp_path)


def test_a_base_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        weights_location("roberta", base_path=str(tmp_path))


def test_no_hub_model_is_loaded_without_a_pinned_revision() -> None:
    for name, model in BASE_MODELS.items():
        if model.is_encoder and not name.startswith(("minilm", "deberta-v3")):
            assert len(weights_location(name)[1] or "") == 40
    with pytest.raises(ModelUnavailable, match="set `revision`"):
        weights_location("deberta-v3")
    assert weights_location("deberta-v3", revision="0" * 40)[1] == "0" * 40


def test_what_is_available_without_a_network_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert {name for name in BASE_MODELS if available_offline(name)} == {"linear", "minilm", "minilm-original"}
