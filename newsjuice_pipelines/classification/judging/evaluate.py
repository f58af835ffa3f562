"""Evaluating a classifier on the test part: scores with intervals, calibration, certified thresholds. Plots are `report.py`'s."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.judging.calibrate import (
    CERTAINTY,
    TARGET_PRECISION,
    brier_score,
    certified_threshold,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    precision_interval,
    reliability,
    softmax,
)
from newsjuice_pipelines.classification.judging.report import confusion_plot, evaluation_page, reliability_plot
from newsjuice_pipelines.classification.serving.predict import Classifier, load_classifier
from newsjuice_pipelines.classification.training.checkpoint import check_classes, read_description
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

PREDICTIONS = "predictions.parquet"
BOOTSTRAP_DRAWS = 1_000
CONFUSED_PAIRS = 15
WARM_UP_TEXTS = 64


def evaluate_classifier(checkpoint: Path, split_dir: Path, out: Path, seed: int = 42) -> dict[str, Any]:
    """Measure a checkpoint on the test part of a split.

    Writes `results.json`, `report.md`, `confusion.png`, `reliability.png` and `predictions.parquet` (`row_id, label_id,
    predicted, confidence`, for paired tests) to `out`; returns the headline numbers.

    Raises:
        CheckpointError: the checkpoint's classes are not those of the split.
    """
    classes = read_classes(split_dir)
    description = read_description(checkpoint)
    check_classes(description.classes, classes, "the split")
    classifier = load_classifier(checkpoint)
    calibration, test = read_part(split_dir, "calibration"), read_part(split_dir, "test")

    classifier.predict_logits(test["text"].tolist()[:WARM_UP_TEXTS])  # the first call pays for start-up
    started = time.perf_counter()
    logits = classifier.predict_logits(test["text"].tolist())
    elapsed = time.perf_counter() - started
    labels = test["label_id"].to_numpy()
    calibrated, after = _calibrate(classifier, calibration, logits, labels)
    predicted = after.argmax(axis=1)
    scores = classification_scores(labels, predicted, len(classes))
    intervals = bootstrap_intervals(labels, predicted, test["group"].to_numpy(), len(classes), seed)
    confusion = confusion_matrix(labels, predicted, len(classes))
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)

    results: dict[str, Any] = {
        "model": description.model,
        "classes": list(classes),
        "test_rows": len(test),
        "calibration_rows": len(calibration),
        "bootstrap_draws": BOOTSTRAP_DRAWS,
        "metrics": {name: {"value": value, "interval": intervals[name]} for name, value in scores.items()},
        "top3_accuracy": float(_top3_hits(after, labels).mean()),
        **calibrated,
        "per_class": _per_class(confusion, classes),
        "confused": _confused(confusion, classes),
        "confusion": confusion.astype(int).tolist(),
        "texts_per_s": round(len(test) / elapsed, 2),
        "device": _device(description.kind),
        "size_bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
    }
    write_json(out / "results.json", results)
    (out / "report.md").write_text(evaluation_page(results), encoding="utf-8")
    confusion_plot(shares.tolist(), classes, out / "confusion.png")
    reliability_plot(results["calibration"]["bins"]["before"], results["calibration"]["bins"]["after"], out / "reliability.png")
    _write_predictions(test, predicted, after.max(axis=1), out)
    accuracy = results["metrics"]["accuracy"]
    low, high = accuracy["interval"]
    said = (description.model, 100 * accuracy["value"], 100 * low, 100 * high, len(test))
    logger.info("%s: accuracy %.1f %% (95 %% interval %.1f to %.1f) on %d test texts", *said)
    return headline_facts(results)


def headline_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation that fit on one screen."""
    names = ("model", "test_rows", "calibration_rows", "top3_accuracy", "temperature", "texts_per_s", "device", "size_bytes")
    facts = {name: results[name] for name in names}
    for name, metric in results["metrics"].items():
        facts[name] = metric["value"]
    facts["accuracy_interval"] = results["metrics"]["accuracy"]["interval"]
    facts["macro_f1_interval"] = results["metrics"]["macro_f1"]["interval"]
    facts |= {"ece_before": results["calibration"]["ece"]["before"], "ece_after": results["calibration"]["ece"]["after"]}
    certified = results["certified"]
    facts |= {"threshold": certified["threshold"], "threshold_coverage": certified["test"]["coverage"]}
    facts["threshold_precision"] = certified["test"]["precision"]
    return facts


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
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, class_count: int, seed: int, draws: int = BOOTSTRAP_DRAWS
) -> dict[str, list[float]]:
    """Percentile 95 % intervals of every score, over bootstrap draws of whole groups (rows of a group stay together)."""
    import numpy as np

    _, group_of_row = np.unique(groups, return_inverse=True)
    group_count = int(group_of_row.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        weights = np.bincount(generator.integers(group_count, size=group_count), minlength=group_count)[group_of_row]
        drawn.append(classification_scores(labels, predicted, class_count, weights))
    return {name: [float(bound) for bound in np.quantile([draw[name] for draw in drawn], (0.025, 0.975))] for name in drawn[0]}


def _class_scores(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of every class; 0 where a class was never predicted or has no rows."""
    right = confusion.diagonal()
    precision = right / confusion.sum(axis=0).clip(min=1)
    recall = right / confusion.sum(axis=1).clip(min=1)
    f1 = 2 * right / (confusion.sum(axis=0) + confusion.sum(axis=1)).clip(min=1)
    return precision, recall, f1


def _calibrate(
    classifier: Classifier, calibration: pd.DataFrame, logits: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Fit temperature and thresholds on the calibration part, measure both on the test part; also its probabilities."""
    held_logits, held_labels = classifier.predict_logits(calibration["text"].tolist()), calibration["label_id"].to_numpy()
    temperature = fit_temperature(held_logits, held_labels)
    held = softmax(held_logits, temperature)
    before, after = softmax(logits), softmax(logits, temperature)
    correct = after.argmax(axis=1) == labels
    measured: dict[str, dict[str, Any]] = {"ece": {}, "brier": {}, "nll": {}, "bins": {}}
    for name, probabilities in (("before", before), ("after", after)):
        confidence = probabilities.max(axis=1)
        measured["ece"][name] = expected_calibration_error(confidence, correct)
        measured["brier"][name] = brier_score(probabilities, labels)
        measured["nll"][name] = negative_log_likelihood(probabilities, labels)
        measured["bins"][name] = reliability(confidence, correct)
    results = {
        "temperature": temperature,
        "calibration": measured,
        "certified": _certify(held.max(axis=1), held.argmax(axis=1) == held_labels, after.max(axis=1), correct),
        "certified_top3": _certify(top3_mass(held), _top3_hits(held, held_labels), top3_mass(after), _top3_hits(after, labels)),
    }
    return results, after


def _certify(held: np.ndarray, held_correct: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """A threshold certified on the calibration part and what the test part shows at it; None where there is none."""
    found = certified_threshold(held, held_correct)
    promise = {"target_precision": TARGET_PRECISION, "certainty": CERTAINTY, "calibration_rows": len(held)}
    if found is None:
        unknown = dict.fromkeys(("threshold", "rows", "precision", "precision_low", "coverage"))
        return {**promise, **unknown, "test": dict.fromkeys(("rows", "coverage", "precision", "precision_interval"))}
    reached = confidence >= found.threshold
    rows, right = int(reached.sum()), int(correct[reached].sum())
    test = {
        "rows": rows,
        "coverage": rows / len(confidence),
        "precision": right / rows if rows else None,
        "precision_interval": list(precision_interval(right, rows)) if rows else None,
    }
    return {**promise, **asdict(found), "test": test}


def top3_mass(probabilities: np.ndarray) -> np.ndarray:
    """The summed probability of the three most likely classes."""
    import numpy as np

    return np.asarray(np.sort(probabilities, axis=1)[:, -3:].sum(axis=1))


def _top3_hits(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the true class is among the three most likely ones."""
    import numpy as np

    first_three = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    return np.asarray((first_three == labels[:, None]).any(axis=1))


def _per_class(confusion: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
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


def _confused(confusion: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The pairs of classes that are misread most often."""
    support = confusion.sum(axis=1)
    size = range(len(classes))
    wrong = [(float(confusion[row, column]), row, column) for row in size for column in size if row != column]
    wrong = sorted((entry for entry in wrong if entry[0]), key=lambda entry: (-entry[0], entry[1], entry[2]))[:CONFUSED_PAIRS]
    return [
        {"true": classes[row], "predicted": classes[column], "rows": int(count), "share": float(count / support[row])}
        for count, row, column in wrong
    ]


def _device(kind: str) -> str:
    """What predictions ran on."""
    if kind == "linear":
        return "cpu"
    from newsjuice_pipelines.runtime.devices import best_device

    best = best_device()
    return f"{best.type}: {best.name}"


def _write_predictions(test: pd.DataFrame, predicted: np.ndarray, confidence: np.ndarray, out: Path) -> None:
    """The test predictions, row by row."""
    test[["row_id", "label_id", "group"]].assign(predicted=predicted, confidence=confidence).to_parquet(
        out / PREDICTIONS, index=False
    )
