"""How far confidences can be trusted: the numbers are those of their definitions, and chance is told from error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.judging.bootstrap import bootstrap, group_draws
from newsjuice_pipelines.classification.judging.reliability import (
    brier_score,
    calibrated_ece,
    equal_mass_bins,
    expected_calibration_error,
    reliability,
    risk_coverage,
    weighted_aurc,
    weighted_ece,
)


def calibrated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that are the true chance of being right, and what was right."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.2, 1.0, size=rows)
    return confidence, generator.uniform(size=rows) < confidence


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    confidence = np.repeat([0.9, 0.6], [40, 20])
    correct = np.concatenate([np.arange(40) < 30, np.arange(20) < 16])
    assert expected_calibration_error(confidence, correct) == pytest.approx((40 * 0.15 + 20 * 0.2) / 60)


def test_bins_hold_equally_many_rows_and_equal_confidences_stay_together() -> None:
    distinct = np.bincount(equal_mass_bins(np.random.default_rng(1).permutation(np.linspace(0, 1, 1_500))))
    assert distinct.tolist() == [100] * 15
    tied = np.concatenate([np.full(700, 0.5), np.linspace(0.6, 1, 800)])
    assert len(set(equal_mass_bins(tied)[:700].tolist())) == 1


def test_few_rows_make_fewer_bins() -> None:
    assert len(set(equal_mass_bins(np.linspace(0, 1, 35)).tolist())) == 3
    assert len(set(equal_mass_bins(np.linspace(0, 1, 4)).tolist())) == 1


def test_every_row_is_in_one_bin_of_the_reliability() -> None:
    confidence, correct = calibrated(1_000, seed=2)
    bins = reliability(confidence, correct)
    assert sum(item["rows"] for item in bins) == 1_000
    assert all(item["low"] <= item["confidence"] <= item["high"] for item in bins)
    assert all(item["interval"][0] <= item["accuracy"] <= item["interval"][1] for item in bins)


def test_chance_alone_explains_the_error_of_a_calibrated_classifier_but_not_of_an_overconfident_one() -> None:
    confidence, correct = calibrated(400, seed=3)
    chance = calibrated_ece(confidence, seed=1)
    assert 0.01 < chance["mean"] < chance["high"]
    assert expected_calibration_error(confidence, correct) <= chance["high"]
    bold = confidence**0.25
    assert expected_calibration_error(bold, correct) > 2 * calibrated_ece(bold, seed=1)["high"]


def test_chance_opens_smaller_gaps_in_more_rows() -> None:
    few, many = (calibrated_ece(calibrated(rows, seed=4)[0], seed=1)["mean"] for rows in (200, 5_000))
    assert many < few / 3


def test_the_brier_score_is_zero_for_certain_truth_and_two_for_certain_error() -> None:
    certain = np.eye(2)
    assert brier_score(certain, np.array([0, 1])) == 0
    assert brier_score(certain, np.array([1, 0])) == 2


def test_the_area_under_the_risk_coverage_curve_is_the_mean_error_of_all_prefixes() -> None:
    found = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert found["aurc_of_perfect_order"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert found["aurc_of_no_order"] == 0.5
    assert [(point["coverage"], point["error"]) for point in found["curve"]][-1] == (1.0, 0.5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40), st.randoms())
def test_the_order_of_the_rows_changes_neither_curve_nor_error(rows: list[tuple[float, bool]], shuffle: object) -> None:
    mixed = list(rows)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    first, second = (tuple(np.array(column) for column in zip(*items, strict=True)) for items in (rows, mixed))
    assert risk_coverage(*first)["aurc"] == pytest.approx(risk_coverage(*second)["aurc"])
    assert expected_calibration_error(*first) == pytest.approx(expected_calibration_error(*second))
    assert risk_coverage(*first)["aurc_of_perfect_order"] <= risk_coverage(*first)["aurc"] + 1e-12


def test_weights_count_rows_several_times() -> None:
    confidence, correct = calibrated(60, seed=5)
    weights = np.random.default_rng(6).integers(0, 3, size=60)
    copies = [np.repeat(values, weights) for values in (confidence, correct)]
    assert weighted_aurc(confidence, correct)(weights.astype(float)) == pytest.approx(risk_coverage(*copies)["aurc"])
    one_bin = [weighted_ece(confidence, correct, 1)(weights.astype(float)), expected_calibration_error(*copies, bins=1)]
    assert one_bin[0] == pytest.approx(one_bin[1])


def test_a_draw_takes_whole_groups_and_as_many_as_there_are() -> None:
    groups = np.array(["a", "b", "a", "c", "b"])
    for weights in group_draws(groups, seed=1, draws=50):
        assert weights[0] == weights[2]
        assert weights[1] == weights[4]
        assert weights[0] + weights[1] + weights[3] == 3


def test_what_no_draw_can_measure_has_no_interval() -> None:
    intervals = bootstrap(lambda weights: {"rows": weights.sum(), "nothing": float("nan")}, np.arange(9), seed=1, draws=20)
    assert intervals == {"rows": [9.0, 9.0], "nothing": None}


def test_the_bootstrap_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(7), 0
    for seed in range(100):
        values = generator.uniform(size=80) < 0.7
        low, high = bootstrap(lambda w, v=values: {"share": float(w @ v / w.sum())}, np.arange(80), seed, draws=200)["share"]
        held += low <= 0.7 <= high
    assert held >= 87
