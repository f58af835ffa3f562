"""Calibration: temperatures and bounds are those of their definitions, and a certified threshold keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.judging.calibrate import (
    certified_threshold,
    fit_temperature,
    precision_interval,
    precision_lower_bound,
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


def test_one_unlucky_start_ends_the_search() -> None:
    correct = np.arange(1_000) >= 20  # the 20 surest are wrong, all others right
    assert certified_threshold(np.linspace(1.0, 0.001, 1_000), correct) is None


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([150, 600, 2_000]),
    low=st.sampled_from([0.0, 0.4, 0.7]),
    shape=st.sampled_from([0.6, 1.0, 2.0]),
    target=st.sampled_from([0.8, 0.9]),
)
def test_the_promise_is_broken_no_more_often_than_it_allows(rows: int, low: float, shape: float, target: float) -> None:
    generator = np.random.default_rng(3)

    def chances(count: int) -> np.ndarray:
        return low + (0.99 - low) * generator.uniform(size=count) ** (1 / shape)

    everything = np.sort(chances(400_000))[::-1]
    above = np.cumsum(everything) / np.arange(1, len(everything) + 1)  # the precision that every threshold really has
    repetitions, broken = 100, 0
    for _ in range(repetitions):
        chance = chances(rows)
        found = certified_threshold(chance, generator.uniform(size=rows) < chance, target)
        if found is not None:
            broken += above[np.searchsorted(-everything, -found.threshold, side="right") - 1] < target
    assert broken / repetitions <= 0.05 + 3 * (0.05 * 0.95 / repetitions) ** 0.5
