"""The gate of an exported classifier: is it still the checkpoint? Measured on the validation part, never on the test part."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.calibrate import softmax
from newsjuice_pipelines.classification.serving.onnx_classifier import OnnxClassifier
from newsjuice_pipelines.classification.serving.predict import Classifier, load_classifier

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DRAWS = 1_000
WARM_UP_TEXTS = 64


def judge_export(checkpoint: Path, exported: Path, rows: pd.DataFrame, limit_points: float, seed: int) -> dict[str, Any]:
    """Hold an exported classifier against its checkpoint in float32 on the CPU.

    Args:
        checkpoint: folder of the checkpoint.
        exported: folder with the exported model.
        rows: of the validation part (`text, label_id, group`).
        limit_points: percentage points of accuracy that may be lost.
        seed: of the bootstrap.

    Returns:
        `passed`, the `reason`, accuracies, agreement, differences and speeds.
    """
    texts, labels = rows["text"].tolist(), rows["label_id"].to_numpy()
    whole, whole_rate = _timed(load_classifier(checkpoint, "cpu"), texts)
    rounded, rounded_rate = _timed(OnnxClassifier(exported), texts)
    facts = compare_logits(whole, rounded, labels, rows["group"].to_numpy(), limit_points, seed)
    return {**facts, "texts_per_s_float32": whole_rate, "texts_per_s_int8": rounded_rate}


def compare_logits(
    whole: np.ndarray, rounded: np.ndarray, labels: np.ndarray, groups: np.ndarray, limit_points: float, seed: int
) -> dict[str, Any]:
    """The verdict on an export's logits (rows x classes) against the checkpoint's own on the same rows."""
    import numpy as np

    facts: dict[str, Any] = {"rows": len(labels), "limit_points": limit_points}
    if not len(labels):
        return {**facts, "passed": False, "reason": "the validation part has no rows, so that nothing could be compared"}
    if not np.isfinite(rounded).all():
        return {**facts, "passed": False, "reason": "the exported model gives numbers that are not finite"}
    before, after = whole.argmax(axis=1), rounded.argmax(axis=1)
    lost = (before == labels).astype(float) - (after == labels)
    differences = np.abs(softmax(whole) - softmax(rounded))
    confidence = np.abs(softmax(whole).max(axis=1) - softmax(rounded).max(axis=1))
    loss = 100 * float(lost.mean())
    low, high = _interval(lost, groups, seed)
    passed = loss <= limit_points
    needed = math.ceil(100 / limit_points) if limit_points else len(labels)
    few = (
        f"; a text more or less is {100 / len(labels):.1f} points here, so {needed:,} are needed" if len(labels) < needed else ""
    )
    return {
        **facts,
        "passed": passed,
        "reason": f"{'passed' if passed else 'failed'}: {loss:+.2f} points of accuracy lost on {len(labels):,} validation texts "
        f"(95 % interval {low:+.2f} to {high:+.2f}), at most {limit_points:g} allowed{few}",
        "accuracy_float32": float((before == labels).mean()),
        "accuracy_int8": float((after == labels).mean()),
        "loss_points": loss,
        "loss_interval_points": [low, high],
        "agreement": float((before == after).mean()),
        "largest_probability_difference": float(differences.max()),
        "confidence_difference_99": float(np.quantile(confidence, 0.99)),
    }


def _interval(lost: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval, in points, over bootstrap draws of whole groups."""
    import numpy as np

    _, place = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(place, weights=lost), np.bincount(place)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(len(sums), size=len(sums)) for _ in range(DRAWS))
    low, high = np.quantile([100 * sums[chosen].sum() / sizes[chosen].sum() for chosen in drawn], (0.025, 0.975))
    return float(low), float(high)


def _timed(classifier: Classifier, texts: list[str]) -> tuple[np.ndarray, float | None]:
    """Logits, and texts a second without the first call, which pays for start-up."""
    classifier.predict_logits(texts[:WARM_UP_TEXTS])
    started = time.perf_counter()
    logits = classifier.predict_logits(texts)
    elapsed = time.perf_counter() - started
    return logits, round(len(texts) / elapsed, 2) if texts else None
