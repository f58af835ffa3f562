"""Leaderboard: the validation part chooses, paired tests are exact, and noise is not called a winner."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.classification.judging.in_force import current_evaluations
from newsjuice_pipelines.classification.judging.leaderboard import (
    LeaderboardError,
    compare_pairs,
    holm,
    leaderboard,
    sign_flip_test,
)
from newsjuice_pipelines.resources.artifacts import Artifacts


def with_results(evaluation: Path, out: Path, **changes: Any) -> Path:
    """A copy of an evaluation with other results."""
    copy = Path(shutil.copytree(evaluation, out))
    results = json.loads((copy / "results.json").read_text(encoding="utf-8"))
    (copy / "results.json").write_text(json.dumps({**results, **changes}), encoding="utf-8")
    return copy


def validated(accuracy: float) -> dict[str, Any]:
    return {"validation": {"rows": 100, "accuracy": accuracy, "interval": [0.0, 1.0]}}


@pytest.fixture(scope="module")
def weak(linear: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of a model that misreads every other text which the linear one gets right."""
    predictions = pd.read_parquet(linear.evaluation / "predictions.parquet")
    spoilt = predictions.index[predictions["predicted"] == predictions["label_id"]][::2]
    predictions.loc[spoilt, "predicted"] = (predictions.loc[spoilt, "label_id"] + 1) % 4
    accuracy = float((predictions["predicted"] == predictions["label_id"]).mean())
    metrics = json.loads((linear.evaluation / "results.json").read_text(encoding="utf-8"))["metrics"]
    metrics["accuracy"] = {"value": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05]}
    copy = with_results(linear.evaluation, tmp_path_factory.mktemp("weak") / "copy", metrics=metrics, **validated(0.1))
    predictions.to_parquet(copy / "predictions.parquet", index=False)
    return copy


# -- paired tests -------------------------------------------------------------------------------------------------------


def test_of_single_texts_the_test_is_mcnemars_exact_one() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 50)
    second = np.array([False] * 9 + [True] * 1 + [True] * 50)
    found = sign_flip_test(first, second, np.arange(60))
    assert found == {"only_first": 9, "only_second": 1, "p_value": pytest.approx(2 * 11 / 2**10)}
    assert sign_flip_test(first, first, np.arange(60))["p_value"] == 1.0


def test_the_test_of_groups_counts_every_way_in_which_they_could_have_gone() -> None:
    generator = np.random.default_rng(8)
    groups = np.repeat(np.arange(10), generator.integers(1, 6, size=10))
    first, second = (generator.uniform(size=len(groups)) < share for share in (0.8, 0.5))
    leads = np.bincount(groups, weights=first.astype(float) - second)
    flipped = np.array(list(product((-1, 1), repeat=10))) @ leads
    expected = (np.abs(flipped) >= abs(leads.sum())).mean()
    assert 0 < expected < 1
    assert sign_flip_test(first, second, groups)["p_value"] == pytest.approx(expected)


def test_near_duplicates_do_not_make_equal_models_differ() -> None:
    generator, called = np.random.default_rng(9), 0
    for _ in range(400):
        groups = np.repeat(np.arange(150), generator.integers(1, 6, size=150))
        first, second = ((generator.uniform(size=150) < 0.6)[groups] for _ in range(2))
        called += sign_flip_test(first, second, groups)["p_value"] < 0.05
    assert called / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_the_p_value_agrees_with_the_interval() -> None:
    leads = np.array([1] * 36 + [-1] * 27 + [0] * 57)  # of 120 groups of ten rows, all alike
    groups = np.repeat(np.arange(120), 10)
    (found,) = compare_pairs({"a": (leads == 1)[groups], "b": (leads == -1)[groups]}, groups, seed=1)
    assert found["difference"] == pytest.approx(0.075)
    assert found["interval"][0] < 0 < found["interval"][1]
    assert found["p_corrected"] > 0.05


def test_holm_corrects_step_down_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_every_model_is_compared_with_every_other() -> None:
    generator = np.random.default_rng(1)
    correct = {name: generator.uniform(size=400) < share for name, share in (("a", 0.8), ("b", 0.7), ("c", 0.5))}
    pairs = compare_pairs(correct, np.arange(400), seed=1)
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in pairs:
        assert pair["difference"] == pytest.approx(correct[pair["first"]].mean() - correct[pair["second"]].mean())
        assert pair["difference"] == pytest.approx((pair["only_first"] - pair["only_second"]) / 400)
        assert pair["interval"][0] < pair["difference"] < pair["interval"][1]
        assert pair["p_value"] <= pair["p_corrected"]


def test_a_real_difference_has_an_interval_above_zero_and_equal_models_have_none() -> None:
    generator = np.random.default_rng(2)
    better = generator.uniform(size=1_000) < 0.75
    worse = better & (generator.uniform(size=1_000) < 0.85)
    (found,) = compare_pairs({"better": better, "worse": worse}, np.arange(1_000), seed=1)
    assert found["interval"][0] > 0
    (same,) = compare_pairs({"one": better, "two": better.copy()}, np.arange(1_000), seed=1)
    assert (same["difference"], same["interval"], same["p_corrected"]) == (0.0, [0.0, 0.0], 1.0)


def test_pairing_makes_the_interval_narrower_than_two_separate_ones() -> None:
    generator = np.random.default_rng(3)
    easy = generator.uniform(size=800) < 0.6  # both get the easy rows right
    first, second = (easy | (generator.uniform(size=800) < share) for share in (0.10, 0.05))
    (found,) = compare_pairs({"first": first, "second": second}, np.arange(800), seed=1)
    separate = 2 * 1.96 * (2 * 0.62 * 0.38 / 800) ** 0.5
    assert found["interval"][1] - found["interval"][0] < separate / 2


def test_copies_of_rows_do_not_make_a_difference_surer() -> None:
    generator = np.random.default_rng(4)
    first, second = (generator.uniform(size=150) < share for share in (0.7, 0.6))
    (once,) = compare_pairs({"a": first, "b": second}, np.arange(150), seed=1)
    copies = {"a": np.repeat(first, 8), "b": np.repeat(second, 8)}
    (grouped,) = compare_pairs(copies, np.repeat(np.arange(150), 8), seed=1)
    assert grouped["interval"] == pytest.approx(once["interval"])


def test_noise_is_called_a_winner_no_more_often_than_stated() -> None:
    generator = np.random.default_rng(5)
    called = 0
    for seed in range(60):
        correct = {name: generator.uniform(size=200) < 0.6 for name in "abcd"}
        called += any(pair["p_corrected"] < 0.05 for pair in compare_pairs(correct, np.arange(200), seed))
    assert called / 60 <= 0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5


# -- the ranking --------------------------------------------------------------------------------------------------------


def test_models_are_ranked_and_compared_with_the_best(linear: Any, weak: Path, tmp_path: Path) -> None:
    board = leaderboard({"weak": weak, "linear": linear.evaluation}, tmp_path)
    assert "exact sign-flip test over the same groups" in (tmp_path / "report.md").read_text(encoding="utf-8")
    first, second = board["ranking"]
    assert (board["best"], first["model"], second["model"]) == ("linear", "linear", "weak")
    assert (first["p_corrected"], first["behind_best"]) == (None, None)
    assert second["behind_best"] == pytest.approx(first["accuracy"] - second["accuracy"])
    assert second["behind_best_interval"][0] > 0
    assert second["p_corrected"] < 0.001
    assert (second["only_best_right"] - second["only_this_right"]) / board["test_rows"] == pytest.approx(second["behind_best"])
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.md", "leaderboard.png"}
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Best: linear." in page
    assert "None" not in page


def test_the_validation_part_chooses_even_where_the_test_part_disagrees(linear: Any, weak: Path, tmp_path: Path) -> None:
    first = with_results(linear.evaluation, tmp_path / "linear", **validated(0.5))
    second = with_results(weak, tmp_path / "weak", **validated(0.6))
    board = leaderboard({"linear": first, "weak": second}, tmp_path)
    assert board["best"] == "weak"
    assert board["ranking"][1]["behind_best"] < 0


def test_a_model_that_the_test_part_selected_is_marked_and_never_best(linear: Any, weak: Path, tmp_path: Path) -> None:
    flattered = with_results(linear.evaluation, tmp_path / "copy", selected_on="test", recipe="original", **validated(1.0))
    board = leaderboard({"linear-original": flattered, "weak": weak}, tmp_path)
    assert board["best"] == "weak"
    assert [(entry["model"], entry["eligible"]) for entry in board["ranking"]] == [("weak", True), ("linear-original", False)]
    assert "linear-original (chosen by the test part) | original" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_without_an_eligible_model_there_is_no_best(linear: Any, tmp_path: Path) -> None:
    flattered = with_results(linear.evaluation, tmp_path / "copy", selected_on="test")
    assert leaderboard({"linear-original": flattered}, tmp_path)["best"] is None
    assert "No model can be the best" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_models_that_noise_may_have_ranked_are_named(linear: Any, tmp_path: Path) -> None:
    twin = with_results(linear.evaluation, tmp_path / "twin", **validated(0.0))
    board = leaderboard({"linear": linear.evaluation, "twin": twin}, tmp_path)
    assert board["not_told_apart"] == ["twin"]
    assert "Not told apart from it on these texts: twin" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_order_in_which_models_are_given_changes_nothing(linear: Any, weak: Path, tmp_path: Path) -> None:
    given = {"linear": linear.evaluation, "weak": weak}
    assert leaderboard(given, tmp_path) == leaderboard(dict(reversed(given.items())), tmp_path)


def test_one_model_alone_is_the_best(linear: Any, tmp_path: Path) -> None:
    board = leaderboard({"linear": linear.evaluation}, tmp_path)
    assert (board["best"], board["pairs"]) == ("linear", [])


# -- what cannot be compared --------------------------------------------------------------------------------------------


def test_evaluations_of_different_test_rows_are_not_compared(linear: Any, tmp_path: Path) -> None:
    other = shutil.copytree(linear.evaluation, tmp_path / "other")
    pd.read_parquet(other / "predictions.parquet")[1:].to_parquet(other / "predictions.parquet", index=False)
    with pytest.raises(LeaderboardError, match="different test rows"):
        leaderboard({"linear": linear.evaluation, "other": other}, tmp_path)


@pytest.mark.parametrize(("promise", "other"), [("target_precision", 0.8), ("certainty", 0.5)])
def test_evaluations_of_different_promises_are_not_compared(linear: Any, tmp_path: Path, promise: str, other: float) -> None:
    config = json.loads((linear.evaluation / "results.json").read_text(encoding="utf-8"))["config"]
    lax = with_results(linear.evaluation, tmp_path / "lax", config={**config, promise: other})
    with pytest.raises(LeaderboardError, match=rf"lax: .*{promise} {other}.*classifier_eval_report"):
        leaderboard({"linear": linear.evaluation, "lax": lax}, tmp_path)


def test_an_evaluation_without_a_validation_accuracy_is_made_again(linear: Any, tmp_path: Path) -> None:
    old = with_results(linear.evaluation, tmp_path / "old")
    results = json.loads((old / "results.json").read_text(encoding="utf-8"))
    results.pop("validation")
    (old / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(LeaderboardError, match="evaluation of old has no validation"):
        leaderboard({"old": old}, tmp_path)


def test_an_empty_leaderboard_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(LeaderboardError, match="classifier_eval_report"):
        leaderboard({}, tmp_path)


def test_an_evaluation_that_is_not_whole_names_the_asset_to_materialise(linear: Any, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(linear.evaluation, tmp_path / "broken"))
    (broken / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(LeaderboardError, match="classifier_eval_report"):
        leaderboard({"broken": broken}, tmp_path)


# -- which evaluations take part ----------------------------------------------------------------------------------------


def test_only_evaluations_of_the_split_and_the_checkpoint_in_force_take_part(tmp_path: Path) -> None:
    store = Artifacts(root=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache")).store()

    def publish(key: str, *inputs: str, turn: int = 1) -> None:
        versions = {name: store.current_version(name) for name in inputs}
        store.publish(key, {"inputs": versions, "turn": turn}, lambda draft: {})

    def judge(model: str) -> None:
        publish(f"classifier_checkpoint/{model}", "balanced_split")
        publish(f"classifier_eval_report/{model}", f"classifier_checkpoint/{model}", "balanced_split")

    publish("balanced_split")
    judge("of-an-earlier-split")
    publish("balanced_split", turn=2)
    judge("of-an-earlier-checkpoint")
    publish("classifier_checkpoint/of-an-earlier-checkpoint", "balanced_split", turn=2)
    judge("in-force")

    assert list(current_evaluations(store)) == ["in-force"]
