"""Leaderboard and decision: paired tests are exact, and nothing unmeasured is adopted."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.classification.judging.decision import ThresholdsError, decide, load_thresholds, write_decision
from newsjuice_pipelines.classification.judging.leaderboard import LeaderboardError, holm, leaderboard, mcnemar, read_results


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_rows() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 50)
    second = np.array([False] * 9 + [True] * 1 + [True] * 50)
    assert mcnemar(first, second) == {"only_first": 9, "only_second": 1, "p_value": pytest.approx(2 * 11 / 2**10)}
    assert mcnemar(first, first)["p_value"] == 1.0


def test_holm_corrects_step_down_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_models_are_ranked_by_accuracy_and_compared_with_the_best(linear: Any, minilm: Any, tmp_path: Path) -> None:
    board = leaderboard({"linear": linear.evaluation, "minilm": minilm.evaluation}, tmp_path)
    scores = {"linear": linear.scores["accuracy"], "minilm": minilm.scores["accuracy"]}
    first, second = board["ranking"]
    assert board["best"] == first["model"] == max(scores, key=lambda model: scores[model])
    assert first["p_corrected"] is None
    difference = (second["only_best_right"] - second["only_this_right"]) / board["test_rows"]
    assert difference == pytest.approx(first["accuracy"] - second["accuracy"])
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.md", "leaderboard.png"}


def test_one_model_alone_is_the_best(linear: Any, tmp_path: Path) -> None:
    assert leaderboard({"linear": linear.evaluation}, tmp_path)["best"] == "linear"


def test_evaluations_of_different_test_rows_are_not_compared(linear: Any, tmp_path: Path) -> None:
    other = shutil.copytree(linear.evaluation, tmp_path / "other")
    pd.read_parquet(other / "predictions.parquet")[1:].to_parquet(other / "predictions.parquet", index=False)
    with pytest.raises(LeaderboardError, match="different test rows"):
        leaderboard({"linear": linear.evaluation, "other": other}, tmp_path)


def test_an_empty_leaderboard_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(LeaderboardError, match="classifier_eval_report"):
        leaderboard({}, tmp_path)


def strong_results(linear: Any) -> dict[str, Any]:
    """Results that reach every packaged threshold."""
    results = copy.deepcopy(read_results(linear.evaluation))
    for metric in results["metrics"].values():
        metric.update(value=0.8, interval=[0.78, 0.82])
    for row in results["per_class"]:
        row["f1"] = 0.7
    results["calibration"]["ece"]["after"] = 0.02
    results["certified"]["test"].update(coverage=0.6, precision=0.92)
    results["texts_per_s"] = 100.0
    return results


def test_a_model_that_reaches_every_threshold_is_adopted(linear: Any, tmp_path: Path) -> None:
    decision = decide({"best": "linear"}, {"linear": strong_results(linear)}, load_thresholds())
    assert decision["decision"] == "adopt"
    assert {criterion["status"] for criterion in decision["criteria"]} == {"pass"}
    assert write_decision(decision, tmp_path) == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert "# Decision: adopt" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_value_above_the_threshold_fails_when_its_interval_reaches_below(linear: Any) -> None:
    results = strong_results(linear)
    results["metrics"]["accuracy"] = {"value": 0.70, "interval": [0.68, 0.72]}
    decision = decide({"best": "linear"}, {"linear": results}, load_thresholds())
    assert decision["decision"] == "do not adopt"
    assert [item["name"] for item in decision["criteria"] if item["status"] == "fail"] == ["accuracy"]


def test_what_was_not_measured_does_not_pass(linear: Any) -> None:
    results = strong_results(linear)
    results["certified"]["test"].update(coverage=None, precision=None)
    decision = decide({"best": "linear"}, {"linear": results}, load_thresholds())
    assert (decision["decision"], decision["not_measured"]) == ("do not adopt", 2)


def test_an_upper_limit_fails_above_it(linear: Any) -> None:
    results = strong_results(linear)
    results["calibration"]["ece"]["after"] = 0.051
    decision = decide({"best": "linear"}, {"linear": results}, load_thresholds())
    assert [item["name"] for item in decision["criteria"] if item["status"] == "fail"] == ["calibration error"]


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("{name: a, metric: texts_per_s, judge: value}", "needs one number"),
        ("{name: a, metric: texts_per_s, at_least: 1, at_most: 2, judge: value}", "needs one number"),
        ("{name: a, metric: texts_per_s, at_least: 1, judge: luck}", "judged by"),
        ("{name: a, metric: texts_per_s, atleast: 1, judge: value}", "needs name, metric"),
    ],
)
def test_mistyped_thresholds_are_refused(tmp_path: Path, criterion: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(f"version: x\ncriteria:\n  - {criterion}\n", encoding="utf-8")
    with pytest.raises(ThresholdsError, match=message):
        load_thresholds(tmp_path / "own.yaml")


def test_a_threshold_on_an_unknown_metric_is_an_error_and_not_unmeasured(linear: Any, tmp_path: Path) -> None:
    content = "version: x\ncriteria:\n  - {name: a, metric: metrics.acuracy, at_least: 1, judge: value}\n"
    (tmp_path / "own.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ThresholdsError, match=r"metrics\.acuracy"):
        decide({"best": "linear"}, {"linear": strong_results(linear)}, load_thresholds(tmp_path / "own.yaml"))
