"""Exporting a trained encoder to ONNX with int8 weights, to be served on CPUs. Whether it may serve is `onnx_gate.py`'s."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.corpus.split import read_classes, read_part
from newsjuice_pipelines.classification.serving.onnx_classifier import (
    EXPORT,
    INSTALL,
    MODEL,
    TOKENIZER,
    OnnxClassifier,
    OnnxUnavailable,
    import_runtime,
    weights_fingerprint,
)
from newsjuice_pipelines.classification.serving.onnx_gate import judge_export
from newsjuice_pipelines.classification.serving.served_calibration import calibrate_served, write_served_calibration
from newsjuice_pipelines.classification.training.checkpoint import DESCRIPTION, CheckpointError, check_classes, read_description
from newsjuice_pipelines.runtime.reports import cell, markdown_table, write_json

logger = logging.getLogger("newsjuice.classification")

OPSET = 17  # the first with layer normalisation as one operator
ONE_FILE_LIMIT_BYTES = 2_000_000_000  # protobuf's limit; weights beyond it would need a second file
QUANTISED_OPERATORS = ("MatMul", "Gemm", "Gather")


@dataclass(frozen=True)
class ExportConfig:
    """How an encoder is exported and how close it must stay."""

    max_accuracy_loss_points: float = 0.3
    """Percentage points of accuracy that the exported model may lose on the validation part."""
    seven_bit_weights: bool = False
    """Weights of 7 instead of 8 bits, exact on processors without VNNI instructions (before about 2019), whose sums overflow."""
    narrowing_layers_in_float32: bool = False
    """Keep the layers with far more inputs than outputs in float32, whose inputs have the widest range: half as large again, but
    nearer to the checkpoint. For when the gate fails."""
    target_precision: float = 0.9
    """Share of right answers that every threshold of the exported model promises."""
    certainty: float = 0.95
    """How sure each of these promises is."""
    coverage: float = 0.9
    """Share of the texts of every class whose prediction set promises to hold the right class."""
    seed: int = 42
    """Seed of the interval of the difference."""

    def __post_init__(self) -> None:
        for name in ("target_precision", "certainty", "coverage"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1, such as 0.9.")
        if not 0 <= self.max_accuracy_loss_points <= 100:
            raise ValueError(f"max_accuracy_loss_points is {self.max_accuracy_loss_points}; it must lie between 0 and 100.")


class ExportError(RuntimeError):
    """A checkpoint cannot be exported."""


def export_classifier(checkpoint: Path, split_dir: Path, out: Path, config: ExportConfig | None = None) -> dict[str, Any]:
    """Write a checkpoint as an ONNX model with int8 weights, if it stays close enough on the validation part.

    Writes `model.onnx`, `tokenizer.json`, `classifier.json` and `calibration.json` when the gate passes, and `export.json` and
    `report.md` in any case. `passed` is None for a linear classifier: there is nothing to export. The gate reads the validation
    part, temperature and thresholds are fitted anew on the calibration part, and the test part is not read.

    Args:
        checkpoint: folder of a trained classifier.
        split_dir: folder of the split it was trained on.
        out: an existing empty folder.
        config: the limit and the form of the weights.

    Raises:
        CheckpointError: no classifier, or one of another split.
        OnnxUnavailable: onnx or onnxruntime is not installed.
        ExportError: the model is too large for one file.
    """
    config = config or ExportConfig()
    description = read_description(checkpoint)
    check_classes(description.classes, read_classes(split_dir), "the split")
    facts: dict[str, Any] = {"model": description.model, "config": asdict(config), "checkpoint": weights_fingerprint(checkpoint)}
    if description.kind != "encoder":
        facts |= {"passed": None, "reason": "a linear classifier is served as it is: there is nothing to export"}
    elif not (checkpoint / TOKENIZER).is_file():
        facts |= {"passed": None, "reason": f"the checkpoint has no {TOKENIZER}, which serving without PyTorch needs"}
    else:
        facts |= _padding(checkpoint)
        shutil.copyfile(checkpoint / TOKENIZER, out / TOKENIZER)
        shutil.copyfile(checkpoint / DESCRIPTION, out / DESCRIPTION)
        facts |= _quantised(checkpoint, out / MODEL, config)
        write_json(out / EXPORT, facts)  # the gate loads what would be served
        facts |= judge_export(checkpoint, out, read_part(split_dir, "validation"), config.max_accuracy_loss_points, config.seed)
        if facts["passed"]:
            promises = (config.target_precision, config.certainty, config.coverage)
            calibration = calibrate_served(OnnxClassifier(out), split_dir, *promises)
            write_served_calibration(calibration, out)
            facts |= {"temperature": calibration.temperature, "threshold": calibration.threshold}
        else:
            for name in (MODEL, TOKENIZER, DESCRIPTION):
                (out / name).unlink()
    write_json(out / EXPORT, facts)
    (out / "report.md").write_text(export_page(facts), encoding="utf-8")
    logger.info("%s: int8 export %s", description.model, facts["reason"])
    return facts


def write_onnx(checkpoint: Path, path: Path) -> None:
    """Write an encoder as a float32 ONNX model whose inputs are `texts x tokens`, both of any number.

    The TorchScript exporter needs no package beyond PyTorch; the newer one needs onnxscript.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    network = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    network.config.return_dict = True

    class Logits(torch.nn.Module):  # type: ignore[misc]
        """The network with plain inputs in a fixed order and one output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network  # as a part, so that its weights are parameters of the graph

        def forward(self, *inputs: Any) -> Any:
            return self.network(**dict(zip(names, inputs, strict=True))).logits

    example = tokenizer(["A short text", "A text that is longer than the other"], padding=True, return_tensors="pt")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in example]
    axes = {name: {0: "texts", 1: "tokens"} for name in names} | {"logits": {0: "texts"}}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of deprecation, and of constants that do not depend on the example
        torch.onnx.export(
            Logits(),
            tuple(example[name] for name in names),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _quantised(checkpoint: Path, path: Path, config: ExportConfig) -> dict[str, Any]:
    """Write the int8 model: weights by column, embeddings by table, activations rounded as they come."""
    import_runtime()
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise OnnxUnavailable(f"{error.name or 'onnx'} is not installed, which exporting a model needs: {INSTALL}.") from error

    with tempfile.TemporaryDirectory() as folder, _root_logger_left_alone():
        whole, prepared = Path(folder) / "float32.onnx", Path(folder) / "prepared.onnx"
        weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        if weights > ONE_FILE_LIMIT_BYTES:
            raise ExportError(f"{checkpoint.name} has {weights / 1e9:.1f} GB of weights; one ONNX file holds at most 2 GB.")
        write_onnx(checkpoint, whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantize_dynamic(
            prepared,
            path,
            op_types_to_quantize=list(QUANTISED_OPERATORS),
            per_channel=True,
            reduce_range=config.seven_bit_weights,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_narrowing_layers(prepared) if config.narrowing_layers_in_float32 else [],
            extra_options={"MatMulConstBOnly": True},
        )
        return {"float32_bytes": whole.stat().st_size, "int8_bytes": path.stat().st_size}


@contextmanager
def _root_logger_left_alone() -> Iterator[None]:
    """onnxruntime's quantiser logs through the root logger, which gives that a handler: every line would be shown twice."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)


def _narrowing_layers(path: Path) -> list[str]:
    """The products with a weight that has at least twice as many inputs as outputs: the second layer of every feed-forward."""
    import onnx

    graph = onnx.load(path).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2]
    return [node.name for node in products if shapes[node.input[1]][0] >= 2 * shapes[node.input[1]][1]]


def _padding(checkpoint: Path) -> dict[str, int]:
    """What the shorter texts of a batch are filled up with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{checkpoint}: the tokenizer has no padding token; the classifier cannot be exported.")
    return {"pad_id": int(tokenizer.pad_token_id), "pad_type_id": int(tokenizer.pad_token_type_id)}


def export_page(facts: dict[str, Any]) -> str:
    """The page of an export: whether it may serve, and what it costs and gains."""
    shown = {
        "rows": "validation texts",
        "accuracy_float32": "accuracy of the checkpoint",
        "accuracy_int8": "accuracy of the export",
        "loss_points": "points lost",
        "agreement": "texts with the same answer",
        "largest_probability_difference": "largest difference of a probability",
        "confidence_difference_99": "difference of the confidence, 99 of 100 texts below",
        "texts_per_s_float32": "texts a second, checkpoint in PyTorch float32",
        "texts_per_s_int8": "texts a second, export",
        "temperature": "temperature, fitted on the calibration part",
        "threshold": "confidence from which it may file",
        "float32_bytes": "bytes in float32",
        "int8_bytes": "bytes in int8",
    }
    verdict = {True: "passed", False: "failed", None: "nothing exported"}[facts["passed"]]
    rows = [(title, facts[name]) for name, title in shown.items() if name in facts]
    table = [markdown_table(("measure", "value"), rows), ""] if rows else []
    return "\n".join([f"# Export of {cell(facts['model'])}: {verdict}", "", f"{facts['reason'].capitalize()}.", "", *table])
