"""Merging an adapter into its base model, and measuring that the merged model does what base and adapter did together."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.base_model import base_identity, load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_example, end_token_ids
from newsjuice_pipelines.podcast.training.finetune import BASE_RECORD

logger = logging.getLogger("newsjuice.merge")

GATE_PROMPTS = 4
_LAYER = re.compile(r"\.layers\.(\d+)\.")


class MergeError(ValueError):
    """The adapter cannot be merged into this base."""


def merge_adapter(base: Path, adapter: Path, out: Path, dtype: str = "float32", dataset: Path | None = None) -> dict[str, Any]:
    """Merge a LoRA adapter into full-precision weights and write a complete model folder.

    An adapter that was trained over 4-bit weights is merged into these weights dequantised, which are what it learned
    to correct; merging into the 4-bit weights themselves would round most of its effect away.

    Args:
        base: folder of the base model that the adapter was trained on.
        adapter: folder of the adapter, with the record of its base.
        out: an existing empty directory.
        dtype: of the weights that are written: `float32`, `bfloat16` or `float16`. The sum itself is done in float32.
        dataset: folder of the student data set; with it the facts hold `measure_merge` on a few held-out rows.

    Raises:
        MergeError: the adapter has no record of its base, or names another one.
    """
    import torch
    from peft import PeftModel

    started = time.monotonic()
    record = read_base_record(adapter)
    found = base_identity(base)["identity"]
    if found != record["identity"]:
        raise MergeError(
            f"the adapter was trained on the base {record['identity']}, this one is {found}: materialise lora_adapter again on "
            "this base, or merge with the base it belongs to."
        )
    tokenizer = load_tokenizer(adapter)
    untuned = _full_precision_base(base, record)
    before = {name: parameter.detach().clone() for name, parameter in untuned.named_parameters()}
    tuned = PeftModel.from_pretrained(untuned, adapter, is_trainable=False)
    examples = [] if dataset is None else _held_out_examples(dataset, tokenizer)
    with_adapter = [_answer_logits(tuned, *example) for example in examples]
    with tuned.disable_adapter():
        without = [_answer_logits(tuned, *example) for example in examples]

    merged = tuned.merge_and_unload(safe_merge=True)
    changes = _changes_by_layer(before, merged)
    merged = merged.to(getattr(torch, dtype))
    merged.config.dtype = getattr(torch, dtype)
    end_ids = end_token_ids(tokenizer, merged.generation_config)
    merged.generation_config.eos_token_id = end_ids
    merged.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)

    written = load_model(out, dtype)  # what is measured is what was written
    facts = {
        "base_identity": found,
        "identity": base_identity(out)["identity"],
        "dtype": dtype,
        "dequantised_base": bool(record["load_in_4bit"]),
        "eos_token_ids": end_ids,
        "weight_change_by_layer": changes,
        "merge": measure_merge(without, with_adapter, [_answer_logits(written, *example) for example in examples]),
        "size_bytes": sum(file.stat().st_size for file in out.glob("*.safetensors")),
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / "README.md").write_text(_model_card(facts), encoding="utf-8")
    return facts


def read_base_record(adapter: Path) -> dict[str, Any]:
    """Which base an adapter was trained on, as `train_adapter` wrote it down."""
    try:
        record: dict[str, Any] = json.loads((adapter / BASE_RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MergeError(f"{adapter} has no {BASE_RECORD}, so its base is unknown: materialise lora_adapter again.") from None
    return record


def measure_merge(base: Sequence[Any], adapter: Sequence[Any], merged: Sequence[Any]) -> dict[str, Any]:
    """How well the merged model keeps what the adapter does, from teacher-forced logits of the same answers.

    Args:
        base: float32 arrays `[answer tokens, vocabulary]` of the untuned model, one a prompt.
        adapter: the same of base and adapter together.
        merged: the same of the merged model.

    Returns:
        `relative_error` |M - A| / |A|; `top1_agreement`, the share of positions where both prefer the same token;
        `effect_kept` <M - B, A - B> / |A - B|^2, 1 when the adapter's whole effect is there. None without prompts, and
        for an adapter with no effect.
    """
    import numpy as np

    if not adapter:
        return {"prompts": 0, "positions": 0, "relative_error": None, "top1_agreement": None, "effect_kept": None}
    error = norm = kept = effect = 0.0
    agreed = positions = 0
    for b, a, m in zip(base, adapter, merged, strict=True):
        b, a, m = (np.asarray(logits, dtype=np.float64) for logits in (b, a, m))
        error += float(((m - a) ** 2).sum())
        norm += float((a**2).sum())
        kept += float(((m - b) * (a - b)).sum())
        effect += float(((a - b) ** 2).sum())
        agreed += int((m.argmax(-1) == a.argmax(-1)).sum())
        positions += len(a)
    return {
        "prompts": len(adapter),
        "positions": positions,
        "relative_error": math.sqrt(error / norm) if norm else None,
        "top1_agreement": agreed / positions,
        "effect_kept": kept / effect if effect else None,
    }


def _full_precision_base(base: Path, record: Mapping[str, Any]) -> Any:
    if not record["load_in_4bit"]:
        return load_model(base, "float32")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    quantised = load_model(base, record["trained_in"], device, load_in_4bit=True)
    return quantised.dequantize().to(device="cpu", dtype=torch.float32).eval()


def _held_out_examples(dataset: Path, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    import pandas as pd

    table = pd.read_parquet(dataset / "test.parquet", columns=["prompt", "completion"]).head(GATE_PROMPTS)
    return [encode_example(tokenizer, list(prompt), list(completion)) for prompt, completion in table.to_numpy()]


def _answer_logits(model: Any, ids: list[int], labels: list[int]) -> Any:
    """Logits at the positions that predict the answer, as a float32 array `[answer tokens, vocabulary]`."""
    import torch

    first = next(position for position, label in enumerate(labels) if label >= 0)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, first - 1 : -1]
    return logits.float().cpu().numpy()


def _changes_by_layer(before: Mapping[str, Any], merged: Any) -> list[dict[str, Any]]:
    """Relative change |W' - W| / |W| of the weights, by transformer block; what lies outside the blocks is `other`."""
    changed: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    for name, parameter in merged.named_parameters():
        found = _LAYER.search(name)
        layer = found.group(1) if found else "other"
        changed[layer] += float(((parameter.detach() - before[name]) ** 2).sum())
        whole[layer] += float((before[name] ** 2).sum())
    return [{"layer": layer, "relative_change": math.sqrt(changed[layer] / whole[layer])} for layer in whole if whole[layer]]


def _model_card(facts: Mapping[str, Any]) -> str:
    merge = facts["merge"]
    measured = (
        "No held-out prompts were given, so the merge was not measured."
        if merge["relative_error"] is None
        else f"On {merge['positions']:,} held-out answer tokens its logits differ from those of base and adapter by "
        f"{merge['relative_error']:.2g} (relative), and it prefers the same token at {merge['top1_agreement']:.2%} of them."
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# Podcast script writer

A base model (identity `{facts["base_identity"]}`) with its podcast adapter merged in, in {facts["dtype"]}. {measured}

Prompts are chat messages with `enable_thinking=False`; decode greedily.
"""
