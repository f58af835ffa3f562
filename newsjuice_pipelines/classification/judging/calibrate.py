"""Calibration: temperature scaling and thresholds that keep a promise. How far confidences can be trusted: `reliability.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TARGET_PRECISION = 0.9
CERTAINTY = 0.95
FIRST_ROWS = (100, 200)
FIRST_SHARE = 1 / 15
STEP_SHARE = 0.01
LOG_TEMPERATURE_RANGE = (-4.0, 4.0)


@dataclass(frozen=True)
class Calibration:
    """What turns a classifier's logits into answers.

    `parents` and `conformal_quantiles` are in the order of `classes`. `threshold` is a confidence, `parent_threshold` the summed
    probability of a parent's classes, `top3_threshold` that of the three likeliest classes; None when no threshold keeps the
    promise, and then that answer is never given.
    """

    classes: tuple[str, ...]
    parents: tuple[str, ...]
    temperature: float
    threshold: float | None
    parent_threshold: float | None
    top3_threshold: float | None
    conformal_quantiles: tuple[float, ...]


@dataclass(frozen=True)
class CertifiedThreshold:
    """The lowest confidence that keeps the promise, with the rows at or above it on the calibration part."""

    threshold: float
    rows: int
    precision: float
    precision_low: float
    coverage: float


def read_calibration(evaluation_dir: Path) -> Calibration:
    """The calibration in a written evaluation.

    Raises:
        ValueError: the directory holds no evaluation, or one without all parts of a calibration.
    """
    path = evaluation_dir / "results.json"
    if not path.is_file():
        raise ValueError(f"{evaluation_dir} has no results.json: materialise the asset 'classifier_eval_report' first.")
    results = json.loads(path.read_text(encoding="utf-8"))
    try:
        return Calibration(
            classes=tuple(results["classes"]),
            parents=tuple(results["parents"]),
            temperature=results["temperature"],
            threshold=results["certified"]["threshold"],
            parent_threshold=results["certified_parent"]["threshold"],
            top3_threshold=results["certified_top3"]["threshold"],
            conformal_quantiles=tuple(results["conformal"]["quantiles"]),
        )
    except KeyError as missing:
        raise ValueError(f"{path} has no {missing}: materialise the asset 'classifier_eval_report' again.") from missing


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits (rows x classes) divided by a temperature."""
    import numpy as np

    scaled = np.asarray(logits, dtype=np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True)) if len(scaled) else scaled
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv 1706.04599)."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(softmax(logits, float(np.exp(log_temperature))), labels)

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_RANGE, method="bounded").x))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes, in nats."""
    import numpy as np

    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def precision_interval(correct: int, rows: int, certainty: float = CERTAINTY) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share."""
    from scipy.stats import beta

    tail = (1 - certainty) / 2
    low = float(beta.ppf(tail, correct, rows - correct + 1)) if correct else 0.0
    high = float(beta.ppf(1 - tail, correct + 1, rows - correct)) if correct < rows else 1.0
    return low, high


def precision_lower_bound(correct: int, rows: int, certainty: float = CERTAINTY) -> float:
    """One-sided Clopper-Pearson lower bound of a share."""
    from scipy.stats import beta

    return float(beta.ppf(1 - certainty, correct, rows - correct + 1)) if correct else 0.0


def certified_threshold(
    confidence: np.ndarray, correct: np.ndarray, target: float = TARGET_PRECISION, certainty: float = CERTAINTY
) -> CertifiedThreshold | None:
    """The lowest confidence at and above which precision is at least `target`, with `certainty`; None when there is none.

    Many thresholds are tried on the same rows, so testing each at `certainty` alone would promise too much. They are tested
    in an order fixed by the confidences, from the most confident rows (a fifteenth of all, but 100 to 200) down in steps of
    1 % of the rows, and the search ends at the first failure: fixed-sequence testing, which keeps the error at `1 - certainty`
    over all of them (Angelopoulos et al. 2021, "Learn then Test"). Where it begins trades certificates lost to one unlucky test
    against thresholds never tried. With at most 100 rows the only test is on all of them. The temperature was fitted on the same
    rows, one parameter that the promise ignores: the test part shows what holds.
    """
    import numpy as np

    total = len(confidence)
    order = np.argsort(-confidence, kind="stable")
    ranked, hits = confidence[order], np.cumsum(correct[order])
    best: CertifiedThreshold | None = None
    for rows in _prefixes(total):
        threshold = float(ranked[rows - 1])
        covered = int(np.searchsorted(-ranked, -threshold, side="right"))  # equal confidences belong together
        right = int(hits[covered - 1])
        bound = precision_lower_bound(right, covered, certainty)
        if bound < target:
            break
        best = CertifiedThreshold(threshold, covered, right / covered, bound, covered / total)
    return best


def _prefixes(total: int) -> Sequence[int]:
    """How many of the most confident rows each test takes."""
    fewest, most = FIRST_ROWS
    if total <= fewest:
        return [total] if total else []
    first = min(most, max(fewest, round(total * FIRST_SHARE)))
    return [*range(first, total, max(1, round(total * STEP_SHARE))), total]
