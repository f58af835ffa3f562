"""A classifier in ONNX form on the CPU, without PyTorch, which takes seconds to start. Making it is `onnx_export.py`'s."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.judging.calibrate import softmax
from newsjuice_pipelines.classification.serving.predict import SORTED_TEXTS, length_sorted_batches
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError, read_description
from newsjuice_pipelines.runtime.reports import read_json

if TYPE_CHECKING:
    import numpy as np

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
EXPORT = "export.json"
INSTALL = "pip install onnx onnxruntime"


class OnnxUnavailable(RuntimeError):
    """A package for ONNX models is not installed."""


class OnnxClassifier:
    """An exported encoder in ONNX Runtime, with the tokenizer of its checkpoint.

    An int8 model rounds the activations of each batch by the largest among them, so that a text's scores can differ in the
    third digit with the texts beside it; the same texts in one call always give the same scores.
    """

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        """Load from `directory`.

        Args:
            directory: what `export_classifier` wrote, its gate passed or not.
            threads: None takes every core that this process may use.

        Raises:
            OnnxUnavailable: onnxruntime is not installed.
            CheckpointError: the directory holds no exported model, or one with other outputs than its description says.
        """
        runtime = import_runtime()
        from tokenizers import Tokenizer

        description = read_description(directory)
        if not (directory / MODEL).is_file() or not (directory / TOKENIZER).is_file():
            raise CheckpointError(f"{directory} holds no exported model: export the classifier again.")
        if description.max_length is None:
            raise CheckpointError(f"{directory} does not say how long a text may be: export the classifier again.")
        self.classes = description.classes
        threads = threads or usable_cores()
        self.engine = f"ONNX Runtime int8 on the CPU, {threads} {'thread' if threads == 1 else 'threads'}"
        self._tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(description.max_length)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(directory / MODEL), options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]
        width = self._session.get_outputs()[0].shape[-1]
        if width != len(self.classes):
            raise CheckpointError(f"{directory}: the model has {width} outputs for {len(self.classes)} classes; export it again.")
        settings = read_json(directory / EXPORT)
        self._padding = {"input_ids": int(settings["pad_id"]), "token_type_ids": int(settings["pad_type_id"])}

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Scores, texts x classes."""
        import numpy as np

        logits = np.zeros((len(texts), len(self.classes)))
        for first in range(0, len(texts), SORTED_TEXTS):
            encoded = self._tokenizer.encode_batch(list(texts[first : first + SORTED_TEXTS]))
            for chosen in length_sorted_batches([len(item.ids) for item in encoded]):
                batch = self._batch([encoded[index] for index in chosen])
                logits[[first + index for index in chosen]] = self._session.run(["logits"], batch)[0]
        return logits

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Uncalibrated probabilities, texts x classes."""
        return softmax(self.predict_logits(texts))

    def _batch(self, encoded: Sequence[Any]) -> dict[str, np.ndarray]:
        """The model's inputs, padded to the longest text of the batch."""
        import numpy as np

        longest = max(len(item.ids) for item in encoded)
        read = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        batch = {}
        for name in self._inputs:
            filled = np.full((len(encoded), longest), self._padding.get(name, 0), dtype=np.int64)
            for row, item in enumerate(encoded):
                filled[row, : len(item.ids)] = getattr(item, read[name])
            batch[name] = filled
        return batch


def why_not(exported: Path, checkpoint: Path) -> str | None:
    """Why an export should not serve a checkpoint, or None when it should.

    Raises:
        CheckpointError: the export was made from another checkpoint.
    """
    if not (exported / EXPORT).is_file():
        return f"{exported} holds no export"
    facts = read_json(exported / EXPORT)
    if not facts["passed"]:
        return str(facts["reason"])
    if facts["checkpoint"] != weights_fingerprint(checkpoint):
        raise CheckpointError(f"{exported} was exported from another checkpoint than {checkpoint}: export the classifier again.")
    try:
        import_runtime()
    except OnnxUnavailable as error:
        return str(error)
    return None


def weights_fingerprint(checkpoint: Path) -> str:
    """SHA-256 over the weights and the description of a checkpoint."""
    digest = hashlib.sha256()
    for path in sorted([*checkpoint.glob("*.safetensors"), checkpoint / "classifier.json"]):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def import_runtime() -> Any:
    """ONNX Runtime, with its telemetry off.

    Raises:
        OnnxUnavailable: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import
    try:
        import onnxruntime
    except ImportError as error:
        raise OnnxUnavailable(f"onnxruntime is not installed, which runs exported models: {INSTALL}.") from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def usable_cores() -> int:
    """Cores that this process may use, or fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores
