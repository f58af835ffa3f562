"""Evaluation: scores are scikit-learn's, intervals respect groups, the test part is read once, the report holds every number."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import markdown_it
import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.split import SplitConfig, balanced_split, read_part, write_split
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy
from newsjuice_pipelines.classification.judging import evaluate
from newsjuice_pipelines.classification.judging.answers import answers
from newsjuice_pipelines.classification.judging.bootstrap import group_draws
from newsjuice_pipelines.classification.judging.calibrate import read_calibration, softmax
from newsjuice_pipelines.classification.judging.evaluate import EvaluationConfig, TestPartReadError, evaluate_classifier
from newsjuice_pipelines.classification.judging.reliability import ece_interval, expected_calibration_error, weighted_ece
from newsjuice_pipelines.classification.judging.scores import (
    bootstrap_intervals,
    class_rows,
    classification_scores,
    confused_pairs,
)
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError
from newsjuice_pipelines.classification.training.finetune import train_classifier
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig

NEWSROOM = """
version: newsroom
classes:
  ARTS: [ARTS]
  COMEDY: [COMEDY]
  MONEY: [MONEY]
  TECH: [TECH]
  SPORTS: [SPORTS]
parents:
  CULTURE: [ARTS, COMEDY]
  BUSINESS: [MONEY, TECH]
"""
PARENTS = {"ARTS": "CULTURE", "COMEDY": "CULTURE", "MONEY": "BUSINESS", "TECH": "BUSINESS", "SPORTS": "SPORTS"}
HOSTILE = "recipe chicken pasta <img src=x onerror=alert(1)> [click](javascript:alert(1)) | `rm` cake recipe dinner"


def guesses(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=rows)
    return labels, np.where(generator.uniform(size=rows) < 0.6, labels, generator.integers(classes, size=rows))


def calibrated_guesses(rows: int, gap: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether each guess is right, as often as its confidence less the gap says."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.4, 1, size=rows)
    return confidence, generator.uniform(size=rows) < confidence - gap


@dataclass(frozen=True)
class Newsroom:
    """A split on which every kind of answer is certified, and a classifier of it with its evaluation."""

    split: Path
    checkpoint: Path
    evaluation: Path
    results: dict[str, Any]


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory: pytest.TempPathFactory) -> Newsroom:
    split, checkpoint, scratch, evaluation = (tmp_path_factory.mktemp(name) for name in ("split", "checkpoint", "scratch", "out"))
    taxonomy = split / "newsroom.yaml"
    taxonomy.write_text(NEWSROOM, encoding="utf-8")
    fractions = {"test_fraction": 0.3, "validation_fraction": 0.1, "calibration_fraction": 0.45}
    config = SplitConfig(per_class=0, **fractions, grouping="exact")
    write_split(balanced_split(newsroom_rows(), load_taxonomy(taxonomy), config), split)
    train_classifier("linear", split, ClassifierConfig(), checkpoint, scratch)
    evaluate_classifier(checkpoint, split, evaluation)
    return Newsroom(split, checkpoint, evaluation, json.loads((evaluation / "results.json").read_text(encoding="utf-8")))


def newsroom_rows() -> pd.DataFrame:
    """Texts whose words give away the class, its parent, that it is one of three classes, or nothing."""
    generator = np.random.default_rng(1)
    rows = []
    for name, parent in PARENTS.items():
        hints = [name, parent, "TRIO" if name in ("ARTS", "MONEY", "SPORTS") else name, "IDLE"]
        for number in range(600):
            hint = hints[generator.choice(4, p=[0.4, 0.25, 0.25, 0.1])].lower()
            words = [f"{hint}ly{generator.integers(15)}" for _ in range(4)]
            words += [f"idle{generator.integers(400)}" for _ in range(6)]
            rows.append({"row_id": f"{name}-{number}", "text": " ".join(words), "category": name, "date": ""})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def results(linear: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((linear.evaluation / "results.json").read_text(encoding="utf-8"))
    return found


# -- scores -------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    labels, predicted = guesses(500, 6, seed=1)
    scores = classification_scores(labels, predicted, 6)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, predicted, average=average)[:3]
        assert [scores[f"{average}_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(expected)


def test_weighted_rows_score_as_copies_of_them_would() -> None:
    labels, predicted = guesses(80, 4, seed=2)
    weights = np.random.default_rng(3).integers(0, 3, size=80)
    copies = classification_scores(np.repeat(labels, weights), np.repeat(predicted, weights), 4)
    assert classification_scores(labels, predicted, 4, weights.astype(float)) == pytest.approx(copies)


def test_a_class_without_test_rows_does_not_pull_the_macro_scores_down() -> None:
    labels = predicted = np.array([0, 0, 2, 2])
    assert classification_scores(labels, predicted, 3)["macro_f1"] == 1.0


def test_a_class_without_rows_or_predictions_has_no_scores() -> None:
    rows = class_rows(np.array([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), ("A", "B", "C"))
    assert (rows[0]["precision"], rows[0]["recall"]) == (0.6, 1.0)
    assert (rows[1]["precision"], rows[1]["recall"], rows[1]["f1"]) == (None, 0.0, 0.0)
    assert (rows[2]["recall"], rows[2]["f1"], rows[2]["support"]) == (None, None, 0)


def test_intervals_hold_the_value_and_narrow_with_more_rows() -> None:
    widths = []
    for rows in (100, 1_600):
        labels, predicted = guesses(rows, 4, seed=2)
        low, high = bootstrap_intervals(labels, predicted, np.arange(rows), 4, seed=1, draws=300)["accuracy"]
        assert low <= classification_scores(labels, predicted, 4)["accuracy"] <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_copies_in_one_group_do_not_make_an_interval_narrower() -> None:
    labels, predicted = guesses(200, 4, seed=3)
    single = bootstrap_intervals(labels, predicted, np.arange(200), 4, seed=1, draws=300)["accuracy"]
    copies = [np.repeat(values, 8) for values in (labels, predicted, np.arange(200))]
    grouped = bootstrap_intervals(*copies, 4, seed=1, draws=300)["accuracy"]
    assert grouped == pytest.approx(single, abs=0.02)


def test_the_most_confused_pair_comes_first_with_the_surest_of_its_texts() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 1, 0, 1])
    pairs = confused_pairs(labels, predicted, np.array([0.4, 0.9, 0.6, 0.8, 0.7]), ["a", "b", "c" * 500, "d", "e"], ("X", "Y"))
    assert [(pair["true"], pair["predicted"], pair["rows"], pair["share"]) for pair in pairs] == [
        ("X", "Y", 3, 1.0),
        ("Y", "X", 1, 0.5),
    ]
    assert [example["text"] for example in pairs[0]["examples"]] == ["b", "c" * 140]


# -- the report ---------------------------------------------------------------------------------------------------------


def test_an_evaluation_writes_results_page_plots_and_predictions(linear: Any) -> None:
    plots = {"confusion.png", "reliability.png", "risk_coverage.png"}
    assert {path.name for path in linear.evaluation.iterdir()} == {"results.json", "report.md", "predictions.parquet", *plots}
    assert all((linear.evaluation / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    page = (linear.evaluation / "report.md").read_text(encoding="utf-8")
    assert "{" not in page
    assert "None" not in page
    assert all(f"]({name})" in page for name in plots)


def test_the_saved_predictions_give_the_reported_accuracy_and_shares(newsroom: Newsroom) -> None:
    rows = pd.read_parquet(newsroom.evaluation / "predictions.parquet")
    assert set(rows["row_id"]) == set(read_part(newsroom.split, "test")["row_id"])
    assert (rows["predicted"] == rows["label_id"]).mean() == pytest.approx(newsroom.results["metrics"]["accuracy"]["value"])
    shares = rows["decision"].value_counts(normalize=True)
    assert {name: found["share"]["value"] for name, found in newsroom.results["cascade"].items()} == pytest.approx(
        {name: shares.get(name, 0.0) for name in newsroom.results["cascade"]}
    )


def test_the_decisions_are_those_that_serving_would_make(newsroom: Newsroom) -> None:
    calibration = read_calibration(newsroom.evaluation)
    logits = load_classifier(newsroom.checkpoint).predict_logits(read_part(newsroom.split, "test")["text"].tolist())
    served = [answer.decision for answer in answers(softmax(logits, calibration.temperature), calibration)]
    assert served == pd.read_parquet(newsroom.evaluation / "predictions.parquet")["decision"].tolist()


def test_the_results_hold_a_confusion_matrix_of_all_test_rows(results: Any) -> None:
    assert np.sum(results["confusion"]) == results["test_rows"]
    assert np.trace(results["confusion"]) / results["test_rows"] == pytest.approx(results["metrics"]["accuracy"]["value"])
    assert sum(pair["rows"] for pair in results["confused"]) == results["test_rows"] - np.trace(results["confusion"])


def test_every_text_gets_one_of_the_four_answers(newsroom: Newsroom) -> None:
    results = newsroom.results
    assert all(found["rows"] > 0 for found in results["cascade"].values())
    assert sum(found["rows"] for found in results["cascade"].values()) == results["test_rows"]
    for found in results["cascade"].values():
        low, high = found["share"]["interval"]
        assert low <= found["share"]["value"] <= high


@pytest.mark.parametrize("name", ["certified", "certified_parent", "certified_top3"])
def test_every_answer_is_certified_on_the_calibration_part_and_shown_on_the_test_part(newsroom: Newsroom, name: str) -> None:
    certified = newsroom.results[name]
    assert certified["precision"] >= certified["precision_low"] >= 0.9
    assert certified["test"]["precision"] == pytest.approx(certified["precision"], abs=0.07)
    low, high = certified["test"]["precision_interval"]
    assert low < certified["test"]["precision"] < high or high == certified["test"]["precision"] == 1


def test_the_page_says_what_each_answer_promises(newsroom: Newsroom) -> None:
    page = (newsroom.evaluation / "report.md").read_text(encoding="utf-8")
    assert page.count("certifies") == 3
    assert "No threshold" not in page


def test_a_sure_parent_is_right_more_often_than_an_unsure_class(newsroom: Newsroom) -> None:
    assert newsroom.results["parent_accuracy"] > newsroom.results["metrics"]["accuracy"]["value"] + 0.05


def test_calibration_takes_back_confidence_that_is_too_high(
    newsroom: Newsroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bold:
        def __init__(self, checkpoint: Path) -> None:
            self._usual = load_classifier(checkpoint)

        def predict_logits(self, texts: list[str]) -> np.ndarray:
            return 4 * self._usual.predict_logits(texts)

    monkeypatch.setattr(evaluate, "load_classifier", Bold)
    evaluate_classifier(newsroom.checkpoint, newsroom.split, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["temperature"] == pytest.approx(4 * newsroom.results["temperature"], rel=0.01)
    assert found["calibration"]["nll"]["after"] < found["calibration"]["nll"]["before"]


def test_the_interval_of_the_calibration_error_holds_the_error(newsroom: Newsroom) -> None:
    for seed in range(5):
        confidence, correct = calibrated_guesses(300, 0.0, seed)
        drawn = np.array([weighted_ece(confidence, correct)(weights) for weights in group_draws(np.arange(300), seed, 200)])
        error = expected_calibration_error(confidence, correct)
        low, high = ece_interval(error, drawn)
        assert 0 <= low < error < high
    found = newsroom.results["calibration"]["ece"]
    assert found["interval"][0] <= found["after"] <= found["interval"][1]


def test_the_interval_of_the_calibration_error_holds_the_truth_about_as_often_as_it_says() -> None:
    held, truth = 0, 0.1
    for seed in range(60):
        confidence, correct = calibrated_guesses(400, truth, seed)
        drawn = np.array([weighted_ece(confidence, correct)(weights) for weights in group_draws(np.arange(400), seed, 200)])
        low, high = ece_interval(expected_calibration_error(confidence, correct), drawn)
        held += low <= truth <= high
    assert held >= 51


def test_the_accuracy_on_the_validation_part_is_written_down(linear: Any, topic_split: Path, results: Any) -> None:
    rows = read_part(topic_split, "validation")
    predicted = load_classifier(linear.checkpoint).predict_logits(rows["text"].tolist()).argmax(axis=1)
    assert results["validation"]["accuracy"] == (predicted == rows["label_id"]).mean()
    assert linear.scores["validation_accuracy"] == results["validation"]["accuracy"]


def test_evaluating_twice_gives_the_same_numbers(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    again = evaluate_classifier(linear.checkpoint, topic_split, tmp_path)
    assert {**again, "texts_per_s": None} == {**linear.scores, "texts_per_s": None}
    for name in ("confusion.png", "risk_coverage.png"):
        assert (tmp_path / name).read_bytes() == (linear.evaluation / name).read_bytes()


def test_the_calibration_reads_back_from_the_results(linear: Any, results: Any) -> None:
    calibration = read_calibration(linear.evaluation)
    assert calibration.temperature == linear.scores["temperature"]
    assert calibration.threshold == linear.scores["threshold"]
    assert calibration.parents == tuple(results["parents"])
    assert len(calibration.conformal_quantiles) == len(calibration.classes)


def test_a_missing_evaluation_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classifier_eval_report"):
        read_calibration(tmp_path)


def test_an_evaluation_without_all_thresholds_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"classes": ["A"], "parents": ["A"], "temperature": 1.0}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"certified.*classifier_eval_report"):
        read_calibration(tmp_path)


# -- what may go wrong --------------------------------------------------------------------------------------------------


def changed_split(topic_split: Path, out: Path, part: str, rows: pd.DataFrame) -> Path:
    copy = Path(shutil.copytree(topic_split, out))
    rows.to_parquet(copy / f"{part}.parquet", index=False)
    return copy


def test_a_class_missing_in_the_test_part_is_shown_without_scores(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    rows = read_part(topic_split, "test")
    split = changed_split(topic_split, tmp_path / "split", "test", rows[rows["label"] != "SCIENCE"])
    (tmp_path / "out").mkdir()
    evaluate_classifier(linear.checkpoint, split, tmp_path / "out")
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    (missing,) = [row for row in results["per_class"] if row["label"] == "SCIENCE"]
    assert (missing["support"], missing["f1"], missing["set_coverage"]) == (0, None, None)
    assert "| SCIENCE | 0 |" in (tmp_path / "out/report.md").read_text(encoding="utf-8")


def test_a_class_missing_in_the_calibration_part_is_in_every_set(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    rows = read_part(topic_split, "calibration")
    split = changed_split(topic_split, tmp_path / "split", "calibration", rows[rows["label"] != "FOOD"])
    (tmp_path / "out").mkdir()
    evaluate_classifier(linear.checkpoint, split, tmp_path / "out")
    calibration = read_calibration(tmp_path / "out")
    assert calibration.conformal_quantiles[calibration.classes.index("FOOD")] == 1.0
    assert all("FOOD" in answer.prediction_set for answer in answers(np.eye(4), calibration))


def test_a_single_test_and_calibration_text_are_reported_and_certify_nothing(newsroom: Newsroom, tmp_path: Path) -> None:
    split = changed_split(newsroom.split, tmp_path / "split", "test", read_part(newsroom.split, "test")[:1])
    read_part(newsroom.split, "calibration")[:1].to_parquet(split / "calibration.parquet", index=False)
    (tmp_path / "out").mkdir()
    facts = evaluate_classifier(newsroom.checkpoint, split, tmp_path / "out")
    assert (facts["test_rows"], facts["threshold"], facts["share_abstained"]) == (1, None, 1.0)


def test_copies_of_a_calibration_text_are_no_further_evidence(newsroom: Newsroom, tmp_path: Path) -> None:
    rows = read_part(newsroom.split, "calibration")
    split = changed_split(newsroom.split, tmp_path / "split", "calibration", pd.concat([rows] * 20, ignore_index=True))
    (tmp_path / "out").mkdir()
    evaluate_classifier(newsroom.checkpoint, split, tmp_path / "out")
    copied, once = read_calibration(tmp_path / "out"), read_calibration(newsroom.evaluation)
    assert (copied.threshold, copied.top3_threshold) == pytest.approx((once.threshold, once.top3_threshold), rel=1e-3)


def test_no_text_can_break_out_of_the_page(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    rows = read_part(topic_split, "test")
    politics = rows[rows["label"] == "POLITICS"].index
    rows.loc[politics, "text"] = HOSTILE
    split = changed_split(topic_split, tmp_path / "split", "test", rows)
    (tmp_path / "out").mkdir()
    evaluate_classifier(linear.checkpoint, split, tmp_path / "out")
    page = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "onerror" in page
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    inline = [child for token in tokens for child in (token.children or [])]
    assert not [token for token in [*tokens, *inline] if "html" in token.type or token.type in ("link_open", "code_inline")]
    assert len({line.count("|") - line.count("\\|") for line in page.splitlines() if "onerror" in line}) == 1


def test_a_second_reading_of_the_test_part_is_refused_with_what_to_do(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    with pytest.raises(TestPartReadError, match=r"already judged 2 other checkpoints of linear.*read_test_again"):
        evaluate_classifier(linear.checkpoint, topic_split, tmp_path, earlier_readings=2)
    assert not list(tmp_path.iterdir())


def test_a_second_reading_on_request_is_said_in_the_report(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(read_test_again=True)
    assert evaluate_classifier(linear.checkpoint, topic_split, tmp_path, config, earlier_readings=2)["test_readings"] == 3
    assert "The test part was read 3 times" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "The test part was read" not in (linear.evaluation / "report.md").read_text(encoding="utf-8")


def test_a_checkpoint_that_the_test_part_selected_is_marked(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(linear.checkpoint, tmp_path / "checkpoint"))
    described = json.loads((checkpoint / "classifier.json").read_text(encoding="utf-8"))
    (checkpoint / "classifier.json").write_text(json.dumps({**described, "selected_on": "test"}), encoding="utf-8")
    assert evaluate_classifier(checkpoint, topic_split, tmp_path)["selected_on"] == "test"
    assert "The test part selected this checkpoint" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_higher_promise_files_fewer_texts(newsroom: Newsroom, tmp_path: Path) -> None:
    for name, target in (("low", 0.5), ("high", 0.97)):
        (tmp_path / name).mkdir()
        evaluate_classifier(newsroom.checkpoint, newsroom.split, tmp_path / name, EvaluationConfig(target_precision=target))
    low, high = (json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("low", "high"))
    assert low["cascade"]["filed"]["rows"] > high["cascade"]["filed"]["rows"]
    assert low["certified"]["target_precision"] == 0.5


@pytest.mark.parametrize("field", ["target_precision", "certainty", "coverage"])
def test_a_promise_of_all_or_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        EvaluationConfig(**{field: 1.0})


def test_a_checkpoint_for_other_classes_is_refused(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(topic_split, tmp_path / "split")
    described = json.loads((copy / "split.json").read_text(encoding="utf-8"))
    described["classes"][0] = "GARDENING"
    (copy / "split.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match="GARDENING"):
        evaluate_classifier(linear.checkpoint, copy, tmp_path)


def test_a_checkpoint_with_the_classes_in_another_order_is_refused(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(topic_split, tmp_path / "split")
    described = json.loads((copy / "split.json").read_text(encoding="utf-8"))
    described["classes"].reverse()
    (copy / "split.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match="another order"):
        evaluate_classifier(linear.checkpoint, copy, tmp_path)
