"""What a model folder holds before it is quantised: is it a model that the exporter knows, and is all of it there?

Only headers of the weights are read. Turning the tensors into a GGUF file is `gguf_export.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How Qwen2 and Qwen3 cut text before their merges; a GGUF file names the pattern instead of holding it.
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Settings that the exporter writes into the file as they are. None has a default here: a guess would be another model.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
EXPECTED_SETTINGS: dict[str, Any] = {
    "attention_bias": False,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "quantization_config": None,
}
OPTIONAL_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
STORED_DTYPES = ("F32", "BF16", "F16")
_AGAIN = "materialise the asset that wrote it again"


class QuantisingError(ValueError):
    """The model is damaged, or its folder lacks what a quantised form needs."""


class UnknownModelError(QuantisingError):
    """The model may well be whole, but is none that the exporter knows; the message names no path."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SourceModel:
    """A whole Qwen3 in a folder."""

    folder: Path
    config: dict[str, Any]
    """Of `config.json`, with `rope_theta` at the top."""
    tensors: dict[str, StoredTensor]
    """By GGUF name, sorted."""


def read_source(model: Path) -> SourceModel:
    """Look through a model folder.

    Raises:
        UnknownModelError: its architecture, settings, tokenizer or tensors are none that the exporter knows.
        QuantisingError: a file is missing or damaged, or a tensor is missing or has another shape than `config.json` says.
    """
    config = _known_config(read_json_object(model / "config.json"))
    for name in OPTIONAL_FILES:
        if (model / name).is_file():
            read_json_object(model / name)
    _check_tokenizer(read_json_object(model / "tokenizer.json"), config)
    return SourceModel(model, config, _known_tensors(model, config))


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        QuantisingError: the file is missing, or holds something else.
    """
    if not file.is_file():
        raise QuantisingError(f"{file} is missing: quantise a whole model folder.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise QuantisingError(f"{file} is damaged ({error}): {_AGAIN}.") from error
    if not isinstance(content, dict):
        raise QuantisingError(f"{file} is damaged (it holds no JSON object): {_AGAIN}.")
    return content


def _known_config(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "qwen3":
        raise UnknownModelError(f"the exporter knows Qwen3, not {config.get('model_type')!r}")
    for name, expected in EXPECTED_SETTINGS.items():
        if config.get(name, expected) != expected:
            raise UnknownModelError(f"the exporter does not know {name}={config[name]!r}")
    for name in SIZES:
        if type(config.get(name)) is not int or config[name] < 1:
            raise UnknownModelError(f"config.json has no usable {name}: {config.get(name)!r}")
    layers = ["full_attention"] * config["num_hidden_layers"]
    if config.get("layer_types", layers) != layers:
        raise UnknownModelError(f"the exporter does not know layer_types={config['layer_types']!r}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if not isinstance(rope, dict) or kind != "default":
        raise UnknownModelError(f"the exporter does not know rotary embeddings of type {kind!r}")
    numbers = {"rope_theta": rope.get("rope_theta") or config.get("rope_theta"), "rms_norm_eps": config.get("rms_norm_eps")}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not value > 0:
            raise UnknownModelError(f"config.json has no usable {name}: {value!r}")
    return {**config, **numbers}


def _check_tokenizer(tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    try:
        own = tokenizer["model"]
        known = own["type"] == "BPE" and "merges" in own and _split_patterns(tokenizer["pre_tokenizer"]) == [QWEN2_PATTERN]
        largest = max([*own["vocab"].values(), *(added["id"] for added in tokenizer["added_tokens"])])
    except (KeyError, TypeError, AttributeError, ValueError):  # another layout
        known, largest = False, 0
    if not known:
        raise UnknownModelError("the exporter knows byte-level tokenizers that cut text as Qwen's do, and this one does not")
    if largest >= config["vocab_size"]:
        raise UnknownModelError(f"the tokenizer has the token id {largest}, and the model only {config['vocab_size']} tokens")


def _split_patterns(part: dict[str, Any] | None) -> list[str | None]:
    """The regular expressions by which a pre-tokenizer cuts text, in their order."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [pattern for inner in part["pretokenizers"] for pattern in _split_patterns(inner)]
    return [part["pattern"].get("Regex")] if part["type"] == "Split" else []


def _known_tensors(model: Path, config: dict[str, Any]) -> dict[str, StoredTensor]:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    shapes = _shapes(config)
    found: dict[str, StoredTensor] = {}
    for tensor, dtype in _stored_tensors(model):
        name = names.get_name(tensor.name, try_suffixes=(".weight",))
        if name == "output.weight" and name not in shapes:
            continue  # a copy of the embeddings, to which the output layer is tied
        if name not in shapes:
            raise UnknownModelError(f"the weights have a tensor {tensor.name!r} that Qwen3 does not have")
        if dtype not in STORED_DTYPES:
            raise UnknownModelError(f"the tensor {tensor.name!r} is stored in {dtype}, not in one of {', '.join(STORED_DTYPES)}")
        if tensor.shape != shapes[name]:
            raise QuantisingError(
                f"{tensor.name} in {tensor.file} has the shape {tensor.shape}, and config.json asks for {shapes[name]}: {_AGAIN}."
            )
        found[name] = tensor
    missing = sorted(shapes.keys() - found.keys())
    if missing:
        raise QuantisingError(f"{model} lacks {len(missing)} tensors, such as {missing[0]}: {_AGAIN}.")
    return dict(sorted(found.items()))


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a Qwen3, by GGUF name."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (query, hidden),
        "attn_k": (key, hidden),
        "attn_v": (key, hidden),
        "attn_output": (hidden, query),
        "attn_q_norm": (head,),
        "attn_k_norm": (head,),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"blk.{layer}.{name}.weight": shape for layer in range(config["num_hidden_layers"]) for name, shape in block.items()
    }
    embeddings = (config["vocab_size"], hidden)
    shapes |= {"token_embd.weight": embeddings, "output_norm.weight": (hidden,)}
    return shapes if config.get("tie_word_embeddings", False) else {**shapes, "output.weight": embeddings}


def _stored_tensors(model: Path) -> list[tuple[StoredTensor, str]]:
    """Every tensor of the weights files with its number format, from their headers."""
    from safetensors import SafetensorError, safe_open

    found = []
    for file in _weights_files(model):
        try:
            with safe_open(file, "pt") as handle:
                for name in handle.keys():  # noqa: SIM118  # not a dictionary
                    part = handle.get_slice(name)
                    found.append((StoredTensor(file, name, tuple(part.get_shape())), str(part.get_dtype())))
        except (SafetensorError, OSError) as error:
            raise QuantisingError(f"the weights {file} are damaged ({error}): {_AGAIN}.") from error
    return found


def _weights_files(model: Path) -> list[Path]:
    """The only weights file, or the shards that an index names; the same choice as Transformers makes."""
    whole, index = model / "model.safetensors", model / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise QuantisingError(f"{model} has no weights (model.safetensors or {index.name}): {_AGAIN}.")
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and name == Path(name).name for name in places.values()):
        raise QuantisingError(f"{index} is damaged (its weight_map names no files of this folder): {_AGAIN}.")
    files = [model / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise QuantisingError(f"{model} lacks {', '.join(missing)}, which {index.name} names: {_AGAIN}.")
    return files
