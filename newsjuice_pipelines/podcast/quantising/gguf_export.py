"""A model folder in Hugging Face layout to one GGUF file with 8-bit or 4-bit weights, and back to float32 for comparison.

Only Qwen3 is known, with a byte-level tokenizer that cuts text as Qwen's do. Whether the result is good is `quantised_gate.py`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

Precision = Literal["int8", "int4"]
FILES: dict[str, str] = {"int8": "model-q8_0.gguf", "int4": "model-q4_0.gguf"}
BLOCK_VALUES = 32  # values that share one scale in Q8_0 and Q4_0
# The matrix of the embeddings is also the output layer where the two are tied, and suffers most from 4 bits.
ALWAYS_INT8 = ("token_embd.weight", "output.weight")
# How Qwen2 and Qwen3 cut text before their merges; a GGUF file names the pattern instead of holding it.
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOCK_TENSORS = (
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
)
_CHUNK_ROWS = 4096


class QuantisingError(ValueError):
    """The model is damaged, or its folder lacks what a quantised form needs."""


def unsupported(model: Path) -> str | None:
    """Why the model in a folder cannot become a GGUF file here; None when it can."""
    config = _read(model / "config.json")
    if config.get("model_type") != "qwen3":
        return f"the exporter knows Qwen3, not {config.get('model_type')!r}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return f"the exporter does not know rotary embeddings of type {rope.get('rope_type', rope.get('type'))!r}"
    for name, expected in (("attention_bias", False), ("use_sliding_window", False), ("hidden_act", "silu")):
        if config.get(name, expected) != expected:
            return f"the exporter does not know {name}={config[name]!r}"
    tokenizer = _read(model / "tokenizer.json")
    if tokenizer["model"].get("type") != "BPE" or _split_patterns(tokenizer.get("pre_tokenizer")) != [QWEN2_PATTERN]:
        return "the exporter knows byte-level tokenizers that cut text as Qwen's do, and this one does not"
    return None


def export_gguf(model: Path, out: Path, precision: Precision) -> dict[str, Any]:
    """Write the model of a folder as one GGUF file, which OpenVINO GenAI and llama.cpp read.

    Matrices become Q8_0, or Q4_0 with embeddings and output layer in Q8_0; those whose rows do not fill whole blocks
    become float16, vectors stay float32. One matrix at a time is in memory.

    Args:
        model: a folder that `unsupported` has nothing against; weights in float32, bfloat16 or float16.
        out: the file to write.
        precision: number format of the matrices.

    Returns:
        Facts: the file's name and size, and how many tensors it has of each type.

    Raises:
        QuantisingError: a weights file is damaged, tensors are missing or unknown, or values are not finite.
    """
    import gguf
    from safetensors import SafetensorError

    config = _read(model / "config.json")
    writer = gguf.GGUFWriter(out, "qwen3")
    try:
        _add_shape(writer, config, precision)
        _add_tokenizer(writer, model, config)
        with ExitStack() as stack:
            tensors = _open_tensors(model, config, stack)
            types = {
                name: _type_of(name, handle.get_slice(source).get_shape(), precision)
                for name, (handle, source) in tensors.items()
            }
            for name, (handle, source) in tensors.items():
                _announce(writer, name, handle.get_slice(source).get_shape(), types[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, (handle, source) in tensors.items():
                writer.write_tensor_data(_converted(handle.get_tensor(source), types[name], source))
    except SafetensorError as error:
        raise QuantisingError(f"the weights in {model} are damaged ({error}): materialise merged_model again.") from error
    finally:
        writer.close()
    counts = Counter(kind.name for kind in types.values())
    return {"file": out.name, "size_bytes": out.stat().st_size, "tensors": dict(sorted(counts.items()))}


def dequantised(file: Path, model: Any) -> Iterator[tuple[str, Any]]:
    """Names in a PyTorch `model` and float32 arrays of the matrices and vectors in a GGUF file, one after another."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.num_hidden_layers)
    own = {names.get_name(name, try_suffixes=(".weight",)): name for name, _ in model.named_parameters()}
    for tensor in gguf.GGUFReader(file).tensors:
        yield own[tensor.name], gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _add_shape(writer: Any, config: dict[str, Any], precision: Precision) -> None:
    import gguf

    rope = config.get("rope_parameters") or {}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_name("student")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(rope.get("rope_theta") or config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kind = gguf.LlamaFileType.MOSTLY_Q8_0 if precision == "int8" else gguf.LlamaFileType.MOSTLY_Q4_0
    writer.add_file_type(kind)


def _add_tokenizer(writer: Any, model: Path, config: dict[str, Any]) -> None:
    import gguf

    tokenizer = load_tokenizer(model)
    saved = _read(model / "tokenizer.json")
    size = config["vocab_size"]
    # A vocabulary is often padded to a round size: places without a token get names that no text can spell.
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for text, number in saved["model"]["vocab"].items():
        tokens[number], types[number] = text, gguf.TokenType.NORMAL
    for added in saved["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    merges = saved["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _open_tensors(model: Path, config: dict[str, Any], stack: ExitStack) -> dict[str, tuple[Any, str]]:
    """Of each tensor's GGUF name: the open file that holds it, and its name there. One of several shards, or the only file."""
    import gguf
    from safetensors import safe_open

    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, layers)
    tied = config.get("tie_word_embeddings", False)
    index = model / "model.safetensors.index.json"
    files = (
        sorted(set(_read(index)["weight_map"].values()))
        if index.is_file()
        else [file.name for file in model.glob("*.safetensors")]
    )
    expected = {"token_embd.weight", "output_norm.weight"} | (set() if tied else {"output.weight"})
    expected |= {f"blk.{layer}.{name}.weight" for layer in range(layers) for name in BLOCK_TENSORS}
    found: dict[str, tuple[Any, str]] = {}
    for file in files:
        handle = stack.enter_context(safe_open(model / file, "pt"))
        for source in handle.keys():  # noqa: SIM118  # not a dictionary
            name = names.get_name(source, try_suffixes=(".weight",))
            if tied and name == "output.weight":
                continue  # a copy of the embeddings
            if name not in expected:
                raise QuantisingError(
                    f"{model / file} has a tensor {source} that Qwen3 does not have: use the model as it was merged."
                )
            found[name] = (handle, source)
    missing = sorted(expected - found.keys())
    if missing:
        raise QuantisingError(f"{model} lacks {len(missing)} tensors, such as {missing[0]}: materialise merged_model again.")
    return {name: found[name] for name in sorted(found)}


def _type_of(name: str, shape: list[int], precision: Precision) -> Any:
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if shape[-1] % BLOCK_VALUES:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType.Q8_0 if precision == "int8" or name in ALWAYS_INT8 else GGMLQuantizationType.Q4_0


def _announce(writer: Any, name: str, shape: list[int], kind: Any) -> None:
    import gguf
    import numpy as np

    plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(kind)
    stored = shape if plain else gguf.quant_shape_to_byte_shape(shape, kind)
    dtype = np.dtype(plain or np.uint8)
    writer.add_tensor_info(name, stored, dtype, math.prod(stored) * dtype.itemsize, raw_dtype=None if plain else kind)


def _converted(tensor: Any, kind: Any, source: str) -> Any:
    """The tensor in the number format `kind`, some rows at a time, so that no whole copy in float32 is made."""
    import gguf
    import numpy as np

    parts = []
    for rows in tensor.split(_CHUNK_ROWS):
        values = rows.float().numpy()
        if not np.isfinite(values).all():
            raise QuantisingError(
                f"{source} has values that are not finite: the model is broken, materialise merged_model again."
            )
        parts.append(gguf.quants.quantize(values, kind))
    whole = np.concatenate(parts)
    if whole.dtype == np.float16 and not np.isfinite(whole).all():
        raise QuantisingError(f"{source} has values too large for float16, and rows that fill no blocks of {BLOCK_VALUES}.")
    return whole


def _split_patterns(part: dict[str, Any] | None) -> list[str | None]:
    """The regular expressions by which a pre-tokenizer cuts text, in their order."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [pattern for inner in part["pretokenizers"] for pattern in _split_patterns(inner)]
    return [part["pattern"].get("Regex")] if part["type"] == "Split" else []


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise QuantisingError(f"{file} is missing: quantise a whole model folder.")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
