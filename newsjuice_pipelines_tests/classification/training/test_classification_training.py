"""Training and loading: both kinds learn, come back from disk unchanged, and survive a crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, batch_collator, train_classifier
from newsjuice_pipelines.classification.training.models import (
    BASE_MODELS,
    ModelUnavailable,
    available_offline,
    weights_location,
)
from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm

TEXTS = ["Ten Soups For A Cold Night", "Senate Passes The Budget Bill", "New Telescope Finds A Distant Planet. It is large.", ""]
UNCUT = 3


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory, topic_split: Path) -> dict[str, Any]:
    """Facts of one short training with everything set that is off by default, from a local folder."""
    config = ClassifierConfig(
        max_steps=2, max_length=8, pad_to_max_length=True, select_on_test=True, base_path=str(packaged_minilm())
    )
    out, scratch = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("scratch")
    return train_classifier("distilbert", topic_split, config, out, scratch)


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_a_trained_classifier_beats_guessing_the_largest_topic(
    trained: str, request: pytest.FixtureRequest, topic_split: Path
) -> None:
    largest = read_part(topic_split, "test")["label"].value_counts(normalize=True).max()
    assert request.getfixturevalue(trained).scores["accuracy"] > largest + 0.1


def test_clear_headlines_are_filed_right(minilm: Any) -> None:
    classifier = load_classifier(minilm.checkpoint)
    texts = ["Bake This Chocolate Cake Recipe In Your Kitchen", "Scientists Say The Climate And The Planet Are Warming"]
    assert [classifier.classes[index] for index in classifier.predict_proba(texts).argmax(axis=1)] == ["FOOD", "SCIENCE"]


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_a_prediction_does_not_depend_on_the_texts_beside_it(trained: str, request: pytest.FixtureRequest) -> None:
    classifier = load_classifier(request.getfixturevalue(trained).checkpoint)
    together = classifier.predict_logits(TEXTS)
    alone = np.vstack([classifier.predict_logits([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_probabilities_sum_to_one_and_no_text_gives_no_row(trained: str, request: pytest.FixtureRequest) -> None:
    classifier = load_classifier(request.getfixturevalue(trained).checkpoint)
    np.testing.assert_allclose(classifier.predict_proba(TEXTS).sum(axis=1), 1.0)
    assert classifier.predict_proba([]).shape == (0, len(classifier.classes))


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_the_classes_come_from_the_checkpoint_in_the_order_of_the_split(
    trained: str, request: pytest.FixtureRequest, topic_split: Path
) -> None:
    assert load_classifier(request.getfixturevalue(trained).checkpoint).classes == read_classes(topic_split)


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_a_checkpoint_holds_safetensors_and_a_card_and_no_pickle(trained: str, request: pytest.FixtureRequest) -> None:
    names = {path.name for path in request.getfixturevalue(trained).checkpoint.iterdir()}
    assert {"model.safetensors", "classifier.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".joblib"))]


def test_facts_are_json_and_say_what_was_trained(linear: Any, minilm: Any) -> None:
    for trained in (linear, minilm):
        json.dumps(trained.facts, allow_nan=False)
        assert trained.facts["size_bytes"] > 0
    assert minilm.facts["truncated_texts"] == 0
    assert minilm.facts["best_validation_loss"] == min(item["loss"] for item in minilm.facts["validation_history"])


def test_the_encoder_names_its_classes_in_its_own_configuration(minilm: Any, topic_split: Path) -> None:
    config = json.loads((minilm.checkpoint / "config.json").read_text(encoding="utf-8"))
    assert tuple(config["id2label"][str(number)] for number in range(4)) == read_classes(topic_split)


def test_a_checkpoint_whose_two_label_lists_differ_is_refused(minilm: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(minilm.checkpoint, tmp_path / "copy")
    described = json.loads((copy / "classifier.json").read_text(encoding="utf-8"))
    described["classes"].reverse()
    (copy / "classifier.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the same classes in another order"):
        load_classifier(copy)


def test_a_linear_checkpoint_with_a_cut_vocabulary_is_refused(linear: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(linear.checkpoint, tmp_path / "copy")
    features = json.loads((copy / "features.json").read_text(encoding="utf-8"))
    features["word"].pop()
    (copy / "features.json").write_text(json.dumps(features), encoding="utf-8")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_classifier(copy)


def test_a_folder_without_a_classifier_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="classifier_checkpoint"):
        load_classifier(tmp_path)


def test_the_linear_model_predicts_as_scikit_learn_fitted_it(linear: Any, topic_split: Path) -> None:
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    train, test = read_part(topic_split, "train"), read_part(topic_split, "test")
    words = TfidfVectorizer(ngram_range=(1, 2), max_features=60_000, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=120_000, sublinear_tf=True)
    features = hstack([words.fit_transform(train["text"]), characters.fit_transform(train["text"])]).tocsr()
    fitted = LinearSVC(C=0.3, random_state=42).fit(features, train["label_id"])
    expected = fitted.decision_function(hstack([words.transform(test["text"]), characters.transform(test["text"])]).tocsr())
    np.testing.assert_allclose(load_classifier(linear.checkpoint).predict_logits(list(test["text"])), expected, atol=2e-3)


def test_the_linear_model_also_tells_two_classes_apart(tmp_path: Path, topic_split: Path) -> None:
    from newsjuice_pipelines.classification.training.linear import LinearClassifier, train_linear

    train = read_part(topic_split, "train").query("label_id < 2")
    train_linear(train, 2, 0.3, 42, tmp_path)
    predicted = LinearClassifier(tmp_path, ("FAMILY", "FOOD")).predict_logits(list(train["text"])).argmax(axis=1)
    assert (predicted == train["label_id"]).mean() > 0.95


def test_training_goes_on_after_a_crash_and_ends_as_if_there_had_been_none(
    tmp_path: Path, topic_split: Path, minilm: Any, recording_tracker: Any
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        train_classifier("minilm", topic_split, ClassifierConfig(), out, scratch, recording_tracker(crash_at=2))
    (scratch / "checkpoint-9999").mkdir()  # what a crash within a save leaves
    facts = train_classifier("minilm", topic_split, ClassifierConfig(), out, scratch)
    assert 0 < facts["resumed_from_step"] < facts["steps"] == minilm.facts["steps"]
    resumed, whole = load_classifier(out), load_classifier(minilm.checkpoint)
    np.testing.assert_allclose(resumed.predict_logits(TEXTS[:UNCUT]), whole.predict_logits(TEXTS[:UNCUT]), atol=1e-3)


def test_texts_beyond_the_length_limit_are_counted(unusual: dict[str, Any]) -> None:
    assert unusual["truncated_texts"] > 50


def test_losses_go_to_the_tracker(minilm: Any) -> None:
    assert minilm.tracker.names == ["classifier-minilm"]
    assert len([sent for sent in minilm.tracker.sent if "eval_loss" in sent]) >= len(minilm.facts["validation_history"])
    assert minilm.facts["tracking_url"] == minilm.tracker.url


@pytest.mark.parametrize(("pad_to_max_length", "width"), [(True, 64), (False, 3)])
def test_a_batch_is_as_wide_as_its_longest_text_unless_padding_is_asked_for(pad_to_max_length: bool, width: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged_minilm())
    collate = batch_collator(tokenizer, ClassifierConfig(pad_to_max_length=pad_to_max_length, max_length=64))
    assert collate([{"input_ids": [101, 102]}, {"input_ids": [101, 2000, 102]}])["input_ids"].shape == (2, width)


def test_the_test_part_is_not_needed_for_training(tmp_path: Path, topic_split: Path) -> None:
    copy = shutil.copytree(topic_split, tmp_path / "split")
    (copy / "test.parquet").unlink()
    out = tmp_path / "out"
    out.mkdir()
    assert train_classifier("linear", copy, ClassifierConfig(), out, tmp_path / "scratch")["train_rows"] > 0


def test_selecting_on_the_test_part_says_so(unusual: dict[str, Any], minilm: Any) -> None:
    assert (unusual["selected_on"], minilm.facts["selected_on"]) == ("test", "validation")


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup_fraction": 1.0}, {"max_steps": -1}, {"linear_c": 0}],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClassifierConfig(**wrong)


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


def test_a_hub_model_trains_from_a_local_folder(unusual: dict[str, Any]) -> None:
    assert (unusual["model"], unusual["steps"]) == ("distilbert", 2)


def test_a_base_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        weights_location("roberta", base_path=str(tmp_path))


def test_no_hub_model_is_loaded_without_a_pinned_revision() -> None:
    for name, model in BASE_MODELS.items():
        if model.is_encoder and name not in ("minilm", "deberta-v3"):
            assert len(weights_location(name)[1] or "") == 40
    with pytest.raises(ModelUnavailable, match="set `revision`"):
        weights_location("deberta-v3")
    assert weights_location("deberta-v3", revision="0" * 40)[1] == "0" * 40


def test_what_is_available_without_a_network_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert {name for name in BASE_MODELS if available_offline(name)} == {"linear", "minilm"}
