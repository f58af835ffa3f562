"""The linear classifier: TF-IDF of words and characters with one-vs-rest linear SVMs, stored without pickles."""

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
VECTORISERS: Mapping[str, Mapping[str, Any]] = {
    "word": {"analyzer": "word", "ngram_range": (1, 2), "max_features": 60_000},
    "char": {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": 120_000},
}


def train_linear(train: pd.DataFrame, class_count: int, inverse_regularisation: float, seed: int, out: Path) -> dict[str, Any]:
    """Fit the linear classifier on `text` and `label_id`; writes the features' vocabularies and the weights to `out`."""
    import numpy as np
    from safetensors.numpy import save_file
    from scipy.sparse import hstack
    from sklearn.svm import LinearSVC

    vectorisers = {name: _vectoriser(name) for name in VECTORISERS}
    features = hstack([vectorisers[name].fit_transform(train["text"]) for name in VECTORISERS]).tocsr()
    model = LinearSVC(C=inverse_regularisation, random_state=seed).fit(features, train["label_id"])
    coefficients, intercepts = model.coef_, model.intercept_
    if class_count == 2:  # scikit-learn keeps one row for two classes
        coefficients, intercepts = np.vstack([-coefficients, coefficients]), np.concatenate([-intercepts, intercepts])
    vocabularies = {
        name: sorted(vectoriser.vocabulary_, key=vectoriser.vocabulary_.__getitem__) for name, vectoriser in vectorisers.items()
    }
    write_json(out / FEATURES, vocabularies)
    arrays = {f"idf_{name}": np.asarray(vectoriser.idf_, dtype=np.float32) for name, vectoriser in vectorisers.items()}
    arrays |= {"coefficients": coefficients.astype(np.float32), "intercepts": intercepts.astype(np.float32)}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out / WEIGHTS)
    return {"features": int(features.shape[1]), "parameters": int(coefficients.size + intercepts.size)}


class LinearClassifier:
    """A stored linear classifier; its logits are the margins of the SVMs."""

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
        self._vectorisers = {}
        for name in VECTORISERS:
            vectoriser = _vectoriser(name, vocabularies[name])
            vectoriser.idf_ = arrays[f"idf_{name}"]
            self._vectorisers[name] = vectoriser

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Margins, one row a text and one column a class."""
        import numpy as np
        from scipy.sparse import hstack

        if not texts:
            return np.zeros((0, len(self.classes)))
        features = hstack([self._vectorisers[name].transform(texts) for name in VECTORISERS]).tocsr()
        return np.asarray(features @ self._coefficients + self._intercepts, dtype=np.float64)

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (uncalibrated), one row a text and one column a class."""
        from newsjuice_pipelines.classification.judging.calibrate import softmax

        return softmax(self.predict_logits(texts))


def _vectoriser(name: str, vocabulary: list[str] | None = None) -> Any:
    """The TF-IDF vectoriser of one kind of feature, unfitted or with a known vocabulary."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**VECTORISERS[name], sublinear_tf=True, dtype=np.float32, vocabulary=vocabulary)
