"""Rows that share a sequence are trained as if each were alone, and models whose masks say more keep their own attention."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training.base_model import load_model
from newsjuice_pipelines.podcast.training.packed_attention import packed_attention, use_packed_attention

ROWS = ([11, 12, 13, 14, 15, 16, 17], [50], [90, 80, 70, 60, 50], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41])


@pytest.fixture
def packed_batch() -> dict[str, Any]:
    """The rows in one sequence, as the trainer's own collator gives them."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch: dict[str, Any] = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(
        [{"input_ids": row, "labels": row} for row in ROWS]
    )
    assert batch["cu_seq_lens_q"].tolist() == [0, 7, 8, 13, 25]
    assert batch["max_length_q"] == 12
    return batch


def test_packed_documents_do_not_see_each_other(base: Path, packed_batch: dict[str, Any]) -> None:
    import torch

    model = load_model(base)
    alone = load_model(base)
    use_packed_attention(model)

    with torch.inference_mode():
        together = model(**packed_batch, use_cache=False).logits[0]
        expected = torch.cat([alone(torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])

    assert torch.allclose(together, expected, atol=1e-5)


def test_packed_rows_have_the_gradients_of_single_rows(base: Path, packed_batch: dict[str, Any]) -> None:
    import torch

    model, alone = load_model(base), load_model(base)
    use_packed_attention(model)
    scored = sum(len(row) - 1 for row in ROWS)

    model(**packed_batch, use_cache=False).loss.backward()
    for row in ROWS:
        ids = torch.tensor([row])
        if len(row) > 1:
            (alone(ids, labels=ids, use_cache=False).loss * (len(row) - 1) / scored).backward()

    for packed, single in zip(model.parameters(), alone.parameters(), strict=True):
        assert packed.grad is not None
        torch.testing.assert_close(packed.grad, single.grad, rtol=1e-5, atol=1e-6)


def test_the_kernel_of_the_gpu_agrees_with_attention_row_by_row() -> None:
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("needs a GPU that computes in bf16")
    torch.manual_seed(0)
    bounds = torch.tensor([0, *map(len, ROWS)]).cumsum(0).to(torch.int32)
    tokens, heads, shared_heads, size = int(bounds[-1]), 4, 2, 64
    module = SimpleNamespace(num_key_value_groups=heads // shared_heads, is_causal=True, training=True)
    parts = [torch.randn(1, count, tokens, size) for count in (heads, shared_heads, shared_heads)]
    weights = torch.randn(1, tokens, heads, size)

    def attend(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        there = [part.to(device, dtype).requires_grad_() for part in parts]
        options = {"max_length_q": 12, "max_length_k": 12, "scaling": size**-0.5, "dropout": 0.0}
        attended, _ = packed_attention(module, *there, None, cu_seq_lens_q=bounds.to(device), **options)
        (attended.float() * weights.to(device)).sum().backward()
        return [part.detach().float().cpu() for part in (attended, *(part.grad for part in there))]

    for found, expected in zip(attend("cuda", torch.bfloat16), attend("cpu", torch.float32), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_only_models_that_attend_to_everything_take_it() -> None:
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Qwen3Config

    size = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    kept = {}
    for name, config in {
        "gemma3": Gemma3TextConfig(**size, sliding_window=4),
        "mistral with a window": MistralConfig(**size, sliding_window=4),
        "qwen3 with a window": Qwen3Config(**size, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "qwen3": Qwen3Config(**size, sliding_window=4),
        "mistral": MistralConfig(**size, sliding_window=None),
    }.items():
        model = AutoModelForCausalLM.from_config(config)
        stock = model.config._attn_implementation
        use_packed_attention(model)
        kept[name] = model.config._attn_implementation == stock

    assert kept == {
        "gemma3": True,
        "mistral with a window": True,
        "qwen3 with a window": True,
        "qwen3": False,
        "mistral": False,
    }


def test_packed_rows_of_a_model_with_a_sliding_window_are_right_too(packed_batch: dict[str, Any]) -> None:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        sliding_window_pattern=2,
    )
    model = Gemma3ForCausalLM(config).eval()
    with torch.inference_mode():
        expected = torch.cat([model(torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])
        use_packed_attention(model)
        together = model(**packed_batch, use_cache=False).logits[0]

    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
