"""Scores of forced answers: confusion, precision, recall and F1 with intervals, a row a class, confused pairs. No confidences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.bootstrap import DRAWS, bootstrap

if TYPE_CHECKING:
    import numpy as np

CONFUSED_PAIRS = 15
EXAMPLES_PER_PAIR = 2
EXAMPLE_CHARACTERS = 140


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, class_count: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Rows (or weight) of every true (row) and predicted (column) class."""
    import numpy as np

    counts = np.bincount(labels * class_count + predicted, weights=weights, minlength=class_count**2)
    return counts.reshape(class_count, class_count).astype(float)


def classification_scores(
    labels: np.ndarray, predicted: np.ndarray, class_count: int, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Accuracy and macro and weighted precision, recall and F1, over the classes that have rows."""
    confusion = confusion_matrix(labels, predicted, class_count, weights)
    support = confusion.sum(axis=1)
    precision, recall, f1 = _class_scores(confusion)
    present = support > 0
    scores = {"accuracy": float(confusion.trace() / confusion.sum())}
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        scores[f"macro_{name}"] = float(values[present].mean())
        scores[f"weighted_{name}"] = float((values * support).sum() / support.sum())
    return scores


def bootstrap_intervals(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, class_count: int, seed: int, draws: int = DRAWS
) -> dict[str, list[float] | None]:
    """95 % intervals of every score, over bootstrap draws of whole groups (rows of a group stay together)."""
    return bootstrap(lambda weights: classification_scores(labels, predicted, class_count, weights), groups, seed, draws)


def class_rows(confusion: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Scores of every class; None for what cannot be known without test rows or predictions."""
    precision, recall, f1 = _class_scores(confusion)
    support, chosen = confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "label": name,
            "support": int(support[number]),
            "predicted": int(chosen[number]),
            "precision": float(precision[number]) if chosen[number] else None,
            "recall": float(recall[number]) if support[number] else None,
            "f1": float(f1[number]) if support[number] else None,
        }
        for number, name in enumerate(classes)
    ]


def confused_pairs(
    labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, texts: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The pairs of classes that are misread most often, with the texts that the classifier was surest of."""
    import numpy as np

    confusion = confusion_matrix(labels, predicted, len(classes))
    support = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    worst = sorted(zip(*np.nonzero(confusion), strict=True), key=lambda pair: (-confusion[pair], pair))[:CONFUSED_PAIRS]
    found = []
    for true, other in worst:
        rows = np.flatnonzero((labels == true) & (predicted == other))
        surest = rows[np.argsort(-confidence[rows], kind="stable")[:EXAMPLES_PER_PAIR]]
        found.append(
            {
                "true": classes[true],
                "predicted": classes[other],
                "rows": len(rows),
                "share": float(len(rows) / support[true]),
                "examples": [
                    {"text": texts[row][:EXAMPLE_CHARACTERS], "confidence": round(float(confidence[row]), 4)} for row in surest
                ],
            }
        )
    return found


def _class_scores(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of every class; 0 where a class was never predicted or has no rows."""
    right, chosen, support = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    return _ratio(right, chosen), _ratio(right, support), _ratio(2 * right, chosen + support)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shares; 0 of nothing."""
    import numpy as np

    return np.asarray(np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0))
