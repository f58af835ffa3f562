"""Evaluation: scores are scikit-learn's, intervals respect groups, and the report holds every number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.split import read_part
from newsjuice_pipelines.classification.judging.calibrate import read_calibration
from newsjuice_pipelines.classification.judging.evaluate import bootstrap_intervals, classification_scores, evaluate_classifier
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError


def guesses(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=rows)
    return labels, np.where(generator.uniform(size=rows) < 0.6, labels, generator.integers(classes, size=rows))


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    labels, predicted = guesses(500, 6, seed=1)
    scores = classification_scores(labels, predicted, 6)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, predicted, average=average)[:3]
        assert [scores[f"{average}_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(expected)


def test_a_class_without_test_rows_does_not_pull_the_macro_scores_down() -> None:
    labels = predicted = np.array([0, 0, 2, 2])
    assert classification_scores(labels, predicted, 3)["macro_f1"] == 1.0


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


@pytest.mark.parametrize("trained", ["linear", "minilm"])
def test_an_evaluation_writes_results_page_plots_and_predictions(trained: str, request: pytest.FixtureRequest) -> None:
    evaluation = request.getfixturevalue(trained).evaluation
    written = {path.name for path in evaluation.iterdir()}
    assert written == {"results.json", "report.md", "confusion.png", "reliability.png", "predictions.parquet"}
    assert (evaluation / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "{" not in (evaluation / "report.md").read_text(encoding="utf-8")


def test_the_saved_predictions_give_the_reported_accuracy(linear: Any, topic_split: Path) -> None:
    rows = pd.read_parquet(linear.evaluation / "predictions.parquet")
    assert set(rows["row_id"]) == set(read_part(topic_split, "test")["row_id"])
    assert (rows["predicted"] == rows["label_id"]).mean() == pytest.approx(linear.scores["accuracy"])


def test_the_results_hold_a_confusion_matrix_of_all_test_rows(minilm: Any) -> None:
    results = json.loads((minilm.evaluation / "results.json").read_text(encoding="utf-8"))
    assert np.sum(results["confusion"]) == results["test_rows"]
    assert np.trace(results["confusion"]) / results["test_rows"] == pytest.approx(results["metrics"]["accuracy"]["value"])
    assert sum(pair["rows"] for pair in results["confused"]) == results["test_rows"] - np.trace(results["confusion"])


def test_calibration_improves_the_likelihood_of_raw_margins(linear: Any) -> None:
    results = json.loads((linear.evaluation / "results.json").read_text(encoding="utf-8"))
    assert results["calibration"]["nll"]["after"] < results["calibration"]["nll"]["before"]
    assert linear.scores["ece_after"] < linear.scores["ece_before"]


def test_evaluating_twice_gives_the_same_numbers(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    again = evaluate_classifier(linear.checkpoint, topic_split, tmp_path)
    assert {**again, "texts_per_s": None} == {**linear.scores, "texts_per_s": None}
    assert (tmp_path / "confusion.png").read_bytes() == (linear.evaluation / "confusion.png").read_bytes()


def test_the_calibration_reads_back_from_the_results(linear: Any) -> None:
    calibration = read_calibration(linear.evaluation)
    assert calibration.temperature == linear.scores["temperature"]
    assert calibration.threshold == linear.scores["threshold"]


def test_a_missing_evaluation_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classifier_eval_report"):
        read_calibration(tmp_path)


def test_a_checkpoint_for_other_classes_is_refused(linear: Any, topic_split: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(topic_split, tmp_path / "split")
    described = json.loads((copy / "split.json").read_text(encoding="utf-8"))
    described["classes"][0] = "GARDENING"
    (copy / "split.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match="GARDENING"):
        evaluate_classifier(linear.checkpoint, copy, tmp_path)
