"""Attention row by row is what the mask of the whole sequence asks for, forward and backward."""

from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training.base_model import load_model
from newsjuice_pipelines.podcast.training.packed_attention import PACKED_ATTENTION, use_packed_attention

ROWS = (7, 1, 12, 5)


@pytest.fixture
def packed_batch() -> dict[str, Any]:
    """Four rows in one sequence, as the collator of the trainer packs them."""
    import torch

    bounds = torch.tensor([0, *ROWS]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.arange(sum(ROWS))[None] + 20,
        "position_ids": torch.cat([torch.arange(length) for length in ROWS])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(ROWS),
        "max_length_k": max(ROWS),
    }


def gradients(model: Any, batch: dict[str, Any]) -> tuple[Any, list[Any]]:
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def test_packed_rows_have_the_logits_and_gradients_of_the_mask(base: Path, packed_batch: dict[str, Any]) -> None:
    import torch

    model = load_model(base)
    expected_logits, expected_gradients = gradients(model, packed_batch)
    use_packed_attention(model)
    assert model.config._attn_implementation == PACKED_ATTENTION

    logits, found = gradients(model, packed_batch)

    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    for one, other in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_row_does_not_see_its_neighbours(base: Path, packed_batch: dict[str, Any]) -> None:
    import torch

    model = load_model(base)
    use_packed_attention(model)
    other = {**packed_batch, "input_ids": packed_batch["input_ids"].clone()}
    other["input_ids"][0, : ROWS[0]] += 1

    with torch.no_grad():
        logits, changed = (model(**batch, use_cache=False).logits[0] for batch in (packed_batch, other))

    torch.testing.assert_close(logits[ROWS[0] :], changed[ROWS[0] :])
    assert not torch.allclose(logits[: ROWS[0]], changed[: ROWS[0]])


def test_padded_batches_are_computed_as_ever(base: Path) -> None:
    import torch

    ids, mask = torch.tensor([[30, 31, 32, 33], [40, 41, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    model = load_model(base)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        use_packed_attention(model)
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])
