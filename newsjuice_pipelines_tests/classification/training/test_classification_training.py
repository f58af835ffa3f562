"""Training and loading: both kinds learn, come back from disk unchanged, and say what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.judging.calibrate import negative_log_likelihood, softmax
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError, read_description
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, TrainingRowsError, train_classifier
from newsjuice_pipelines.classification.training.models import catalogue
from newsjuice_pipelines.classification.training.throughput import measure_throughput

TEXTS = ["Ten Soups For A Cold Night", "Senate Passes The Budget Bill", "New Telescope Finds A Distant Planet. It is large.", ""]


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory, topic_split: Path, tiny_bert: Path) -> dict[str, Any]:
    """Facts of one short training with everything set that is off by default, from a local folder."""
    config = ClassifierConfig(
        max_steps=2,
        max_length=8,
        pad_to_max_length=True,
        select_on_test=True,
        class_weighting="effective",
        precision="bfloat16",
        pooling="mean",
        base_path=str(tiny_bert),
    )
    out, scratch = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("scratch")
    return train_classifier("roberta", topic_split, config, out, scratch)


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_a_trained_classifier_beats_guessing_the_largest_topic(
    trained: str, request: pytest.FixtureRequest, topic_split: Path
) -> None:
    largest = read_part(topic_split, "test")["label"].value_counts(normalize=True).max()
    assert request.getfixturevalue(trained).scores["accuracy"] > largest + 0.1


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
    assert minilm.facts["best_selection_loss"] == min(item["loss"] for item in minilm.facts["selection_history"])


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
    slope, offset = load_file(linear.checkpoint / "model.safetensors")["sigmoid"]
    logits = load_classifier(linear.checkpoint).predict_logits(list(test["text"]))
    np.testing.assert_allclose(logits, -np.logaddexp(0, -(slope * expected + offset)), atol=2e-3 * slope)
    assert negative_log_likelihood(softmax(logits), test["label_id"]) < negative_log_likelihood(
        softmax(expected), test["label_id"]
    )


def test_the_linear_model_also_tells_two_classes_apart(tmp_path: Path, topic_split: Path) -> None:
    from newsjuice_pipelines.classification.training.linear import LinearClassifier, train_linear

    train = read_part(topic_split, "train").query("label_id < 2")
    train_linear(train, train[:0], 2, 0.3, 42, tmp_path)
    predicted = LinearClassifier(tmp_path, ("FAMILY", "FOOD")).predict_logits(list(train["text"])).argmax(axis=1)
    assert (predicted == train["label_id"]).mean() > 0.95


def test_texts_beyond_the_length_limit_are_counted(unusual: dict[str, Any]) -> None:
    assert unusual["truncated_texts"] > 50


def test_losses_go_to_the_tracker(minilm: Any) -> None:
    assert minilm.tracker.names == ["classifier-minilm"]
    assert len([sent for sent in minilm.tracker.sent if "eval_loss" in sent]) >= len(minilm.facts["selection_history"])
    assert minilm.facts["tracking_url"] == minilm.tracker.url


def test_the_test_part_is_not_needed_for_training(tmp_path: Path, topic_split: Path) -> None:
    copy = shutil.copytree(topic_split, tmp_path / "split")
    (copy / "test.parquet").unlink()
    out = tmp_path / "out"
    out.mkdir()
    assert train_classifier("linear", copy, ClassifierConfig(), out, tmp_path / "scratch")["train_rows"] > 0


@pytest.mark.parametrize(("select_on_test", "part", "other"), [(True, "test", "validation"), (False, "validation", "test")])
def test_the_scores_that_pick_the_checkpoint_are_named_by_their_part(
    select_on_test: bool,
    part: str,
    other: str,
    tmp_path: Path,
    topic_split: Path,
    tiny_bert: Path,
    caplog: pytest.LogCaptureFixture,
    recording_tracker: Any,
) -> None:
    out, tracker = tmp_path / "out", recording_tracker()
    out.mkdir()
    config = ClassifierConfig(max_steps=1, select_on_test=select_on_test)
    with caplog.at_level("INFO", logger="newsjuice.classification"):
        facts = train_classifier(catalogue(f"tiny={tiny_bert}")["tiny"], topic_split, config, out, tmp_path / "scratch", tracker)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert facts["selection_rows"] == len(read_part(topic_split, part))
    assert f"best {part} loss" in card
    assert f"{part} rows" in card
    assert f"{part} loss" in caplog.text
    assert any(f"{part}_loss" in sent for sent in tracker.sent)
    named = [*facts, *(name for sent in tracker.sent for name in sent)]
    assert not [name for name in named if other in name.split("_")]
    assert f"{other} loss" not in caplog.text + card


def test_a_hub_model_trains_from_a_local_folder(unusual: dict[str, Any]) -> None:
    assert (unusual["model"], unusual["steps"], unusual["precision"]) == ("roberta", 2, "bfloat16")


def test_the_share_of_padding_is_a_fact(unusual: dict[str, Any], minilm: Any) -> None:
    assert minilm.facts["padding_share"] < 0.15
    assert unusual["padding_share"] == pytest.approx(1 - unusual["mean_tokens"] / 8, abs=0.01)


def test_the_recipe_is_a_fact_in_full(minilm: Any) -> None:
    assert minilm.facts["recipe"] == "ours"
    assert minilm.facts["settings"]["learning_rate"] == 3e-4
    assert 0 < minilm.facts["pooler_fit"] <= 1
    described = read_description(minilm.checkpoint)
    assert (described.recipe, described.selected_on) == ("ours", "validation")


def test_a_checkpoint_that_says_nothing_of_its_recipe_is_still_read(linear: Any, tmp_path: Path) -> None:
    described = json.loads((linear.checkpoint / "classifier.json").read_text(encoding="utf-8"))
    old = {name: value for name, value in described.items() if name not in ("recipe", "selected_on")}
    (tmp_path / "classifier.json").write_text(json.dumps(old), encoding="utf-8")
    assert read_description(tmp_path).recipe == "ours"


def changed_split(topic_split: Path, target: Path, part: str, change: Any) -> Path:
    """A copy of the split with one part changed."""
    copy = shutil.copytree(topic_split, target)
    change(read_part(copy, part)).to_parquet(copy / f"{part}.parquet")
    return copy


@pytest.mark.parametrize("model", ["linear", "tiny"])
def test_a_class_without_training_rows_is_never_predicted(
    model: str, tmp_path: Path, topic_split: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = changed_split(topic_split, tmp_path / "split", "train", lambda rows: rows[rows["label"] != "FOOD"])
    out = tmp_path / "out"
    out.mkdir()
    entry = catalogue(f"tiny={tiny_bert}")[model]
    config = ClassifierConfig(epochs=3, learning_rate=1e-3, class_weighting="balanced", label_smoothing=0.0)
    train_classifier(entry, split, config, out, tmp_path / "scratch")
    classifier = load_classifier(out)
    predicted = classifier.predict_logits(list(read_part(topic_split, "test")["text"])).argmax(axis=1)
    assert "FOOD" not in {classifier.classes[number] for number in predicted}
    assert "1 classes have no training row" in caplog.text


@pytest.mark.parametrize("model", ["linear", "tiny"])
def test_a_class_with_one_row_and_texts_that_are_all_equal_can_be_trained_on(
    model: str, tmp_path: Path, topic_split: Path, tiny_bert: Path
) -> None:
    def one_of_food(rows: Any) -> Any:
        food = rows["label"] == "FOOD"
        return rows[~food | ~food.where(food).duplicated()].assign(text="The same headline")

    split = changed_split(topic_split, tmp_path / "split", "train", one_of_food)
    assert (read_part(split, "train")["label"] == "FOOD").sum() == 1
    out = tmp_path / "out"
    out.mkdir()
    entry = catalogue(f"tiny={tiny_bert}")[model]
    train_classifier(entry, split, ClassifierConfig(max_steps=2), out, tmp_path / "scratch")
    assert np.isfinite(load_classifier(out).predict_logits(["The same headline"])).all()


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("train", lambda rows: rows.query("label_id == 0"), "rows of 1 classes"),
        ("train", lambda rows: rows.head(0), "0 rows of 0 classes"),
        ("train", lambda rows: rows.assign(label_id=rows["label_id"] + 1), "label ids up to 4"),
        ("validation", lambda rows: rows.head(0), "validation_fraction above 0"),
    ],
)
def test_rows_that_nothing_can_be_trained_on_are_refused(
    part: str, change: Any, says: str, tmp_path: Path, topic_split: Path
) -> None:
    split = changed_split(topic_split, tmp_path / "split", part, change)
    with pytest.raises(TrainingRowsError, match=says):
        train_classifier("minilm", split, ClassifierConfig(), tmp_path, tmp_path / "scratch")


def test_texts_without_words_are_refused_by_the_linear_model(tmp_path: Path, topic_split: Path) -> None:
    split = changed_split(topic_split, tmp_path / "split", "train", lambda rows: rows.assign(text="?!"))
    with pytest.raises(ValueError, match="hold no words"):
        train_classifier("linear", split, ClassifierConfig(), tmp_path, tmp_path / "scratch")


def test_balanced_classes_change_what_the_linear_model_learns(tmp_path: Path, topic_split: Path, linear: Any) -> None:
    train_classifier("linear", topic_split, ClassifierConfig(class_weighting="balanced"), tmp_path, tmp_path / "scratch")
    balanced, plain = (load_classifier(path).predict_logits(TEXTS) for path in (tmp_path, linear.checkpoint))
    assert not np.allclose(balanced, plain)
    with pytest.raises(ValueError, match="none and balanced"):
        train_classifier("linear", topic_split, ClassifierConfig(class_weighting="effective"), tmp_path, tmp_path / "scratch")


def test_the_speed_of_a_recipe_is_that_of_its_own_steps(topic_split: Path, tiny_bert: Path) -> None:
    rows = read_part(topic_split, "train")
    entry = catalogue(f"tiny={tiny_bert}")["tiny"]
    ours = measure_throughput(entry, rows, ClassifierConfig(batch_size=8), steps=6)
    padded = measure_throughput(entry, rows, ClassifierConfig(batch_size=8, pad_to_max_length=True), steps=6)
    assert ours.examples_per_s > padded.examples_per_s > 0
    assert ours.padding_share < 0.2 < 0.7 < padded.padding_share
