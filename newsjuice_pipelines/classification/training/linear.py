"""The linear classifier: TF-IDF of words and characters with one-vs-rest linear SVMs, stored without pickles.

Margins of separate machines are no logits: a temperature alone leaves them badly calibrated. A sigmoid, fitted on the validation
part, makes each the log of a probability first (Platt 1999); the temperature of the evaluation follows, as for any model here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.training.checkpoint import CheckpointError
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEATURES = "features.json"
WEIGHTS = "model.safetensors"
UNSCALED = (1.0, 0.0)  # slope and offset of the sigmoid where no row can fit them
NEVER = -10.0  # margin of a class without training rows; margins of real ones lie between -3 and 3
VECTORISERS: Mapping[str, Mapping[str, Any]] = {
    "word": {"analyzer": "word", "ngram_range": (1, 2), "max_features": 60_000},
    "char": {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": 120_000},
}


def train_linear(
    train: pd.DataFrame,
    validation: pd.DataFrame,
    class_count: int,
    inverse_regularisation: float,
    seed: int,
    out: Path,
    *,
    balanced: bool = False,
) -> dict[str, Any]:
    """Fit the linear classifier on `text` and `label_id`; writes the features' vocabularies and the weights to `out`.

    A class without rows gets the margin of one that never applies.

    Args:
        train: rows of at least two classes.
        validation: rows that the sigmoid of the margins is fitted on; without any it stays unscaled.
        class_count: number of classes, which the label ids are below.
        inverse_regularisation: larger fits the rows more closely.
        seed: order in which the solver looks at rows.
        out: an existing folder.
        balanced: whether a class weighs one over its rows.

    Raises:
        ValueError: the texts hold no words.
    """
    import numpy as np
    from safetensors.numpy import save_file
    from scipy.sparse import hstack
    from sklearn.svm import LinearSVC

    vectorisers = {name: _vectoriser(name) for name in VECTORISERS}
    try:
        features = hstack([vectorisers[name].fit_transform(train["text"]) for name in VECTORISERS]).tocsr()
    except ValueError as error:
        raise ValueError(f"The {len(train)} training texts hold no words ({error}): check 'huffpost_articles'.") from error
    model = LinearSVC(C=inverse_regularisation, random_state=seed, class_weight="balanced" if balanced else None)
    model.fit(features, train["label_id"])
    found, offsets = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
        found, offsets = np.vstack([-found, found]), np.concatenate([-offsets, offsets])
    coefficients = np.zeros((class_count, features.shape[1]), dtype=np.float32)
    intercepts = np.full(class_count, NEVER, dtype=np.float32)
    coefficients[model.classes_], intercepts[model.classes_] = found, offsets
    vocabularies = {
        name: sorted(vectoriser.vocabulary_, key=vectoriser.vocabulary_.__getitem__) for name, vectoriser in vectorisers.items()
    }
    write_json(out / FEATURES, vocabularies)
    arrays = {f"idf_{name}": np.asarray(vectoriser.idf_, dtype=np.float32) for name, vectoriser in vectorisers.items()}
    arrays |= {"coefficients": coefficients, "intercepts": intercepts}
    scale = UNSCALED
    if len(validation):
        held = hstack([vectorisers[name].transform(validation["text"]) for name in VECTORISERS]).tocsr()
        scale = _fitted_sigmoid(
            np.asarray(held @ coefficients.T + intercepts, dtype=np.float64), validation["label_id"].to_numpy()
        )
    arrays["sigmoid"] = np.array(scale, dtype=np.float32)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / WEIGHTS)
    return {"features": int(features.shape[1]), "parameters": int(coefficients.size + intercepts.size)}


def _fitted_sigmoid(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the sigmoid of all margins (rows x classes) whose probabilities, shared out, suit the labels best."""
    import numpy as np
    from scipy.optimize import minimize

    from newsjuice_pipelines.classification.judging.calibrate import negative_log_likelihood, softmax

    def loss(scale: np.ndarray) -> float:
        return negative_log_likelihood(softmax(_log_sigmoid(margins, float(np.exp(scale[0])), float(scale[1]))), labels)

    log_slope, offset = minimize(loss, (np.log(5.0), 0.0), method="Nelder-Mead", options={"maxiter": 200}).x
    return float(np.exp(log_slope)), float(offset)


def _log_sigmoid(margins: np.ndarray, slope: float, offset: float) -> np.ndarray:
    import numpy as np

    return np.asarray(-np.logaddexp(0.0, -(slope * margins + offset)))


class LinearClassifier:
    """A stored linear classifier; its logits are the logarithms of one-against-the-rest probabilities."""

    def __init__(self, directory: Path, classes: tuple[str, ...]) -> None:
        """Load from `directory`.

        Raises:
            CheckpointError: the stored arrays do not fit together.
        """
        from safetensors.numpy import load_file

        vocabularies: dict[str, list[str]] = json.loads((directory / FEATURES).read_text(encoding="utf-8"))
        arrays = load_file(directory / WEIGHTS)
        width = sum(len(vocabularies[name]) for name in VECTORISERS)
        shape = arrays["coefficients"].shape
        if shape != (len(classes), width):
            raise CheckpointError(
                f"{directory}: weights of shape {shape} do not fit {len(classes)} classes x {width} features: "
                "materialise 'classifier_checkpoint' again."
            )
        self.classes = classes
        self._coefficients, self._intercepts = arrays["coefficients"].T, arrays["intercepts"]
        self._slope, self._offset = (float(value) for value in arrays["sigmoid"])
        self._vectorisers = {}
        for name in VECTORISERS:
            vectoriser = _vectoriser(name, vocabularies[name])
            vectoriser.idf_ = arrays[f"idf_{name}"]
            self._vectorisers[name] = vectoriser

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logarithms of one-against-the-rest probabilities, one row a text and one column a class."""
        import numpy as np
        from scipy.sparse import hstack

        if not texts:
            return np.zeros((0, len(self.classes)))
        features = hstack([self._vectorisers[name].transform(texts) for name in VECTORISERS]).tocsr()
        margins = np.asarray(features @ self._coefficients + self._intercepts, dtype=np.float64)
        return _log_sigmoid(margins, self._slope, self._offset)

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (uncalibrated), one row a text and one column a class."""
        from newsjuice_pipelines.classification.judging.calibrate import softmax

        return softmax(self.predict_logits(texts))


def _vectoriser(name: str, vocabulary: list[str] | None = None) -> Any:
    """The TF-IDF vectoriser of one kind of feature, unfitted or with a known vocabulary."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**VECTORISERS[name], sublinear_tf=True, dtype=np.float32, vocabulary=vocabulary)
