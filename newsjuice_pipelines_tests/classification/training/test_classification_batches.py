"""Token ids and batches: nothing is lost, little is padding, and the order follows from the seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.training.batches import (
    TokenisedTexts,
    collate,
    epoch_batches,
    padding_share,
    sorted_batches,
    tokenise,
)
from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)


@pytest.fixture(scope="module")
def headlines() -> TokenisedTexts:
    from transformers import AutoTokenizer

    texts = ["Short", "A headline of some words", "One that is far too long for the limit set here", ""]
    rows = pd.DataFrame({"text": texts, "label_id": [0, 1, 2, 1]})
    return tokenise(rows, AutoTokenizer.from_pretrained(packaged_minilm()), 8)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 40), epoch=st.integers(0, 5), grouped=st.booleans())
def test_every_text_is_in_one_batch_of_an_epoch(lengths: np.ndarray, batch_size: int, epoch: int, grouped: bool) -> None:
    batches = epoch_batches(lengths, batch_size, 42, epoch, group_by_length=grouped)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(len(batch) for batch in batches)[1:] == [batch_size] * (len(batches) - 1)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = np.arange(1, 101)
    first, again = (np.concatenate(epoch_batches(lengths, 8, 42, 0)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for seed, epoch in ((42, 1), (43, 0)):
        assert list(np.concatenate(epoch_batches(lengths, 8, seed, epoch))) != list(first)


def test_batches_of_like_length_hold_far_less_padding_than_random_ones() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 5000)
    grouped, mixed = (
        padding_share(lengths, epoch_batches(lengths, 32, 1, 0, group_by_length=grouping)) for grouping in (True, False)
    )
    assert grouped < 0.03 < 0.4 < mixed


def test_batches_of_like_length_do_not_come_in_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 3200)
    longest = np.array([lengths[batch].max() for batch in epoch_batches(lengths, 32, 1, 0)])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_padding_to_a_width_is_counted() -> None:
    assert padding_share(np.array([2, 4]), [np.array([0, 1])], width=8) == 10 / 16
    assert padding_share(np.array([2, 4]), [np.array([0, 1])]) == 2 / 8


def test_evaluation_batches_hold_every_text_longest_first() -> None:
    batches = sorted_batches(np.array([3, 9, 5]), 2)
    assert [list(batch) for batch in batches] == [[1, 2], [0]]


def test_texts_beyond_the_limit_are_cut_and_counted_and_keep_their_end_mark(headlines: TokenisedTexts) -> None:
    assert headlines.truncated == 1
    assert list(headlines.lengths) == [3, 7, 8, 2]
    ends = headlines.ids[headlines.starts[1:] - 1]
    assert len(set(ends.tolist())) == 1


@pytest.mark.parametrize(("width", "expected"), [(None, 7), (16, 16)])
def test_a_batch_is_as_wide_as_its_longest_text_unless_padding_is_asked_for(
    headlines: TokenisedTexts, width: int | None, expected: int
) -> None:
    batch = collate(headlines, [0, 1], pad_id=0, width=width)
    assert batch["input_ids"].shape == (2, expected)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 7]
    assert batch["input_ids"][0, 3:].eq(0).all()
    assert batch["labels"].tolist() == [0, 1]
