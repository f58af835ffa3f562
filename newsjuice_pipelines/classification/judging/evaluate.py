"""Evaluating a classifier: read the test part once, score the forced answers, calibrate, certify, and measure what is then said.

How each number is computed is in `scores.py`, `reliability.py`, `answers.py` and `conformal.py`; pages and plots are
`evaluation_page.py`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.split import read_classes, read_parents, read_part
from newsjuice_pipelines.classification.judging import answers
from newsjuice_pipelines.classification.judging.bootstrap import DRAWS, bootstrap_values, percentile_interval
from newsjuice_pipelines.classification.judging.calibrate import (
    fit_temperature,
    negative_log_likelihood,
    precision_interval,
    softmax,
)
from newsjuice_pipelines.classification.judging.conformal import conformal_results
from newsjuice_pipelines.classification.judging.evaluation_page import write_evaluation_page
from newsjuice_pipelines.classification.judging.reliability import (
    brier_score,
    calibrated_ece,
    ece_interval,
    expected_calibration_error,
    reliability,
    risk_coverage,
    weighted_aurc,
    weighted_ece,
)
from newsjuice_pipelines.classification.judging.scores import (
    class_rows,
    classification_scores,
    confused_pairs,
    confusion_matrix,
)
from newsjuice_pipelines.classification.serving.predict import Classifier, load_classifier
from newsjuice_pipelines.classification.training.checkpoint import CheckpointDescription, check_classes, read_description
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger("newsjuice.classification")

PREDICTIONS = "predictions.parquet"
CERTIFICATES = {answers.FILED: "certified", answers.PARENT: "certified_parent", answers.TOP_3: "certified_top3"}
"""Where the results keep the certificate of every stage."""


class TestPartReadError(ValueError):
    """The test part was read before, and reading it again was not asked for."""

    __test__ = False  # no test class, whatever its name starts with


@dataclass(frozen=True)
class EvaluationConfig:
    """What an evaluation promises, and whether it may read the test part again."""

    read_test_again: bool = False
    """Judge this model on a test part that judged another checkpoint of it before. The report then says how often it was read."""
    target_precision: float = 0.9
    """Share of right answers that every certified threshold promises."""
    certainty: float = 0.95
    """How sure each of these promises is."""
    coverage: float = 0.9
    """Share of the texts of every class whose prediction set promises to hold the right class."""
    seed: int = 42
    """Seed of the bootstrap draws."""

    def __post_init__(self) -> None:
        for name in ("target_precision", "certainty", "coverage"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1, such as 0.9.")


@dataclass(frozen=True)
class Judged:
    """Labelled rows of one part with their calibrated probabilities, and what could be answered for each."""

    rows: pd.DataFrame
    labels: np.ndarray
    probabilities: np.ndarray
    ranking: answers.Ranking

    @property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the right one."""
        return self.ranking.hits(answers.FILED, self.labels)


def evaluate_classifier(
    checkpoint: Path,
    split_dir: Path,
    out: Path,
    config: EvaluationConfig | None = None,
    *,
    earlier_readings: int = 0,
) -> dict[str, Any]:
    """Measure a checkpoint on the test part of a split.

    Temperature, thresholds and prediction sets are fitted on the calibration part; the accuracy on the validation part, which
    the leaderboard chooses by, is measured too. Writes `results.json`, `report.md`, `confusion.png`, `reliability.png`,
    `risk_coverage.png` and `predictions.parquet` (`row_id, label_id, group, predicted, confidence, decision`, for paired tests)
    to `out`; returns the headline numbers.

    Args:
        checkpoint: a directory that `train_classifier` wrote.
        split_dir: the split that it was trained on.
        out: an existing directory.
        config: what to promise; the defaults promise 90 % with 95 % certainty.
        earlier_readings: how often other checkpoints of this model were judged on this test part.

    Raises:
        TestPartReadError: there were earlier readings, and `read_test_again` is off.
        CheckpointError: the checkpoint's classes are not those of the split.
    """
    config = config or EvaluationConfig()
    description, classes = read_description(checkpoint), read_classes(split_dir)
    check_test_part(description.model, earlier_readings, config)
    check_classes(description.classes, classes, "the split")
    parents = read_parents(split_dir)
    classifier = load_classifier(checkpoint)

    calibration, held_logits = _predicted(classifier, split_dir, "calibration")
    held_labels = calibration["label_id"].to_numpy()
    temperature = fit_temperature(held_logits, held_labels)
    held = _judged(calibration, softmax(held_logits, temperature), parents)
    rows = read_part(split_dir, "test")
    texts = rows["text"].tolist()
    started = time.perf_counter()  # the calibration part has paid for start-up
    logits = classifier.predict_logits(texts)
    elapsed = time.perf_counter() - started
    test = _judged(rows, softmax(logits, temperature), parents)
    # Copies of a text are no further evidence: certificates and sets are fitted on one row a group.
    single = ~held.rows["group"].duplicated().to_numpy()
    evidence = _judged(held.rows[single], held.probabilities[single], parents)
    stages = answers.certify_stages(evidence.ranking, evidence.labels, config.target_precision, config.certainty)
    decisions = answers.choose(test.ranking, {stage: found.threshold for stage, found in stages.items()})

    metrics, statistics = _scores(test, decisions, len(classes), config.seed)
    confusion = confusion_matrix(test.labels, test.ranking.label, len(classes))
    conformal = conformal_results(evidence.probabilities, evidence.labels, test.probabilities, test.labels, config.coverage)
    results: dict[str, Any] = {
        **_identity(description, config, earlier_readings),
        "classes": list(classes),
        "parents": list(parents),
        "test_rows": len(rows),
        "calibration_rows": len(calibration),
        "calibration_groups": len(evidence.rows),
        "bootstrap_draws": DRAWS,
        "validation": _validation(classifier, split_dir),
        "metrics": metrics,
        "top3_accuracy": float(test.ranking.hits(answers.TOP_3, test.labels).mean()),
        "parent_accuracy": float(test.ranking.hits(answers.PARENT, test.labels).mean()),
        "temperature": temperature,
        "calibration": _calibration_quality(softmax(logits), test, statistics, config.seed),
        "risk_coverage": {**risk_coverage(test.ranking.confidence, test.correct), "aurc_interval": statistics["aurc"]},
        **{CERTIFICATES[stage]: _certificate(stage, found, test, decisions, config) for stage, found in stages.items()},
        "cascade": _cascade(test, decisions, statistics),
        "conformal": {**conformal, "classes_with_too_few_rows": [classes[i] for i in conformal["classes_with_too_few_rows"]]},
        "per_class": _per_class(confusion, classes, parents, test, decisions, conformal),
        "confused": confused_pairs(test.labels, test.ranking.label, test.ranking.confidence, texts, classes),
        "confusion": confusion.astype(int).tolist(),
        "texts_per_s": round(len(rows) / elapsed, 2),
        "device": _device(description.kind),
        "size_bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
    }
    write_json(out / "results.json", results)
    write_evaluation_page(results, out)
    predictions = rows[["row_id", "label_id", "group"]].assign(predicted=test.ranking.label)
    predictions.assign(confidence=test.ranking.confidence, decision=decisions.astype(str)).to_parquet(
        out / PREDICTIONS, index=False
    )
    _say(results)
    return headline_facts(results)


def check_test_part(model: str, earlier_readings: int, config: EvaluationConfig) -> None:
    """Refuse a second reading of the test part that was not asked for.

    Raises:
        TestPartReadError: says what to do.
    """
    if earlier_readings < 0:
        raise ValueError(f"earlier_readings is {earlier_readings}; it must be 0 or more.")
    if earlier_readings and not config.read_test_again:
        raise TestPartReadError(
            f"The test part already judged {earlier_readings} other checkpoint{'s' if earlier_readings > 1 else ''} of {model}. "
            "Choosing among checkpoints by what it says makes its scores too good. Compare checkpoints by their validation loss, "
            "or make a split with another seed; to read it all the same, set read_test_again: the report will say so."
        )


def headline_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation that fit on one screen."""
    names = ("model", "recipe", "selected_on", "test_readings", "test_rows", "calibration_rows", "top3_accuracy")
    facts = {name: results[name] for name in (*names, "temperature", "texts_per_s", "device", "size_bytes")}
    for name, metric in results["metrics"].items():
        facts[name] = metric["value"]
    facts["accuracy_interval"] = results["metrics"]["accuracy"]["interval"]
    facts["macro_f1_interval"] = results["metrics"]["macro_f1"]["interval"]
    facts["validation_accuracy"] = results["validation"]["accuracy"]
    facts |= {"ece_before": results["calibration"]["ece"]["before"], "ece_after": results["calibration"]["ece"]["after"]}
    facts["aurc"] = results["risk_coverage"]["aurc"]
    certified = results["certified"]
    facts |= {"threshold": certified["threshold"], "threshold_coverage": certified["test"]["coverage"]}
    facts["threshold_precision"] = certified["test"]["precision"]
    facts["certificates"] = {
        stage: {
            "threshold": results[key]["threshold"],
            "target_precision": results[key]["target_precision"],
            "precision_interval": results[key]["test"]["precision_interval"],
        }
        for stage, key in CERTIFICATES.items()
    }
    for name, answer in results["cascade"].items():
        facts[f"share_{name.replace('-', '_')}"] = answer["share"]["value"]
    served = next(iter(results["conformal"]["methods"].values()))
    facts |= {"set_coverage": served["coverage"], "mean_set_size": served["mean_size"]}
    return facts


def _identity(description: CheckpointDescription, config: EvaluationConfig, earlier_readings: int) -> dict[str, Any]:
    """Which checkpoint was judged, under which conditions."""
    return {
        "model": description.model,
        "recipe": getattr(description, "recipe", None) or "ours",
        "selected_on": getattr(description, "selected_on", None) or "validation",
        "test_readings": earlier_readings + 1,
        "config": asdict(config),
    }


def _predicted(classifier: Classifier, split_dir: Path, part: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of a part and their logits."""
    rows = read_part(split_dir, part)
    return rows, classifier.predict_logits(rows["text"].tolist())


def _judged(rows: pd.DataFrame, probabilities: np.ndarray, parents: tuple[str, ...]) -> Judged:
    return Judged(rows, rows["label_id"].to_numpy(), probabilities, answers.rank(probabilities, parents))


def _validation(classifier: Classifier, split_dir: Path) -> dict[str, Any]:
    """Accuracy on the validation part, by which the leaderboard chooses."""
    rows, logits = _predicted(classifier, split_dir, "validation")
    right = int((logits.argmax(axis=1) == rows["label_id"].to_numpy()).sum())
    return {"rows": len(rows), "accuracy": right / len(rows), "interval": list(precision_interval(right, len(rows)))}


def _scores(
    test: Judged, decisions: np.ndarray, class_count: int, seed: int
) -> tuple[dict[str, Any], dict[str, list[float] | None]]:
    """The scores of the forced answers with their intervals, and the intervals of everything else, from the same draws."""
    import numpy as np

    predicted, groups = test.ranking.label, test.rows["group"].to_numpy()
    ece, aurc = weighted_ece(test.ranking.confidence, test.correct), weighted_aurc(test.ranking.confidence, test.correct)
    given = {name: decisions == name for name in answers.DECISIONS}
    right = {name: given[name] & test.ranking.hits(name, test.labels) for name in answers.STAGES}

    def statistic(weights: np.ndarray) -> dict[str, float]:
        measured = classification_scores(test.labels, predicted, class_count, weights)
        measured |= {"ece": ece(weights), "aurc": aurc(weights)}
        total = weights.sum()
        for name, rows in given.items():
            answered = weights[rows].sum()
            measured[f"share of {name}"] = float(answered / total)
            if name in right:
                measured[f"precision of {name}"] = float(weights[right[name]].sum() / answered) if answered else float("nan")
        return measured

    drawn = bootstrap_values(statistic, groups, seed)
    intervals = {name: percentile_interval(values) for name, values in drawn.items()}
    intervals["ece"] = ece_interval(ece(np.ones(len(groups))), drawn["ece"])
    values = classification_scores(test.labels, predicted, class_count)
    return {name: {"value": value, "interval": intervals[name]} for name, value in values.items()}, intervals


def _calibration_quality(
    before: np.ndarray, test: Judged, statistics: Mapping[str, list[float] | None], seed: int
) -> dict[str, Any]:
    """Calibration error, Brier score and likelihood as trained and calibrated, and what the error of a perfect one would be."""
    measured: dict[str, Any] = {"ece": {}, "brier": {}, "nll": {}, "bins": {}}
    for name, probabilities in (("before", before), ("after", test.probabilities)):
        confidence = probabilities.max(axis=1)
        measured["ece"][name] = expected_calibration_error(confidence, test.correct)
        measured["brier"][name] = brier_score(probabilities, test.labels)
        measured["nll"][name] = negative_log_likelihood(probabilities, test.labels)
        measured["bins"][name] = reliability(confidence, test.correct)
    measured["ece"]["interval"] = statistics["ece"]
    measured["ece"]["of_a_calibrated_one"] = calibrated_ece(test.ranking.confidence, seed)
    return measured


def _certificate(
    stage: str, certified: answers.CertifiedStage, test: Judged, decisions: np.ndarray, config: EvaluationConfig
) -> dict[str, Any]:
    """A stage's threshold as certified on the calibration part, and what the test part shows at it; None where there is none."""
    promise = {
        "target_precision": config.target_precision,
        "certainty": config.certainty,
        "calibration_rows": certified.rows_left,
    }
    if certified.found is None:
        unknown = dict.fromkeys(("threshold", "rows", "precision", "precision_low", "coverage"))
        return {**promise, **unknown, "test": dict.fromkeys(("rows", "coverage", "precision", "precision_interval"))}
    given = decisions == stage
    rows, right = int(given.sum()), int(test.ranking.hits(stage, test.labels)[given].sum())
    shown = {
        "rows": rows,
        "coverage": rows / len(decisions),
        "precision": right / rows if rows else None,
        "precision_interval": list(precision_interval(right, rows)) if rows else None,
    }
    return {**promise, **asdict(certified.found), "test": shown}


def _cascade(test: Judged, decisions: np.ndarray, statistics: Mapping[str, list[float] | None]) -> dict[str, Any]:
    """What is said about the test texts: rows, share and precision of every decision."""
    found: dict[str, Any] = {}
    for name in answers.DECISIONS:
        given = decisions == name
        rows = int(given.sum())
        share = {"value": rows / len(given), "interval": _wider(statistics[f"share of {name}"], rows, len(given))}
        found[name] = {"rows": rows, "share": share}
        if name in answers.STAGES:
            right = int(test.ranking.hits(name, test.labels)[given].sum())
            bounds = _wider(statistics[f"precision of {name}"], right, rows) if rows else None
            found[name]["precision"] = {"value": right / rows if rows else None, "interval": bounds}
    return found


def _wider(drawn: list[float] | None, part: int, whole: int) -> list[float]:
    """The bootstrap and the exact binomial interval in one: the first knows of duplicates, the second of events not yet seen."""
    low, high = precision_interval(part, whole)
    return [low, high] if drawn is None else [min(low, drawn[0]), max(high, drawn[1])]


def _per_class(
    confusion: np.ndarray,
    classes: tuple[str, ...],
    parents: tuple[str, ...],
    test: Judged,
    decisions: np.ndarray,
    conformal: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Scores of every class, what was filed under it, and how often its texts' prediction sets hold it."""
    held = next(iter(conformal["methods"].values()))["class_coverage"]
    rows = class_rows(confusion, classes)
    for number, row in enumerate(rows):
        filed = (decisions == answers.FILED) & (test.ranking.label == number)
        row["parent"] = parents[number]
        row["filed"] = int(filed.sum())
        row["filed_precision"] = float(test.correct[filed].mean()) if filed.any() else None
        row["set_coverage"] = held[number]
    return rows


def _device(kind: str) -> str:
    """What predictions ran on."""
    if kind == "linear":
        return "cpu"
    from newsjuice_pipelines.runtime.devices import best_device

    best = best_device()
    return f"{best.type}: {best.name}"


def _say(results: Mapping[str, Any]) -> None:
    """One line for the log."""
    accuracy, filed = results["metrics"]["accuracy"], results["cascade"][answers.FILED]["share"]["value"]
    low, high = accuracy["interval"]
    said = (results["model"], 100 * accuracy["value"], 100 * low, 100 * high, results["test_rows"], 100 * filed)
    logger.info("%s: accuracy %.1f %% (95 %% interval %.1f to %.1f) on %d test texts; %.1f %% filed at the certificate", *said)
