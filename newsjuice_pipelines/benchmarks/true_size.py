"""A base model with the shape of Qwen3-0.6B and random weights, for timings that need no download.

What it writes is noise; only what it costs means anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Qwen/Qwen3-0.6B's config.json: 596 M parameters, 156 M of them in the embedding that is also the head.
QWEN3_0_6B: Mapping[str, int] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def build_true_size(tokenizer: Any, out: Path, shape: Mapping[str, int] = QWEN3_0_6B, seed: int = 42) -> int:
    """Write a Qwen3 with random bf16 weights and `tokenizer` into `out`, in Hugging Face layout; returns its parameters.

    Args:
        tokenizer: any with a chat template and at most as many tokens as the shape has.
        out: an existing empty directory.
        shape: sizes of a `Qwen3Config`.
        seed: decides the weights.
    """
    import torch

    model = random_qwen3(tokenizer, shape, seed).to(torch.bfloat16)  # as the hub has it
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def random_qwen3(tokenizer: Any, shape: Mapping[str, int], seed: int) -> Any:
    """A Qwen3 of that shape with random float32 weights and the tokenizer's end token."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from newsjuice_pipelines.runtime.seeds import set_seeds

    set_seeds(seed)
    config = Qwen3Config(
        **shape,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)
