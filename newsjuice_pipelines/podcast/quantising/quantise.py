"""The quantised model: a folder that the CPU engine runs, with the verdict of its gate beside it.

The file format is `gguf_export.py`, the verdict `quantised_gate.py`, running it `engines/openvino_genai.py`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from newsjuice_pipelines.podcast.engines import GATE_FILE
from newsjuice_pipelines.podcast.quantising.gguf_export import FILES, Precision, export_gguf
from newsjuice_pipelines.podcast.quantising.quantised_card import quantised_card
from newsjuice_pipelines.podcast.quantising.quantised_gate import (
    GateVerdict,
    Reference,
    engine_installed,
    held_out_rows,
    judge_quantised,
    measure_reference,
)
from newsjuice_pipelines.podcast.quantising.source_model import QuantisingError, UnknownModelError, read_source
from newsjuice_pipelines.podcast.training.base_model import base_identity
from newsjuice_pipelines.runtime.provenance import file_fingerprint
from newsjuice_pipelines.runtime.reports import write_json

__all__ = ["GATE_FILE", "QuantiseConfig", "QuantisingError", "quantise_model"]

logger = logging.getLogger("newsjuice.quantise")

CHOICES = ("int8", "int4", "auto")
COPIED_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "LICENSE*"),
)


@dataclass(frozen=True)
class QuantiseConfig:
    """To how many bits the student is rounded, and on how much that is judged."""

    precision: Literal["int8", "int4", "auto"] = "int8"
    """int8, int4, or auto: int4 when it passes its gate, else int8."""
    gate_prompts: int = 16
    """Held-out validation rows on which weights and engine are judged; fewer when the split has fewer."""
    max_new_tokens: int = 128
    """Most tokens of each answer that the engine and the student are compared on."""

    def __post_init__(self) -> None:
        if self.precision not in CHOICES:
            raise ValueError(f"precision {self.precision!r} does not work: use one of {', '.join(CHOICES)}.")
        if self.gate_prompts < 1:
            raise ValueError(f"gate_prompts={self.gate_prompts} does not work: the gate needs at least 1 held-out row.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} does not work: answers need at least 1 token.")


def quantise_model(model: Path, dataset: Path, out: Path, config: QuantiseConfig = QuantiseConfig()) -> dict[str, Any]:
    """Write the quantised form of a model folder, judge it, and leave the verdict beside it.

    A model that the exporter does not know, and too few rows to judge it on, are no errors: the verdict says so with `passed`
    None, and other engines run the model.

    Args:
        model: a model folder in Hugging Face layout with safetensors.
        dataset: folder of the student data set; the gate uses its `validation.parquet`.
        out: an existing empty directory; gets the GGUF file, tokenizer, configuration, `gate.json` and a model card.
        config: precision and size of the gate.

    Returns:
        Facts, which are those of `gate.json`.

    Raises:
        QuantisingError: the model is damaged or incomplete, or the data set lacks its validation split.
    """
    started = time.monotonic()
    try:
        read_source(model)  # before anything loads it
        reason = None
    except UnknownModelError as error:
        reason = str(error)
    for pattern in COPIED_FILES:
        for file in model.glob(pattern):
            shutil.copyfile(file, out / file.name)
    facts = _without_file(reason) if reason else _quantised(model, dataset, out, config)
    write_json(out / GATE_FILE, facts)
    (out / "README.md").write_text(quantised_card(facts), encoding="utf-8")
    logger.info("quantised model after %.1f s: %s", time.monotonic() - started, facts["why"])
    return facts


def _quantised(model: Path, dataset: Path, out: Path, config: QuantiseConfig) -> dict[str, Any]:
    """Export and judge one precision after the other until one passes or none is left."""
    order: tuple[Precision, ...] = ("int4", "int8") if config.precision == "auto" else (config.precision,)
    rows = held_out_rows(dataset, model, config.gate_prompts)
    reference = measure_reference(model, rows, config.max_new_tokens) if rows else None
    tried: list[dict[str, Any]] = []
    for number, precision in enumerate(order, start=1):
        file = out / FILES[precision]
        exported = export_gguf(model, file, precision)
        verdict = _judge(reference, out, file)
        facts = {
            "passed": verdict["passed"],
            "why": verdict["why"],
            "precision": precision,
            "engine": "openvino",
            "engine_version": importlib.metadata.version("openvino-genai") if engine_installed() else None,
            **exported,
            "sha256": file_fingerprint(file),
            "source_identity": base_identity(model)["identity"],
            "source_size_bytes": sum(weights.stat().st_size for weights in model.glob("*.safetensors")),
            "prompts": len(rows),
            **{name: value for name, value in verdict.items() if name not in ("passed", "why")},
            "tried": tried,
        }
        if verdict["passed"] or number == len(order):
            return facts
        logger.info("%s is not taken: %s", precision, verdict["why"])
        tried = [*tried, {"precision": precision, **verdict}]
        file.unlink()
    raise AssertionError("no precision to try")


def _judge(reference: Reference | None, out: Path, file: Path) -> dict[str, Any]:
    if reference is None:
        why = "nothing was measured: the validation split has no row with an answer that fits into the context"
        return {"passed": None, "why": why, "measures": {}, "parity": None}
    verdict: GateVerdict = judge_quantised(reference, out, file)
    return verdict.as_json()


def _without_file(reason: str) -> dict[str, Any]:
    """The facts of a model that cannot be quantised here."""
    why = f"not quantised: {reason}"
    return {
        "passed": None,
        "why": why,
        "precision": None,
        "engine": "openvino",
        "engine_version": None,
        "file": None,
        "measures": {},
    }
