"""Calibration: the numbers are those of their definitions, and a certified threshold keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest

from newsjuice_pipelines.classification.judging.calibrate import (
    brier_score,
    certified_threshold,
    expected_calibration_error,
    fit_temperature,
    precision_interval,
    precision_lower_bound,
    reliability,
    softmax,
)


def calibrated_logits(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true chance of every class, and labels drawn from it."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(rows, classes))
    chances = softmax(logits)
    return logits, np.array([generator.choice(classes, p=row) for row in chances])


@pytest.mark.parametrize("factor", [0.25, 1.0, 5.0])
def test_the_temperature_undoes_a_scaling_of_calibrated_logits(factor: float) -> None:
    logits, labels = calibrated_logits(4_000, 5, seed=1)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.06)


def test_a_temperature_does_not_change_which_class_is_first() -> None:
    logits, _ = calibrated_logits(50, 5, seed=2)
    assert (softmax(logits, 3.0).argmax(axis=1) == logits.argmax(axis=1)).all()


def test_huge_logits_give_finite_probabilities() -> None:
    assert np.isfinite(softmax(np.array([[1e6, -1e6]]), 0.02)).all()


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False, True, False])
    assert expected_calibration_error(confidence, correct) == pytest.approx((4 * 0.20 + 2 * 0.05) / 6)


def test_every_row_falls_into_one_bin_even_at_the_ends() -> None:
    bins = reliability(np.array([0.0, 1 / 15, 0.5, 1.0]), np.ones(4, dtype=bool))
    assert sum(item["rows"] for item in bins) == 4
    assert bins[-1]["high"] == 1.0


def test_the_brier_score_is_zero_for_certain_truth_and_two_for_certain_error() -> None:
    certain = np.eye(2)
    assert brier_score(certain, np.array([0, 1])) == 0
    assert brier_score(certain, np.array([1, 0])) == 2


def test_clopper_pearson_bounds_are_the_published_ones() -> None:
    assert precision_interval(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert precision_interval(10, 10)[1] == 1.0
    assert precision_interval(0, 10)[0] == 0.0
    assert precision_lower_bound(10, 10) == pytest.approx(0.05**0.1)


def test_the_threshold_is_the_lowest_that_keeps_the_precision() -> None:
    confidence = np.linspace(1.0, 0.001, 1_000)
    correct = np.arange(1_000) < 500  # right above 0.5, wrong below
    found = certified_threshold(confidence, correct)
    assert found is not None
    assert found.precision_low >= 0.9
    assert found.coverage == pytest.approx(0.5, abs=0.05)
    assert found.threshold == pytest.approx(0.5, abs=0.05)


def test_a_classifier_that_is_often_wrong_when_sure_gets_no_threshold() -> None:
    confidence = np.linspace(1.0, 0.001, 1_000)
    assert certified_threshold(confidence, np.arange(1_000) % 4 > 0) is None


def test_too_few_rows_certify_nothing_even_when_all_are_right() -> None:
    assert certified_threshold(np.full(28, 0.99), np.ones(28, dtype=bool)) is None
    assert certified_threshold(np.full(29, 0.99), np.ones(29, dtype=bool)) is not None


def test_no_rows_certify_nothing() -> None:
    assert certified_threshold(np.zeros(0), np.zeros(0, dtype=bool)) is None


def test_equal_confidences_are_accepted_or_refused_together() -> None:
    confidence = np.full(400, 0.8)
    correct = np.arange(400) < 200
    assert certified_threshold(confidence, correct) is None


def test_the_promise_is_broken_no_more_often_than_it_allows() -> None:
    generator = np.random.default_rng(3)
    broken = 0
    for _ in range(400):
        confidence = generator.uniform(size=600)
        chance = 0.6 + 0.4 * confidence  # precision above t is 0.8 + 0.2 t, so the promise holds from t = 0.5 on
        found = certified_threshold(confidence, generator.uniform(size=600) < chance)
        broken += found is not None and found.threshold < 0.5
    assert broken / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
