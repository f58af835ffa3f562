"""Decision: nothing unmeasured is adopted, comparisons may stay open, and the page says what would change the verdict."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import markdown_it
import pytest

from newsjuice_pipelines.classification.judging.decision import ThresholdsError, decide, load_thresholds, write_decision
from newsjuice_pipelines.classification.judging.leaderboard import read_results

OVER_LINEAR = {"first": "minilm", "second": "linear", "difference": 0.08, "interval": [0.06, 0.1]}
OVER_ORIGINAL = {"first": "minilm-original", "second": "minilm", "difference": -0.09, "interval": [-0.11, -0.07]}
BOARD = {"best": "minilm", "pairs": [OVER_LINEAR, OVER_ORIGINAL]}


def strong_results(linear: Any) -> dict[str, Any]:
    """Results that reach every packaged threshold, of both versions."""
    results = copy.deepcopy(read_results(linear.evaluation))
    for metric in results["metrics"].values():
        metric.update(value=0.8, interval=[0.78, 0.82])
    for row in results["per_class"]:
        row["f1"] = 0.7
    results["calibration"]["ece"]["after"] = 0.02
    results["certified"].update(threshold=0.8, precision_low=0.902)
    results["certified"]["test"].update(coverage=0.6, precision=0.92)
    results["cascade"]["filed"].update(
        share={"value": 0.6, "interval": [0.58, 0.62]}, precision={"value": 0.92, "interval": [0.89, 0.94]}
    )
    results.update(texts_per_s=100.0, test_rows=5_800)
    return results


def verdict(results: dict[str, Any], board: dict[str, Any] = BOARD, version: str = "v2") -> dict[str, Any]:
    return decide(board, {"minilm": results}, load_thresholds(version))


def failed(decision: dict[str, Any]) -> list[str]:
    return [criterion["name"] for criterion in decision["criteria"] if criterion["status"] == "fail"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_model_that_reaches_every_threshold_is_adopted(linear: Any, tmp_path: Path, version: str) -> None:
    decision = verdict(strong_results(linear), version=version)
    assert (decision["decision"], decision["reasons"]) == ("adopt", [])
    assert {criterion["status"] for criterion in decision["criteria"]} == {"pass"}
    assert write_decision(decision, tmp_path) == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "# Decision: adopt" in page
    assert "Every criterion passes" in page


def test_the_second_version_is_the_default(linear: Any) -> None:
    assert load_thresholds() == load_thresholds("v2")
    assert verdict(strong_results(linear))["thresholds"] == "v2"


def test_the_thresholds_that_were_used_before_are_kept_as_they_were() -> None:
    limits = {criterion.name: criterion.limit for criterion in load_thresholds("v1").criteria}
    assert list(limits.values()) == [0.6878, 0.6871, 0.525, 0.05, 0.3, 0.9, 38]


def test_a_value_above_the_threshold_fails_when_its_interval_reaches_below(linear: Any) -> None:
    results = strong_results(linear)
    results["cascade"]["filed"]["share"] = {"value": 0.51, "interval": [0.49, 0.53]}
    decision = verdict(results)
    assert decision["decision"] == "do not adopt"
    assert failed(decision) == decision["reasons"] == ["share filed alone"]
    (change,) = [criterion["change"] for criterion in decision["criteria"] if criterion["change"]]
    assert change == "the lower end of the interval, 0.49, must become at least 0.5 (0.01 more)"


@pytest.mark.parametrize(
    ("path", "value", "criterion"),
    [
        ("calibration.ece.after", 0.031, "calibration error"),
        ("cascade.filed.precision", {"value": 0.89, "interval": [0.87, 0.91]}, "precision of what is filed, on the test part"),
        ("test_readings", 2, "test part read once"),
        ("certified.certainty", 0.5, "certainty of the certificate"),
        ("certified.target_precision", 0.85, "precision that the certificate promises"),
        ("test_rows", 300, "enough test texts"),
        ("texts_per_s", 20.0, "texts a second"),
    ],
)
def test_each_limit_fails_beyond_it(linear: Any, path: str, value: Any, criterion: str) -> None:
    results = strong_results(linear)
    *parents, last = path.split(".")
    place = results
    for name in parents:
        place = place[name]
    place[last] = value
    assert failed(verdict(results)) == [criterion]


def test_what_was_not_measured_does_not_pass_and_says_how_to_measure_it(linear: Any, tmp_path: Path) -> None:
    results = strong_results(linear)
    results["certified"]["precision_low"] = None
    results["cascade"]["filed"].update(share={"value": 0.0, "interval": [0.0, 0.01]}, precision={"value": None, "interval": None})
    decision = verdict(results)
    assert (decision["decision"], decision["not_measured"]) == ("do not adopt", 2)
    write_decision(decision, tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8").partition("## What would change it")[2]
    assert "certified precision: not measured; no threshold keeps the promise" in page
    assert "None" not in page


def test_comparisons_with_models_that_were_not_evaluated_stay_open(linear: Any) -> None:
    decision = verdict(strong_results(linear), {"best": "minilm", "pairs": []})
    assert (decision["decision"], decision["not_measured"]) == ("adopt", 4)


def test_a_lead_over_the_linear_model_within_chance_fails(linear: Any) -> None:
    lucky = {**OVER_LINEAR, "difference": 0.06, "interval": [-0.01, 0.13]}
    decision = verdict(strong_results(linear), {"best": "minilm", "pairs": [lucky, OVER_ORIGINAL]})
    assert failed(decision) == ["accuracy over the linear model, beyond chance"]


def test_a_lead_over_the_original_recipe_within_chance_fails(linear: Any) -> None:
    lucky = {**OVER_ORIGINAL, "difference": -0.06, "interval": [-0.13, 0.01]}
    decision = verdict(strong_results(linear), {"best": "minilm", "pairs": [OVER_LINEAR, lucky]})
    assert failed(decision) == ["accuracy over the original recipe, beyond chance"]


def test_an_interval_that_begins_at_zero_does_not_exclude_it(linear: Any) -> None:
    touching = {**OVER_LINEAR, "interval": [0.0, 0.16]}
    decision = verdict(strong_results(linear), {"best": "minilm", "pairs": [touching, OVER_ORIGINAL]})
    assert failed(decision) == ["accuracy over the linear model, beyond chance"]
    (change,) = [item["change"] for item in decision["criteria"] if item["change"]]
    assert change == "the lower end of the interval, 0, must become above 0 (more than that)"


def test_a_pair_is_read_in_either_direction(linear: Any) -> None:
    found = [item for item in verdict(strong_results(linear))["criteria"] if item["metric"] == "over_original"]
    assert [(item["value"], item["interval"]) for item in found] == [(0.09, [0.07, 0.11])] * 2


def test_without_a_model_that_the_test_part_did_not_select_nothing_is_adopted(linear: Any, tmp_path: Path) -> None:
    decision = write_decision(decide({"best": None, "pairs": []}, {}, load_thresholds()), tmp_path)
    assert (decision["decision"], decision["model"], decision["reasons"]) == ("do not adopt", None, ["a candidate"])
    assert "There is no candidate" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_decision_page_is_a_whole_table(linear: Any, tmp_path: Path) -> None:
    write_decision(verdict(strong_results(linear)), tmp_path)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert sum(token.type == "tr_open" for token in tokens) == 1 + len(load_thresholds().criteria)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("{name: a, metric: texts_per_s, judge: value}", "needs one number"),
        ("{name: a, metric: texts_per_s, at_least: 1, at_most: 2, judge: value}", "needs one number"),
        ("{name: a, metric: texts_per_s, at_least: 1, above: 0, judge: value}", "needs one number"),
        ("{name: a, metric: texts_per_s, above: zero, judge: value}", "needs one number"),
        ("{name: a, metric: texts_per_s, at_least: 1, judge: luck}", "judged by"),
        ("{name: a, metric: texts_per_s, atleast: 1, judge: value}", "needs name, metric"),
        ("{name: a, metric: texts_per_s, at_least: 1, judge: value, required: maybe}", "required"),
        ("{name: a, metric: texts_per_s, at_least: 1, judge: value, required: if measured}", "requires nothing"),
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
        decide(BOARD, {"minilm": strong_results(linear)}, load_thresholds(tmp_path / "own.yaml"))


def test_two_criteria_of_one_name_are_refused(tmp_path: Path) -> None:
    line = "  - {name: a, metric: texts_per_s, at_least: 1, judge: value}\n"
    (tmp_path / "own.yaml").write_text(f"version: x\ncriteria:\n{line}{line}", encoding="utf-8")
    with pytest.raises(ThresholdsError, match="two criteria of one name"):
        load_thresholds(tmp_path / "own.yaml")
