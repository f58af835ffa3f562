"""A model folder in Hugging Face layout to one GGUF file with 8-bit or 4-bit weights, and back to float32 for comparison.

Which models can become one is `source_model.py`, whether the result is good `quantised_gate.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from newsjuice_pipelines.podcast.quantising.source_model import (
    QuantisingError,
    SourceModel,
    StoredTensor,
    read_json_object,
    read_source,
)
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

Precision = Literal["int8", "int4"]
FILES: dict[str, str] = {"int8": "model-q8_0.gguf", "int4": "model-q4_0.gguf"}
BLOCK_VALUES = 32  # values that share one scale in Q8_0 and Q4_0
# The matrix of the embeddings is also the output layer where the two are tied, and suffers most from 4 bits.
ALWAYS_INT8 = ("token_embd.weight", "output.weight")
_CHUNK_ROWS = 4096


def export_gguf(model: Path, out: Path, precision: Precision) -> dict[str, Any]:
    """Write the model of a folder as one GGUF file, which OpenVINO GenAI and llama.cpp read.

    Matrices become Q8_0, or Q4_0 with embeddings and output layer in Q8_0; those whose rows do not fill whole blocks
    become float16, vectors stay float32. One matrix at a time is in memory.

    Args:
        model: folder of a model that `read_source` knows.
        out: the file to write.
        precision: number format of the matrices.

    Returns:
        Facts: the file's name and size, and how many tensors it has of each type.

    Raises:
        QuantisingError: the model is unknown, damaged or incomplete, or has values that are not finite.
    """
    import gguf

    source = read_source(model)
    types = {name: _type_of(name, tensor.shape, precision) for name, tensor in source.tensors.items()}
    writer = gguf.GGUFWriter(out, "qwen3")
    try:
        _add_shape(writer, source.config, precision)
        _add_tokenizer(writer, source)
        for name, tensor in source.tensors.items():
            _announce(writer, name, tensor.shape, types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with ExitStack() as stack:
            for name, values in _values(source.tensors, stack):
                writer.write_tensor_data(_converted(values, types[name], source.tensors[name].name))
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

    writer.add_name("student")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kind = gguf.LlamaFileType.MOSTLY_Q8_0 if precision == "int8" else gguf.LlamaFileType.MOSTLY_Q4_0
    writer.add_file_type(kind)


def _add_tokenizer(writer: Any, source: SourceModel) -> None:
    import gguf

    tokenizer = load_tokenizer(source.folder)
    saved = read_json_object(source.folder / "tokenizer.json")
    size = source.config["vocab_size"]
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


def _values(tensors: Mapping[str, StoredTensor], stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """GGUF names and PyTorch tensors, one after another."""
    from safetensors import safe_open

    handles = {file: stack.enter_context(safe_open(file, "pt")) for file in {tensor.file for tensor in tensors.values()}}
    for name, tensor in tensors.items():
        yield name, handles[tensor.file].get_tensor(tensor.name)


def _type_of(name: str, shape: Sequence[int], precision: Precision) -> Any:
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if shape[-1] % BLOCK_VALUES:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType.Q8_0 if precision == "int8" or name in ALWAYS_INT8 else GGMLQuantizationType.Q4_0


def _announce(writer: Any, name: str, shape: Sequence[int], kind: Any) -> None:
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
