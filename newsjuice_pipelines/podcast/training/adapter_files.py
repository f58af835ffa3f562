"""The files of an adapter, and whether they belong to a base model. What cannot be merged is refused here, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.base_model import base_identity, differing_files, load_tokenizer, tensor_shapes
from newsjuice_pipelines.podcast.training.chat import tokenizer_fingerprint
from newsjuice_pipelines.podcast.training.finetune import BASE_RECORD

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NAMED = 3
_AGAIN = "materialise lora_adapter again"


class MergeError(ValueError):
    """The adapter cannot be merged into this base."""


def read_base_record(adapter: Path) -> dict[str, Any]:
    """Which base an adapter was trained on, as `train_adapter` wrote it down.

    Raises:
        MergeError: the record is missing or cannot be read.
    """
    file = adapter / BASE_RECORD
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MergeError(f"{adapter} has no {BASE_RECORD}, so its base is unknown: {_AGAIN}.") from None
    except json.JSONDecodeError as error:
        raise MergeError(f"{file} is damaged ({error}), so the adapter's base is unknown: {_AGAIN}.") from None
    missing = [key for key in ("identity", "files", "load_in_4bit", "trained_in") if key not in record]
    if missing:
        raise MergeError(f"{file} does not say {', '.join(missing)}, so the adapter's base is unknown: {_AGAIN}.")
    return record


def check_adapter_files(adapter: Path) -> None:
    """Raise `MergeError` unless `adapter` holds a LoRA adapter with its tokenizer."""
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "tokenizer.json") if not (adapter / name).is_file()]
    if missing:
        raise MergeError(f"the adapter in {adapter} lacks {', '.join(missing)}: {_AGAIN}.")
    try:
        kind = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("peft_type")
    except json.JSONDecodeError as error:
        raise MergeError(f"{ADAPTER_CONFIG} of the adapter in {adapter} is damaged ({error}): {_AGAIN}.") from None
    if kind != "LORA":
        raise MergeError(f"the adapter in {adapter} is of the kind {kind!r}, and only LORA can be merged here: {_AGAIN}.")


def check_base(base: Path, adapter: Path, record: Mapping[str, Any]) -> str:
    """The identity of `base`; refuses another one than the adapter was trained on, and says what is different.

    Raises:
        MergeError: another tokenizer, or other weights or another configuration.
    """
    found = base_identity(base)
    if found["identity"] != record["identity"]:
        names = differing_files(record["files"], found["files"])
        pair = f"(trained on the base {record['identity']}, this one is {found['identity']}; different: {', '.join(names)})"
        way_out = f"{_AGAIN} on this base, or materialise base_model again as it was"
        if names == ["tokenizer.json"]:
            raise MergeError(
                f"the adapter was trained with another tokenizer {pair}: the same text would become other tokens. {way_out}."
            )
        also = "and another tokenizer " if "tokenizer.json" in names else ""
        raise MergeError(
            f"the adapter was trained on other weights or another revision of the base {also}{pair}: its changes mean nothing "
            f"there. {way_out}."
        )
    if _cutting(adapter) != _cutting(base):
        raise MergeError(f"the tokenizer in the adapter's folder {adapter} cuts text otherwise than its base's: {_AGAIN}.")
    return str(found["identity"])


def _cutting(folder: Path) -> str:
    """How the tokenizer in `folder` cuts text into tokens. Its chat template may differ from the base's (defect D4)."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = None
    return tokenizer_fingerprint(tokenizer)


def check_adapter_fits(shapes: Mapping[str, tuple[int, ...]], adapter: Path) -> set[str]:
    """Names of the modules that the adapter changes; refuses one that was made for another architecture.

    Args:
        shapes: of the base model's parameters by name.
        adapter: folder of the adapter.

    Raises:
        MergeError: a changed matrix is not in the base or has another shape there, or half of a pair is missing.
    """
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in tensor_shapes(adapter / ADAPTER_WEIGHTS).items():
        module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        pairs.setdefault(module, {})[part] = shape
    wrong = []
    for module, pair in pairs.items():
        target = shapes.get(f"{module}.weight")
        if set(pair) != {"lora_A", "lora_B"}:
            wrong.append(f"{module} has {' and '.join(sorted(pair))} instead of lora_A and lora_B")
        elif target is None:
            wrong.append(f"{module} is not in the base")
        elif target != (pair["lora_B"][0], pair["lora_A"][1]) or pair["lora_B"][1] != pair["lora_A"][0]:
            wrong.append(f"{module} is {pair['lora_B'][0]} x {pair['lora_A'][1]}, in the base {' x '.join(map(str, target))}")
    if wrong or not pairs:
        named = "; ".join(wrong[:NAMED]) + (f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else "")
        raise MergeError(
            f"the adapter in {adapter} is damaged or for another architecture than the base: {named or 'it is empty'}. {_AGAIN}."
        )
    return set(pairs)
