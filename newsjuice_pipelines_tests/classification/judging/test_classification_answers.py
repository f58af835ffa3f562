"""Answers: the narrowest one that keeps its promise is given, and each promise holds on what the others left over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.judging.answers import (
    ABSTAINED,
    DECISIONS,
    FILED,
    PARENT,
    STAGES,
    TOP_3,
    answers,
    certify_stages,
    choose,
    rank,
)
from newsjuice_pipelines.classification.judging.calibrate import Calibration, fit_temperature, softmax

CLASSES = ("ARTS", "COMEDY", "MONEY", "SPORTS", "TECH")
PARENTS = ("CULTURE", "CULTURE", "BUSINESS", "SPORTS", "BUSINESS")


def calibration(
    filed: float | None = 0.8, parent: float | None = 0.8, top3: float | None = 0.8, quantile: float = 0.7
) -> Calibration:
    return Calibration(CLASSES, PARENTS, 1.0, filed, parent, top3, (quantile,) * 5)


def answer(*probabilities: float, **thresholds: float | None):  # type: ignore[no-untyped-def]
    return answers(np.array([probabilities]), calibration(**thresholds))[0]


def test_a_sure_class_is_filed_with_its_parent() -> None:
    found = answer(0.05, 0.05, 0.85, 0.03, 0.02)
    assert (found.decision, found.label, found.confidence) == (FILED, "MONEY", 0.85)
    assert (found.parent, found.parent_confidence) == ("BUSINESS", pytest.approx(0.87))
    assert found.top3 == ("MONEY", "ARTS", "COMEDY")


def test_an_unsure_class_of_a_sure_parent_gives_the_parent() -> None:
    found = answer(0.45, 0.4, 0.05, 0.05, 0.05)
    assert (found.decision, found.label, found.parent) == (PARENT, "ARTS", "CULTURE")
    assert found.parent_confidence == pytest.approx(0.85)


def test_a_parent_of_one_class_is_no_wider_answer() -> None:
    assert answer(0.05, 0.05, 0.05, 0.8, 0.05, filed=0.9, parent=0.5, top3=None).decision == ABSTAINED


def test_three_classes_are_offered_when_neither_class_nor_parent_is_sure() -> None:
    found = answer(0.4, 0.02, 0.3, 0.25, 0.03)
    assert (found.decision, found.top3) == (TOP_3, ("ARTS", "MONEY", "SPORTS"))


def test_the_likeliest_parent_need_not_hold_the_likeliest_class_unless_that_is_filed() -> None:
    split = (0.3, 0.3, 0.02, 0.36, 0.02)
    assert answer(*split, filed=None, parent=0.5).parent == "CULTURE"
    filed = answer(*split, filed=0.3)
    assert (filed.decision, filed.label, filed.parent) == (FILED, "SPORTS", "SPORTS")


def test_a_stage_without_a_threshold_is_skipped() -> None:
    sure = (0.96, 0.01, 0.01, 0.01, 0.01)
    assert answer(*sure, filed=None).decision == PARENT
    assert answer(*sure, filed=None, parent=None).decision == TOP_3
    assert answer(*sure, filed=None, parent=None, top3=None).decision == ABSTAINED


def test_the_prediction_set_is_in_the_order_of_the_classes_chances_and_may_be_empty() -> None:
    assert answer(0.35, 0.02, 0.4, 0.2, 0.03, quantile=0.7).prediction_set == ("MONEY", "ARTS")
    assert answer(0.2, 0.2, 0.2, 0.2, 0.2, quantile=0.7).prediction_set == ()


def test_the_order_of_rows_and_their_neighbours_change_no_answer() -> None:
    probabilities = softmax(np.random.default_rng(1).normal(scale=2, size=(60, 5)))
    together = answers(probabilities, calibration(0.5, 0.6, 0.9))
    assert together == [answers(probabilities[row : row + 1], calibration(0.5, 0.6, 0.9))[0] for row in range(60)]
    assert {item.decision for item in together} == set(DECISIONS)


def test_no_rows_give_no_answers() -> None:
    assert answers(np.zeros((0, 5)), calibration()) == []


def test_probabilities_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 classes"):
        answers(np.full((2, 4), 0.25), calibration())


@pytest.mark.parametrize("classes", [2, 3])
def test_of_three_classes_the_first_three_are_never_offered(classes: int) -> None:
    probabilities = softmax(np.random.default_rng(2).normal(size=(500, classes)))
    labels = np.random.default_rng(3).integers(classes, size=500)
    stages = certify_stages(rank(probabilities, [f"{number}" for number in range(classes)]), labels)
    assert (stages[TOP_3].found, stages[TOP_3].rows_left) == (None, 0)


def test_without_wider_parents_no_parent_is_certified() -> None:
    probabilities, labels = np.eye(5)[np.arange(1_000) % 5], np.arange(1_000) % 5
    stages = certify_stages(rank(probabilities, CLASSES), labels)
    assert stages[FILED].found is not None
    assert stages[PARENT].found is None


def test_a_stage_is_certified_on_the_rows_that_the_stage_before_left_over() -> None:
    probabilities, _, labels = simulated(3_000, seed=4)
    stages = certify_stages(rank(probabilities, PARENTS), labels)
    decisions = choose(rank(probabilities, PARENTS), {stage: found.threshold for stage, found in stages.items()})
    for stage in STAGES:
        found = stages[stage].found
        assert found is not None
        assert found.rows == (decisions == stage).sum()
        assert found.coverage == pytest.approx(found.rows / 3_000)
    assert stages[TOP_3].rows_left == 3_000 - stages[FILED].found.rows - stages[PARENT].found.rows


def simulated(rows: int, seed: int, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of five classes of which those with one parent are often confused, the true chances, and labels."""
    generator = np.random.default_rng(seed)
    parent_logits = generator.normal(scale=3.0, size=(rows, 3))
    logits = parent_logits[:, [0, 0, 1, 2, 1]] + generator.normal(scale=1.5, size=(rows, 5))
    chances = softmax(logits)
    labels = (chances.cumsum(axis=1) > generator.uniform(size=(rows, 1))).argmax(axis=1)
    return softmax(logits * factor), chances, labels


@settings(max_examples=3, deadline=None, derandomize=True)
@given(rows=st.sampled_from([800, 2_000]), factor=st.sampled_from([0.4, 1.0, 3.0]))
def test_every_stage_keeps_its_promise_as_often_as_stated_even_with_a_fitted_temperature(rows: int, factor: float) -> None:
    new, chances, _ = simulated(15_000, 999, factor)
    repetitions, sampling_error = 40, 0.003  # of the precision over so many rows
    broken, certified = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
    for seed in range(repetitions):
        held, _, labels = simulated(rows, seed, factor)
        logits = np.log(held)
        temperature = fit_temperature(logits, labels)
        stages = certify_stages(rank(softmax(logits, temperature), PARENTS), labels)
        ranking = rank(softmax(np.log(new), temperature), PARENTS)
        decisions = choose(ranking, {stage: found.threshold for stage, found in stages.items()})
        parents = np.stack([chances[:, ranking.parent_of_class == number].sum(axis=1) for number in range(3)], axis=1)
        right = {
            FILED: np.take_along_axis(chances, ranking.label[:, None], axis=1)[:, 0],
            PARENT: np.take_along_axis(parents, ranking.parent[:, None], axis=1)[:, 0],
            TOP_3: np.take_along_axis(chances, ranking.first, axis=1).sum(axis=1),
        }
        for stage in STAGES:
            given_so = decisions == stage
            certified[stage] += bool(given_so.any())
            broken[stage] += bool(given_so.any() and right[stage][given_so].mean() < 0.9 - sampling_error)
    assert certified[FILED] > repetitions / 3
    allowed = 0.05 + 3 * (0.05 * 0.95 / repetitions) ** 0.5
    assert {stage: count / repetitions <= allowed for stage, count in broken.items()} == dict.fromkeys(STAGES, True)
