"""Prediction sets: MAPIE gives the same ones, and every class is covered as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.judging.calibrate import softmax
from newsjuice_pipelines.classification.judging.conformal import (
    aps_scores,
    class_quantiles,
    common_quantile,
    conformal_quantile,
    conformal_results,
    lac_scores,
    measure_sets,
    prediction_sets,
)


def drawn(rows: int, classes: int, seed: int, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels; a factor other than 1 makes the probabilities wrong, which no promise may rest on."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(rows, classes)) + np.linspace(0, 1.5, classes)
    labels = (softmax(logits).cumsum(axis=1) > generator.uniform(size=(rows, 1))).argmax(axis=1)
    return softmax(logits * factor), labels


def mapie_sets(held: np.ndarray, labels: np.ndarray, new: np.ndarray, coverage: float, score: str) -> np.ndarray:
    """MAPIE's sets for the same probabilities, which it takes from a stand-in classifier."""
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """Its features are the probabilities."""

        def fit(self, features: np.ndarray, target: np.ndarray) -> Given:
            self.classes_ = np.arange(features.shape[1])
            self.n_features_in_ = features.shape[1]
            return self

        def predict_proba(self, features: np.ndarray) -> np.ndarray:
            return features

        def predict(self, features: np.ndarray) -> np.ndarray:
            return features.argmax(axis=1)

    class NoLuck(np.random.RandomState):
        """MAPIE draws how much of the true class's own probability counts; here all of it does."""

        def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> np.ndarray:
            return np.zeros(size)  # type: ignore[call-overload,no-any-return]

    classifier = Given().fit(held, labels)
    model = SplitConformalClassifier(classifier, confidence_level=coverage, conformity_score=score, random_state=NoLuck())
    model.conformalize(held, labels)
    options = {"conformity_score_params": {"include_last_label": True}} if score == "aps" else {}
    return np.asarray(model.predict_set(new, **options)[1][:, :, 0])


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_lac_sets_are_those_of_mapie(coverage: float) -> None:
    held, labels = drawn(500, 6, seed=1)
    new, _ = drawn(300, 6, seed=2)
    ours = prediction_sets(lac_scores(new), common_quantile(lac_scores(held), labels, coverage))
    assert (ours == mapie_sets(held, labels, new, coverage, "lac")).all()


def test_aps_sets_are_those_of_mapie_less_the_class_that_crosses_the_quantile() -> None:
    held, labels = drawn(500, 6, seed=3)
    new, _ = drawn(300, 6, seed=4)
    ours = prediction_sets(aps_scores(new), common_quantile(aps_scores(held), labels, 0.9))
    theirs = mapie_sets(held, labels, new, 0.9, "aps")
    assert (ours <= theirs).all()
    assert set((theirs & ~ours).sum(axis=1).tolist()) <= {0, 1}


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels")
def test_a_class_has_the_quantile_that_mapie_finds_on_its_rows_alone() -> None:
    held, labels = drawn(600, 4, seed=5)
    new, _ = drawn(200, 4, seed=6)
    sets = prediction_sets(lac_scores(new), class_quantiles(lac_scores(held), labels, 0.9))
    for number in range(4):
        own = labels == number
        assert (sets[:, number] == mapie_sets(held[own], labels[own], new, 0.9, "lac")[:, number]).all()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([120, 400, 1_200]),
    classes=st.sampled_from([2, 5]),
    factor=st.sampled_from([0.2, 1.0, 4.0]),
    coverage=st.sampled_from([0.8, 0.9]),
    kind=st.sampled_from([lac_scores, aps_scores]),
)
def test_every_class_is_covered_whatever_the_probabilities_are_worth(
    rows: int, classes: int, factor: float, coverage: float, kind: object
) -> None:
    new, truth = drawn(20_000, classes, 999, factor)
    shares = []
    for seed in range(40):
        held, labels = drawn(rows, classes, seed, factor)
        sets = prediction_sets(kind(new), class_quantiles(kind(held), labels, coverage))  # type: ignore[operator]
        shares.append(measure_sets(sets, truth)["class_coverage"])
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0) / 40**0.5
    assert (mean >= coverage - 3 * error - 0.01).all()


def test_one_quantile_for_all_leaves_weak_classes_behind() -> None:
    generator = np.random.default_rng(8)
    labels = generator.integers(2, size=2_000)
    first = np.where(labels == 0, generator.uniform(0.8, 1.0, 2_000), generator.uniform(0.2, 0.9, 2_000))
    probabilities = np.stack([first, 1 - first], axis=1)
    found = conformal_results(probabilities[:1_000], labels[:1_000], probabilities[1_000:], labels[1_000:], 0.9)
    served, common = found["methods"]["LAC, a quantile a class"], found["methods"]["LAC, one quantile"]
    assert common["lowest_class_coverage"] < 0.85 < served["lowest_class_coverage"]


@pytest.mark.parametrize(("rows", "rank"), [(9, 9), (10, 10), (19, 18), (99, 90), (100, 91)])
def test_the_quantile_counts_the_row_to_come(rows: int, rank: int) -> None:
    scores = np.arange(1, rows + 1) / 1_000
    assert conformal_quantile(np.random.default_rng(1).permutation(scores), 0.9) == rank / 1_000


def test_a_class_with_too_few_rows_is_in_every_set_and_named() -> None:
    held, labels = drawn(300, 4, seed=9)
    keep = labels != 3
    found = conformal_results(held[keep], labels[keep], held, labels, 0.9)
    assert found["quantiles"][3] == 1.0
    assert found["classes_with_too_few_rows"] == [3]
    assert found["methods"]["LAC, a quantile a class"]["class_coverage"][3] == 1.0


def test_a_class_without_test_rows_has_no_coverage() -> None:
    assert measure_sets(np.ones((2, 3), dtype=bool), np.array([0, 2]))["class_coverage"] == [1.0, None, 1.0]


def test_sizes_of_sets_are_counted() -> None:
    sets = np.array([[True, False], [False, False], [True, True], [True, False]])
    found = measure_sets(sets, np.array([0, 0, 0, 1]))
    assert (found["coverage"], found["mean_size"], found["share_of_one"], found["share_empty"]) == (0.5, 1.0, 0.5, 0.25)
