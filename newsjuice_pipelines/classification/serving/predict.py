"""Loading a trained classifier and predicting with it, whatever its kind and whatever runs it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from newsjuice_pipelines.classification.judging.calibrate import softmax
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError, check_classes, read_description
from newsjuice_pipelines.classification.training.linear import LinearClassifier

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger("newsjuice.classification")

BATCH_TEXTS = 64
# Long texts in smaller batches: attention needs memory with the square of their length.
BATCH_TOKENS = 8_192
# Texts that are tokenised at a time, which bounds the memory of the token ids.
SORTED_TEXTS = 8_192


class Classifier(Protocol):
    """What every trained classifier can do. Columns are in the order of `classes`, which comes from the checkpoint."""

    classes: tuple[str, ...]

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Unnormalised scores, texts x classes."""
        ...

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Uncalibrated probabilities, texts x classes."""
        ...


def load_classifier(path: Path, device: str | None = None) -> Classifier:
    """Load a checkpoint that `train_classifier` wrote.

    Args:
        path: folder of the checkpoint.
        device: `cpu` or `cuda` for an encoder; None takes the best device. A linear classifier always runs on the CPU.

    Raises:
        CheckpointError: no classifier, or one whose parts contradict each other.
    """
    description = read_description(path)
    if description.kind == "linear":
        return LinearClassifier(path, description.classes)
    if description.kind == "encoder" and description.max_length is not None:
        return EncoderClassifier(path, description.classes, description.max_length, device)
    raise CheckpointError(f"{path} holds a classifier of the unknown kind {description.kind!r}.")


def load_for_serving(checkpoint: Path, exported: Path | None = None) -> Classifier:
    """Load what answers fastest here: the exported int8 model on a CPU where its gate passed, else the checkpoint itself.

    Which one it is, and why, is logged and is `engine_of` the result.

    Raises:
        CheckpointError: no classifier, or an export of another checkpoint.
    """
    from newsjuice_pipelines.classification.serving.onnx_classifier import OnnxClassifier, why_not

    reason = "no exported model was given" if exported is None else why_not(exported, checkpoint)
    if reason is None and _has_cuda():
        reason = "there is a GPU"
    if reason is None and exported is not None:
        classifier: Classifier = OnnxClassifier(exported)
        logger.info("serving with %s", engine_of(classifier))
    else:
        classifier = load_classifier(checkpoint)
        logger.info("serving with %s: %s", engine_of(classifier), reason)
    return classifier


def engine_of(classifier: Classifier) -> str:
    """What runs a classifier, in words."""
    return str(getattr(classifier, "engine", "scikit-learn on the CPU"))


def length_sorted_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts in batches of like length, so that a batch is padded to its own longest text only.

    Args:
        lengths: of the texts, in tokens.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        longest = lengths[batch[0]] if batch else lengths[place]
        if len(batch) == BATCH_TEXTS or (batch and longest * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _has_cuda() -> bool:
    """Whether PyTorch would find a GPU; where no NVIDIA driver is, it is not even imported, which takes two seconds."""
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return bool(torch.cuda.is_available())


class EncoderClassifier:
    """A fine-tuned encoder in PyTorch. Batches are of texts of like length."""

    def __init__(self, directory: Path, classes: tuple[str, ...], max_length: int, device: str | None = None) -> None:
        """Load from `directory` to the device (None: the best); the labels in the model's own configuration must be `classes`."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from newsjuice_pipelines.runtime.devices import best_device

        self.classes = classes
        self._max_length = max_length
        self._device = device or best_device().type
        self.engine = f"PyTorch float32 on {self._device}"
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
        for first in range(0, len(texts), SORTED_TEXTS):
            part = list(texts[first : first + SORTED_TEXTS])
            encoded = self._tokenizer(part, truncation=True, max_length=self._max_length)
            with torch.inference_mode():
                for chosen in length_sorted_batches([len(ids) for ids in encoded["input_ids"]]):
                    rows = {name: [encoded[name][index] for index in chosen] for name in encoded}
                    batch = self._tokenizer.pad(rows, return_tensors="pt").to(self._device)
                    logits[[first + index for index in chosen]] = self._network(**batch).logits.float().cpu().numpy()
        return logits

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Uncalibrated probabilities, texts x classes."""
        return softmax(self.predict_logits(texts))
