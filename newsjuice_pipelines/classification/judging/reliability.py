"""How far confidences can be trusted: reliability, calibration error, Brier score, risk against coverage. Changes none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.bootstrap import INTERVAL
from newsjuice_pipelines.classification.judging.calibrate import precision_interval

if TYPE_CHECKING:
    import numpy as np

ECE_BINS = 15
MIN_BIN_ROWS = 10
CURVE_POINTS = 100
CALIBRATED_DRAWS = 200


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Rows, range and mean of the confidences, and accuracy with its 95 % interval, of bins that hold about equally many rows."""
    numbers = equal_mass_bins(confidence, bins)
    found = []
    for number in sorted(set(numbers.tolist())):
        inside = numbers == number
        rows, right = int(inside.sum()), int(correct[inside].sum())
        found.append(
            {
                "low": float(confidence[inside].min()),
                "high": float(confidence[inside].max()),
                "rows": rows,
                "confidence": float(confidence[inside].mean()),
                "accuracy": right / rows,
                "interval": list(precision_interval(right, rows)),
            }
        )
    return found


def equal_mass_bins(confidence: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """The number of every row's bin. Equal confidences share a bin; a bin takes at least ten rows where there are so many."""
    import numpy as np

    count = min(bins, max(1, len(confidence) // MIN_BIN_ROWS))
    places = np.searchsorted(np.sort(confidence), confidence, side="left")
    return np.asarray(places * count // max(1, len(confidence)))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over bins with equally many rows, weighted by rows (Nguyen & O'Connor 2015).

    Of few rows it is biased upwards, since chance alone opens a gap in every bin: `calibrated_ece` says by how much.
    """
    import numpy as np

    return weighted_ece(confidence, correct, bins)(np.ones(len(confidence)))


def weighted_ece(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> Callable[[np.ndarray], float]:
    """The calibration error as a function of the rows' weights; the bins are those of the unweighted rows."""
    import numpy as np

    numbers, gaps = equal_mass_bins(confidence, bins), confidence - correct

    def error(weights: np.ndarray) -> float:
        return float(np.abs(np.bincount(numbers, weights=weights * gaps)).sum() / weights.sum())

    return error


def ece_interval(error: float, drawn: np.ndarray) -> list[float]:
    """The 95 % interval of a calibration error from what bootstrap draws measured; it holds the error itself.

    Drawing rows opens gaps of its own, so that draws lie above the error just as the error lies above the truth. The upper end is
    therefore moved down by that bias; the lower one is reflected, which takes the bias off the error as well.
    """
    import numpy as np

    high = float(np.quantile(drawn, INTERVAL[1]))
    return [max(0.0, min(error, 2 * error - high)), max(error, high - (float(drawn.mean()) - error))]


def calibrated_ece(confidence: np.ndarray, seed: int, bins: int = ECE_BINS, draws: int = CALIBRATED_DRAWS) -> dict[str, float]:
    """The calibration error that chance alone gives a calibrated classifier with these confidences: mean and 95th percentile."""
    import numpy as np

    generator = np.random.default_rng(seed)
    numbers = equal_mass_bins(confidence, bins)
    errors = []
    for _ in range(draws):
        gaps = confidence - (generator.uniform(size=len(confidence)) < confidence)
        errors.append(np.abs(np.bincount(numbers, weights=gaps)).sum() / len(confidence))
    return {"mean": float(np.mean(errors)), "high": float(np.quantile(errors, 0.95))}


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the one-hot truth, summed over classes: 0 is best, 2 worst (Brier 1950)."""
    return float(brier_of_rows(probabilities, labels).mean())


def brier_of_rows(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared distance of every row to its one-hot truth."""
    import numpy as np

    truth = np.zeros_like(probabilities)
    truth[np.arange(len(labels)), labels] = 1
    return np.asarray(((probabilities - truth) ** 2).sum(axis=1))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The error among the most confident rows, for every share of rows answered (Geifman & El-Yaniv 2017).

    Returns:
        `aurc`: the area under that curve, 0 best; `aurc_of_perfect_order`: what the same errors would give if the classifier were
        always less sure of them than of the right rows; `aurc_of_no_order`: what a confidence that says nothing gives, the error
        over all rows; `curve`: up to 100 points with `coverage`, `error` and `confidence`.
    """
    import numpy as np

    total, wrong = len(confidence), int((~correct.astype(bool)).sum())
    order, ends = _ranked(confidence)
    errors = np.cumsum(1.0 - correct[order])[ends] / (ends + 1)
    chosen = np.unique(np.linspace(0, len(ends) - 1, CURVE_POINTS).round().astype(int))
    answered = np.arange(1, total + 1)
    return {
        "aurc": weighted_aurc(confidence, correct)(np.ones(total)),
        "aurc_of_perfect_order": float((np.maximum(0, answered - (total - wrong)) / answered).mean()),
        "aurc_of_no_order": wrong / total,
        "curve": [
            {
                "coverage": float((ends[place] + 1) / total),
                "error": float(errors[place]),
                "confidence": float(confidence[order[ends[place]]]),
            }
            for place in chosen
        ],
    }


def weighted_aurc(confidence: np.ndarray, correct: np.ndarray) -> Callable[[np.ndarray], float]:
    """The area under the risk-coverage curve as a function of the rows' weights; the order of equal confidences is irrelevant."""
    import numpy as np

    order, ends = _ranked(confidence)
    wrong = 1.0 - correct[order]

    def area(weights: np.ndarray) -> float:
        answered = np.cumsum(weights[order])[ends]
        errors = np.cumsum(weights[order] * wrong)[ends] / np.maximum(answered, 1e-12)
        return float((np.diff(answered, prepend=0.0) * errors).sum() / weights.sum())

    return area


def _ranked(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows from the most confident down, and the place of the last row of every run of equal confidences."""
    import numpy as np

    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    return order, np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
