"""Conformal prediction sets with a promised coverage of every class. Which single answer is given is decided in `answers.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.calibrate import precision_interval

if TYPE_CHECKING:
    import numpy as np

COVERAGE = 0.9


def lac_scores(probabilities: np.ndarray) -> np.ndarray:
    """How badly every class fits: one minus its probability (Sadinle, Lei & Wasserman 2019). Gives the smallest sets."""
    import numpy as np

    return np.asarray(1.0 - probabilities)


def aps_scores(probabilities: np.ndarray) -> np.ndarray:
    """The probability of a class and of all likelier ones (Romano, Sesia & Candès 2020, not randomised). Adapts to the row."""
    import numpy as np

    order = np.argsort(-probabilities, axis=1, kind="stable")
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1), axis=1)
    return np.asarray(np.minimum(scores, 1.0))  # rounding may carry a sum above one


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """The score that so large a share of new rows does not exceed; 1, which is every score, of too few rows to promise it.

    It is the `ceil((n + 1) * coverage)`-th smallest of n scores (Vovk, Gammerman & Shafer 2005): the row to come is counted too.
    """
    import numpy as np

    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def common_quantile(scores: np.ndarray, labels: np.ndarray, coverage: float) -> np.ndarray:
    """The same quantile for every class: the promise holds over all rows, and weak classes pay for it."""
    import numpy as np

    return np.full(scores.shape[1], conformal_quantile(scores[np.arange(len(labels)), labels], coverage))


def class_quantiles(scores: np.ndarray, labels: np.ndarray, coverage: float) -> np.ndarray:
    """The quantile of every class over its own calibration rows: the promise holds in each class (Vovk 2012, "Mondrian")."""
    import numpy as np

    return np.array([conformal_quantile(scores[labels == number, number], coverage) for number in range(scores.shape[1])])


def prediction_sets(scores: np.ndarray, quantiles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Which classes are in the set of every row (rows x classes). A set may be empty: nothing fits well enough."""
    import numpy as np

    return np.asarray(scores <= np.asarray(quantiles))


def measure_sets(sets: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What sets hold on labelled rows: coverage with its interval, sizes, and the coverage of every class (None without rows)."""
    import numpy as np

    held = sets[np.arange(len(labels)), labels]
    sizes = sets.sum(axis=1)
    per_class = [float(held[labels == number].mean()) if (labels == number).any() else None for number in range(sets.shape[1])]
    known = [share for share in per_class if share is not None]
    return {
        "coverage": float(held.mean()),
        "coverage_interval": list(precision_interval(int(held.sum()), len(held))),
        "mean_size": float(sizes.mean()),
        "share_of_one": float((sizes == 1).mean()),
        "share_empty": float((sizes == 0).mean()),
        "lowest_class_coverage": min(known),
        "class_coverage": per_class,
    }


def conformal_results(
    held: np.ndarray, held_labels: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, coverage: float = COVERAGE
) -> dict[str, Any]:
    """Fit sets on calibration rows (`held`) and measure them on test rows; `quantiles` are those of the sets that are served.

    Served are LAC sets with a quantile a class. `methods` compares them with one common quantile, and with APS.
    """
    import numpy as np

    kinds = {
        "LAC, a quantile a class": (lac_scores, class_quantiles),
        "LAC, one quantile": (lac_scores, common_quantile),
        "APS, a quantile a class": (aps_scores, class_quantiles),
    }
    methods: dict[str, dict[str, Any]] = {}
    served: list[float] = []
    for name, (scores_of, quantiles_of) in kinds.items():
        quantiles = quantiles_of(scores_of(held), held_labels, coverage)
        methods[name] = measure_sets(prediction_sets(scores_of(probabilities), quantiles), labels)
        served = served or [float(quantile) for quantile in quantiles]
    counts = np.bincount(held_labels, minlength=held.shape[1])
    too_few = [number for number, rows in enumerate(counts) if math.ceil((rows + 1) * coverage - 1e-9) > rows]
    return {"target_coverage": coverage, "quantiles": served, "methods": methods, "classes_with_too_few_rows": too_few}
