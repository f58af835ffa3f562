"""Calibration: temperature scaling, how far confidences can be trusted, and thresholds that hold a promised precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

TARGET_PRECISION = 0.9
CERTAINTY = 0.95
ECE_BINS = 15
FIRST_ROWS = 100
STEP_SHARE = 0.05
LOG_TEMPERATURE_RANGE = (-4.0, 4.0)


@dataclass(frozen=True)
class Calibration:
    """What turns a classifier's logits into decisions.

    `threshold` certifies the first class and `top3_threshold` that the right one is among the first three, compared with the
    sum of their probabilities; None when no threshold keeps the promise.
    """

    classes: tuple[str, ...]
    temperature: float
    threshold: float | None
    top3_threshold: float | None


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
        ValueError: the directory holds no evaluation.
    """
    path = evaluation_dir / "results.json"
    if not path.is_file():
        raise ValueError(f"{evaluation_dir} has no results.json: materialise the asset 'classifier_eval_report' first.")
    results = json.loads(path.read_text(encoding="utf-8"))
    threshold, top3 = results["certified"]["threshold"], results["certified_top3"]["threshold"]
    return Calibration(tuple(results["classes"]), results["temperature"], threshold, top3)


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


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equally wide bins, weighted by rows (Naeini et al. 2015)."""
    gaps = (item["rows"] * abs(item["confidence"] - item["accuracy"]) for item in reliability(confidence, correct, bins))
    return float(sum(gaps) / len(confidence))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Rows, mean confidence and accuracy of every bin that holds rows; bins are `(low, high]`."""
    import numpy as np

    numbers = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    filled = []
    for number in range(bins):
        inside = numbers == number
        if inside.any():
            measured = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
            filled.append({"low": number / bins, "high": (number + 1) / bins, "rows": int(inside.sum()), **measured})
    return filled


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the one-hot truth, summed over classes: 0 is best, 2 worst (Brier 1950)."""
    import numpy as np

    truth = np.zeros_like(probabilities)
    truth[np.arange(len(labels)), labels] = 1
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


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
    in an order fixed by the confidences, from the 100 most confident rows down in steps of 5 % of the rows, and the search
    ends at the first failure: fixed-sequence testing, which keeps the error at `1 - certainty` over all of them
    (Angelopoulos et al. 2021, "Learn then Test"). With fewer than 100 rows the only test is on all of them. The temperature was
    fitted on the same rows, one parameter that the promise ignores: the test part shows what holds.
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
    if total <= FIRST_ROWS:
        return [total] if total else []
    step = max(1, round(total * STEP_SHARE))
    return [*range(FIRST_ROWS, total, step), total]
