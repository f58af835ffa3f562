"""Loading a trained classifier and predicting with it, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from newsjuice_pipelines.classification.judging.calibrate import softmax
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError, check_classes, read_description
from newsjuice_pipelines.classification.training.linear import LinearClassifier

if TYPE_CHECKING:
    import numpy as np

BATCH_TEXTS = 64


class Classifier(Protocol):
    """What every trained classifier can do. Columns are in the order of `classes`, which comes from the checkpoint."""

    classes: tuple[str, ...]

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Unnormalised scores, texts x classes."""
        ...

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Uncalibrated probabilities, texts x classes."""
        ...


def load_classifier(path: Path) -> Classifier:
    """Load a checkpoint that `train_classifier` wrote.

    Raises:
        CheckpointError: no classifier, or one whose parts contradict each other.
    """
    description = read_description(path)
    if description.kind == "linear":
        return LinearClassifier(path, description.classes)
    if description.kind == "encoder" and description.max_length is not None:
        return EncoderClassifier(path, description.classes, description.max_length)
    raise CheckpointError(f"{path} holds a classifier of the unknown kind {description.kind!r}.")


class EncoderClassifier:
    """A fine-tuned encoder. Texts are sorted by length, so that a batch is padded to its own longest text only."""

    def __init__(self, directory: Path, classes: tuple[str, ...], max_length: int) -> None:
        """Load from `directory` to the best device; the labels in the model's own configuration must be `classes`."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from newsjuice_pipelines.runtime.devices import best_device

        self.classes = classes
        self._max_length = max_length
        self._device = best_device().type
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        network = AutoModelForSequenceClassification.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        labels = network.config.id2label
        check_classes(tuple(labels[number] for number in range(len(labels))), classes, "its classifier.json")
        self._network = network.to(self._device).eval()

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Scores, texts x classes."""
        import numpy as np
        import torch

        logits = np.zeros((len(texts), len(self.classes)))
        if not len(texts):
            return logits
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH_TEXTS):
                chosen = order[start : start + BATCH_TEXTS]
                rows = {name: [encoded[name][index] for index in chosen] for name in encoded}
                batch = self._tokenizer.pad(rows, return_tensors="pt").to(self._device)
                logits[chosen] = self._network(**batch).logits.float().cpu().numpy()
        return logits

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Uncalibrated probabilities, texts x classes."""
        return softmax(self.predict_logits(texts))
