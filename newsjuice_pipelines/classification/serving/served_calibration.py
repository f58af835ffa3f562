"""The calibration of an exported classifier: a certificate is for one model, and rounding its weights makes another one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from newsjuice_pipelines.classification.corpus.split import read_parents, read_part
from newsjuice_pipelines.classification.judging.answers import FILED, PARENT, TOP_3, certify_stages, rank
from newsjuice_pipelines.classification.judging.calibrate import Calibration, fit_temperature, softmax
from newsjuice_pipelines.classification.judging.conformal import class_quantiles, lac_scores
from newsjuice_pipelines.classification.serving.predict import Classifier
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError
from newsjuice_pipelines.runtime.reports import read_json, write_json

CALIBRATION = "calibration.json"


def calibrate_served(
    classifier: Classifier, split_dir: Path, target_precision: float, certainty: float, coverage: float
) -> Calibration:
    """Fit temperature, thresholds and prediction sets on the calibration part, as the evaluation does for the checkpoint.

    Args:
        classifier: the one that will answer.
        split_dir: folder of its split.
        target_precision: what every threshold promises.
        certainty: of each of these promises.
        coverage: what the prediction sets promise.
    """
    rows, parents = read_part(split_dir, "calibration"), read_parents(split_dir)
    logits, labels = classifier.predict_logits(rows["text"].tolist()), rows["label_id"].to_numpy()
    temperature = fit_temperature(logits, labels)
    single = ~rows["group"].duplicated().to_numpy()  # copies of a text are no further evidence
    probabilities, labels = softmax(logits[single], temperature), labels[single]
    stages = certify_stages(rank(probabilities, parents), labels, target_precision, certainty)
    return Calibration(
        classes=classifier.classes,
        parents=parents,
        temperature=temperature,
        threshold=stages[FILED].threshold,
        parent_threshold=stages[PARENT].threshold,
        top3_threshold=stages[TOP_3].threshold,
        conformal_quantiles=tuple(class_quantiles(lac_scores(probabilities), labels, coverage).tolist()),
    )


def write_served_calibration(calibration: Calibration, exported: Path) -> None:
    """Put the calibration beside the exported model."""
    write_json(exported / CALIBRATION, asdict(calibration))


def read_served_calibration(exported: Path) -> Calibration:
    """The calibration beside an exported model.

    Raises:
        CheckpointError: there is none.
    """
    try:
        content = read_json(exported / CALIBRATION)
        lists = {name: tuple(content[name]) for name in ("classes", "parents", "conformal_quantiles")}
        return Calibration(**{**content, **lists})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{exported} holds no usable {CALIBRATION}: export the classifier again.") from error
