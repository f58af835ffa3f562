"""The answer a text gets: its class, a parent of classes, the first three classes, or none; and the thresholds between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from newsjuice_pipelines.classification.judging.calibrate import (
    CERTAINTY,
    TARGET_PRECISION,
    Calibration,
    CertifiedThreshold,
    certified_threshold,
)
from newsjuice_pipelines.classification.judging.conformal import lac_scores, prediction_sets

if TYPE_CHECKING:
    import numpy as np

FILED, PARENT, TOP_3, ABSTAINED = "filed", "parent", "top-3", "abstained"
STAGES = (FILED, PARENT, TOP_3)
"""The answers that promise something, in the order in which they are tried."""
DECISIONS = (*STAGES, ABSTAINED)
FIRST_CLASSES = 3


@dataclass(frozen=True)
class Answer:
    """What is said about one text.

    `decision` is `filed` (the text is a `label`), `parent` (it is somewhere in `parent`), `top-3` (it is one of `top3`) or
    `abstained`. `label`, `confidence` and `top3` are given in any case, for a person to look at; `prediction_set` holds, in its
    promised share of texts, the true class, and may be empty.
    """

    decision: str
    label: str
    confidence: float
    parent: str
    parent_confidence: float
    top3: tuple[str, ...]
    prediction_set: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """What could be answered for every row: numbers of classes and parents, and the probability of each answer.

    `wider` says where the likeliest parent holds several classes: any other parent says no less than a class would.
    """

    label: np.ndarray
    confidence: np.ndarray
    parent_names: tuple[str, ...]
    parent_of_class: np.ndarray
    parent_masses: np.ndarray
    wider: np.ndarray
    first: np.ndarray
    first_mass: np.ndarray

    @property
    def parent(self) -> np.ndarray:
        """The number of the likeliest parent of every row."""
        import numpy as np

        return np.asarray(self.parent_masses.argmax(axis=1))

    def offers(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """The probability of a stage's answer in every row, and whether the row can get such an answer."""
        import numpy as np

        if stage == FILED:
            return self.confidence, np.ones(len(self.label), dtype=bool)
        if stage == PARENT:
            return self.parent_masses.max(axis=1), self.wider
        more_classes = (
            len(self.parent_of_class) > FIRST_CLASSES
        )  # of three classes, the right one is always among the first three
        return self.first_mass, np.full(len(self.label), more_classes)

    def hits(self, stage: str, labels: np.ndarray) -> np.ndarray:
        """Whether a stage's answer is right in every row."""
        import numpy as np

        if stage == FILED:
            return np.asarray(self.label == labels)
        if stage == PARENT:
            return np.asarray(self.parent == self.parent_of_class[labels])
        return np.asarray((self.first == labels[:, None]).any(axis=1))


def rank(probabilities: np.ndarray, parents: Sequence[str]) -> Ranking:
    """Order the classes, and the parents (one a class), of every row by calibrated probability (rows x classes)."""
    import numpy as np

    names = tuple(dict.fromkeys(parents))
    parent_of_class = np.array([names.index(parent) for parent in parents])
    belongs = parent_of_class[:, None] == np.arange(len(names))
    masses = probabilities @ belongs
    first = np.argsort(-probabilities, axis=1, kind="stable")[:, :FIRST_CLASSES]
    return Ranking(
        label=first[:, 0],
        confidence=np.take_along_axis(probabilities, first[:, :1], axis=1)[:, 0],
        parent_names=names,
        parent_of_class=parent_of_class,
        parent_masses=masses,
        wider=(belongs.sum(axis=0) > 1)[masses.argmax(axis=1)],
        first=first,
        first_mass=np.take_along_axis(probabilities, first, axis=1).sum(axis=1),
    )


def choose(ranking: Ranking, thresholds: Mapping[str, float | None]) -> np.ndarray:
    """The decision for every row: the first stage whose threshold its probability reaches. A stage without one is skipped."""
    import numpy as np

    decisions = np.full(len(ranking.label), ABSTAINED, dtype=object)
    for stage in reversed(STAGES):
        threshold = thresholds[stage]
        if threshold is not None:
            probability, offered = ranking.offers(stage)
            decisions[offered & (probability >= threshold)] = stage
    return decisions


def answers(probabilities: np.ndarray, calibration: Calibration) -> list[Answer]:
    """The answer for every row of calibrated probabilities (rows x classes).

    A filed text's parent is that of its class; otherwise it is the likeliest parent, which need not hold the likeliest class.

    Raises:
        ValueError: the columns are not the classes of the calibration.
    """
    import numpy as np

    classes = calibration.classes
    if probabilities.ndim != 2 or probabilities.shape[1] != len(classes):
        raise ValueError(f"Probabilities of shape {probabilities.shape} are not rows x {len(classes)} classes.")
    if not len(probabilities):
        return []
    ranking = rank(probabilities, calibration.parents)
    decisions = choose(ranking, thresholds_of(calibration))
    parents = np.where(decisions == FILED, ranking.parent_of_class[ranking.label], ranking.parent)
    sets = prediction_sets(lac_scores(probabilities), calibration.conformal_quantiles)
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")
    return [
        Answer(
            decision=str(decisions[row]),
            label=classes[ranking.label[row]],
            confidence=float(ranking.confidence[row]),
            parent=ranking.parent_names[parents[row]],
            parent_confidence=min(1.0, float(ranking.parent_masses[row, parents[row]])),
            top3=tuple(classes[number] for number in ranking.first[row]),
            prediction_set=tuple(classes[number] for number in likeliest[row] if sets[row, number]),
        )
        for row in range(len(probabilities))
    ]


def thresholds_of(calibration: Calibration) -> dict[str, float | None]:
    """The threshold of every stage."""
    return {FILED: calibration.threshold, PARENT: calibration.parent_threshold, TOP_3: calibration.top3_threshold}


@dataclass(frozen=True)
class CertifiedStage:
    """A stage's certificate, None where there is none, and how many calibration rows the stages before left to it."""

    found: CertifiedThreshold | None
    rows_left: int

    @property
    def threshold(self) -> float | None:
        """The certified threshold."""
        return self.found.threshold if self.found else None


def certify_stages(
    ranking: Ranking, labels: np.ndarray, target: float = TARGET_PRECISION, certainty: float = CERTAINTY
) -> dict[str, CertifiedStage]:
    """Certify every stage on the calibration rows that the stages before left over: its promise is about such rows.

    Each promise holds with `certainty` on its own. That the rows depend on the threshold found before does not weaken it: the
    rows just below that threshold are those on which the stage before failed, so they hold more errors than such rows usually do.
    `coverage` is the share of all rows.
    """
    import numpy as np

    left = np.ones(len(labels), dtype=bool)
    stages = {}
    for stage in STAGES:
        probability, offered = ranking.offers(stage)
        rows = left & offered
        found = certified_threshold(probability[rows], ranking.hits(stage, labels)[rows], target, certainty)
        if found is not None:
            found = replace(found, coverage=found.rows / len(labels))
            left &= ~(offered & (probability >= found.threshold))
        stages[stage] = CertifiedStage(found, int(rows.sum()))
    return stages
