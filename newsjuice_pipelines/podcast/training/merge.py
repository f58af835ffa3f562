"""Merging an adapter into its base model: a complete model folder, measured against base and adapter on held-out prompts.

What is refused is `adapter_files.py`, the verdict is `merge_gate.py`, the weights' change `weight_change.py`,
the model card `merged_model_card.py`.
"""

from __future__ import annotations

import copy
import logging
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.adapter_files import (
    MergeError,
    check_adapter_files,
    check_adapter_fits,
    check_base,
    read_base_record,
)
from newsjuice_pipelines.podcast.training.base_model import DTYPES, base_identity, load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_example, end_token_ids
from newsjuice_pipelines.podcast.training.merge_gate import NotFiniteError, PromptMeasures, judge_merge, measure_prompt
from newsjuice_pipelines.podcast.training.merged_model_card import merged_model_card
from newsjuice_pipelines.podcast.training.training_rows import dataset_fingerprint
from newsjuice_pipelines.podcast.training.weight_change import (
    WEIGHT_CHANGE_FILE,
    change_by_block,
    measure_weight_change,
    plot_weight_change,
)
from newsjuice_pipelines.runtime.devices import best_device
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.reports import write_json

__all__ = ["MergeConfig", "MergeError", "merge_adapter"]

logger = logging.getLogger("newsjuice.merge")

GATE_FILE = "merge_gate.json"
_END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class MergeConfig:
    """How the student's weights are written, and on how much they are measured."""

    dtype: str = "float32"
    """Number format of the merged weights: float32, bfloat16 or float16. The sum itself is always done in float32."""
    gate_prompts: int = 16
    """Held-out test rows on which the merged model is compared with base and adapter; fewer when the test split has fewer."""
    into_4bit: bool = False
    """Defect D5, for comparison: merge into the NF4 weights, which rounds most of the adapter's effect away."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise MergeError(f"dtype {self.dtype!r} does not work: use one of {', '.join(DTYPES)}.")
        if self.gate_prompts < 1:
            raise MergeError(f"gate_prompts={self.gate_prompts} does not work: the merge gate needs at least 1 held-out row.")


def merge_adapter(
    base: Path, adapter: Path, out: Path, config: MergeConfig = MergeConfig(), dataset: Path | None = None
) -> dict[str, Any]:
    """Merge a LoRA adapter into full-precision weights, write a complete model folder, and judge what was written.

    An adapter that was trained over 4-bit weights is merged into these weights dequantised, which are what it learned
    to correct; merging into the 4-bit weights themselves would round most of its effect away.

    Args:
        base: folder of the base model that the adapter was trained on.
        adapter: folder of the adapter, with its tokenizer and the record of its base.
        out: an existing empty directory; gets weights, tokenizer, generation configuration, the gate's figures by prompt
            (`merge_gate.json`), the weights' change (`weight_change.json` and `.png`) and a model card.
        config: number format and size of the gate.
        dataset: folder of the student data set, whose `test.parquet` the gate uses. Without it nothing is judged, and
            `facts["gate"]["passed"]` is None.

    Raises:
        MergeError: the adapter belongs to another base, tokenizer, data set or architecture, lacks files, or gives weights or
            logits that are not finite. A merge that only loses too much is written, with `facts["gate"]["passed"]` False.
        BaseModelError: a model cannot be loaded.
    """
    started = time.monotonic()
    check_adapter_files(adapter)
    record = read_base_record(adapter)
    found = check_base(base, adapter, record)
    tokenizer = load_tokenizer(adapter)
    examples = [] if dataset is None else held_out_examples(dataset, tokenizer, config.gate_prompts)
    if dataset is not None and record.get("dataset_fingerprint") != dataset_fingerprint(dataset):
        raise MergeError(
            "the adapter was trained on another student_dataset than this one, so that its test rows may be rows it was trained "
            "on: materialise lora_adapter again."
        )

    exact = adapted_model(base, adapter, record)
    merged = _merged_into_4bit(base, adapter, record) if config.into_4bit else _merged(copy.deepcopy(exact))
    end_ids = _write_model(merged, tokenizer, config.dtype, out)
    del merged  # what is measured from here on is what was written
    written = load_model(out, config.dtype)
    rows = measure_weight_change(exact, written)
    write_json(out / WEIGHT_CHANGE_FILE, {"matrices": rows})
    plot_weight_change(rows, out / "weight_change.png")
    merged_s = time.monotonic() - started
    gate = run_gate(exact, written, config.dtype, examples, out)
    for licence in base.glob("LICENSE*"):
        shutil.copyfile(licence, out / licence.name)
    facts = {
        "base_identity": found,
        "identity": base_identity(out)["identity"],
        "dtype": config.dtype,
        "dequantised_base": bool(record["load_in_4bit"]),
        "merged_into_4bit": config.into_4bit,
        "eos_token_ids": end_ids,
        "gate": gate,
        "weight_change_by_block": change_by_block(rows),
        "size_bytes": sum(file.stat().st_size for file in out.glob("*.safetensors")),
        "merge_seconds": round(merged_s, 1),
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / "README.md").write_text(merged_model_card(facts, base, adapter), encoding="utf-8")
    return facts


def adapted_model(base: Path, adapter: Path, record: Mapping[str, Any]) -> Any:
    """Base and adapter in float32, not merged: what a merge has to reproduce.

    The base is in the weights that the adapter was trained on; for QLoRA these are the 4-bit ones, dequantised.
    """
    model = _dequantised(_in_4bit(base, record)) if record["load_in_4bit"] else load_model(base, "float32")
    return _with_adapter(model, adapter)


def _in_4bit(base: Path, record: Mapping[str, Any]) -> Any:
    return load_model(base, record["trained_in"], best_device().type, load_in_4bit=True)


def _dequantised(quantised: Any) -> Any:
    import torch

    return quantised.dequantize().to(device="cpu", dtype=torch.float32).eval()


def _with_adapter(model: Any, adapter: Path) -> Any:
    """`model` with the adapter in place; every part of the adapter is in use and nothing else is."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    changed = check_adapter_fits({name: tuple(parameter.shape) for name, parameter in model.named_parameters()}, adapter)
    try:
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=False).eval()
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise MergeError(
            f"the adapter in {adapter} cannot be put on its base ({error}): materialise lora_adapter again."
        ) from error
    wrapped = {name for name, module in adapted.base_model.model.named_modules() if isinstance(module, LoraLayer)}
    if wrapped != changed:
        names = sorted(wrapped ^ changed)
        raise MergeError(
            f"the weights in {adapter} are not those that its adapter_config.json names ({len(names)} modules differ, such as "
            f"{names[0]}): the adapter is damaged, materialise lora_adapter again."
        )
    return adapted


def _merged(adapted: Any) -> Any:
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # what safe_merge raises for sums with NaN or infinity
        raise MergeError(
            f"the sum of base and adapter is not finite ({error}): the adapter is broken. Materialise lora_adapter again with a "
            "lower learning_rate."
        ) from error


def _merged_into_4bit(base: Path, adapter: Path, record: Mapping[str, Any]) -> Any:
    from peft import PeftModel

    logger.warning("merging into 4-bit weights (defect D5): most of the adapter's effect will be lost")
    adapted = PeftModel.from_pretrained(_in_4bit(base, record), adapter, is_trainable=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Merge lora module to 4-bit")
        return _dequantised(_merged(adapted))


def _write_model(model: Any, tokenizer: Any, dtype: str, out: Path) -> list[int]:
    """Write weights in `dtype`, tokenizer and a generation configuration that decodes greedily; returns its end tokens."""
    import torch
    from transformers import GenerationConfig

    model = model.to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise MergeError(f"{name} does not fit into {dtype}: set dtype to bfloat16 or float32.")
    model.config.dtype = getattr(torch, dtype)
    before = model.generation_config
    end_ids = set(end_token_ids(tokenizer, before))
    if _END_OF_TURN in tokenizer.get_vocab():
        end_ids.add(tokenizer.convert_tokens_to_ids(_END_OF_TURN))
    padding = tokenizer.pad_token_id if before.pad_token_id is None else before.pad_token_id
    # A new one: temperature, top_p and top_k of the base would only be warned about when decoding greedily.
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=before.bos_token_id, eos_token_id=sorted(end_ids), pad_token_id=padding
    )
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return sorted(end_ids)


def held_out_examples(dataset: Path, tokenizer: Any, count: int) -> list[tuple[list[int], int]]:
    """Token ids of the first `count` test rows that have an answer, and how many of these tokens are the answer's.

    Raises:
        MergeError: the test split is missing, or no row of it has an answer.
    """
    import pandas as pd

    file = dataset / "test.parquet"
    if not file.is_file():
        raise MergeError(f"{file} is missing, and the merge gate needs held-out rows: materialise student_dataset again.")
    table = pd.read_parquet(file, columns=["prompt", "completion"])
    examples: list[tuple[list[int], int]] = []
    for prompt, completion in table.itertuples(index=False):
        ids, labels = encode_example(tokenizer, list(prompt), list(completion))
        answer_tokens = sum(label >= 0 for label in labels)
        if answer_tokens:
            examples.append((ids, answer_tokens))
        if len(examples) == count:
            break
    if not examples:
        raise MergeError(
            f"{file} has {len(table)} rows and none with an answer, so the merge cannot be judged: materialise student_dataset "
            "again from more teacher scripts."
        )
    return examples


def run_gate(exact: Any, written: Any, dtype: str, examples: list[tuple[list[int], int]], out: Path) -> dict[str, Any]:
    """Run base, adapter and merged model over held-out examples and judge; what single prompts gave goes into a file.

    Float32 weights are in memory once, or twice when the merged model is float32; logits of one prompt at a time.

    Args:
        exact: `adapted_model(...)`.
        written: the merged model, in `dtype`.
        dtype: number format of the merged model, in which the adapter is run for reference.
        examples: of `held_out_examples`; none are not judged.
        out: folder that gets `merge_gate.json`.

    Raises:
        MergeError: logits are not finite.
    """
    import torch

    if not examples:
        return {"passed": None, "prompts": 0, "positions": 0, "measures": {}, "failed": []}
    started = time.monotonic()
    device = best_device().type
    rounded = None if dtype == "float32" else copy.deepcopy(exact).to(getattr(torch, dtype))
    models = [model.to(device) for model in (exact, written, rounded) if model is not None]
    progress = Progress("merge gate", len(examples), "prompts")
    measured: list[PromptMeasures] = []
    for ids, answer_tokens in examples:
        adapter, merged, *others = (_answer_logits(model, ids, answer_tokens) for model in models)
        with exact.disable_adapter():
            base = _answer_logits(exact, ids, answer_tokens)
        try:
            measured.append(measure_prompt(base, adapter, merged, *others))
        except NotFiniteError as error:
            raise MergeError(f"{error} with weights in {dtype}: set dtype to bfloat16 or float32.") from error
        progress.advance()
    result = judge_merge(measured)
    by_prompt = [judge_merge([one]).as_json() for one in measured]
    write_json(out / GATE_FILE, {"dtype": dtype, "together": result.as_json(), "by_prompt": by_prompt})
    verdict = "passed" if result.passed else f"did not pass: {', '.join(result.as_json()['failed'])}"
    logger.info("merge gate over %d prompts, %d positions: %s", result.prompts, result.positions, verdict)
    return {**result.as_json(), "seconds": round(time.monotonic() - started, 1)}


def _answer_logits(model: Any, ids: list[int], answer_tokens: int) -> Any:
    """Logits at the positions that predict the answer, `[answer tokens, vocabulary]`, in the model's number format."""
    import torch

    with torch.inference_mode():
        tokens = torch.tensor([ids], device=model.device)
        return model(input_ids=tokens, use_cache=False, logits_to_keep=answer_tokens + 1).logits[0, :-1]
