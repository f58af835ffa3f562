"""Token ids of the texts and which texts make a batch: of like length, so that little is padding, in an order set by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

POOL_BATCHES = 50  # texts are sorted by length within a pool of so many batches: nearly no padding, and still a random order
TOKENISED_AT_ONCE = 10_000


@dataclass(frozen=True)
class TokenisedTexts:
    """Texts as token ids, one behind the other in `ids`; text i is `ids[starts[i] : starts[i + 1]]`, its class `labels[i]`.

    `truncated` is how many texts were longer than the limit and were cut.
    """

    ids: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens a text."""
        lengths: np.ndarray = self.starts[1:] - self.starts[:-1]
        return lengths


def tokenise(rows: pd.DataFrame, tokenizer: Any, max_length: int) -> TokenisedTexts:
    """The `text` and `label_id` of rows as token ids, each text cut to `max_length` tokens."""
    import numpy as np

    texts = rows["text"].tolist()
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    truncated = 0
    for first in range(0, len(texts), TOKENISED_AT_ONCE):
        chunk = texts[first : first + TOKENISED_AT_ONCE]
        cut = tokenizer(chunk, truncation=True, max_length=max_length)["input_ids"]
        parts.extend(np.asarray(ids, dtype=np.int32) for ids in cut)
        lengths.extend(len(ids) for ids in cut)
        full = [text for text, ids in zip(chunk, cut, strict=True) if len(ids) >= max_length]
        if full:  # only these may have been longer
            truncated += sum(len(ids) > max_length for ids in tokenizer(full, truncation=False, verbose=False)["input_ids"])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return TokenisedTexts(ids, starts, rows["label_id"].to_numpy(dtype=np.int64), truncated)


def epoch_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, *, group_by_length: bool = True
) -> list[np.ndarray]:
    """The batches of an epoch as positions of texts; each text once, all batches but one of `batch_size` texts.

    With `group_by_length` the texts of a batch are of like length, and the batches come in a random order: texts are
    shuffled, sorted by length within pools, and cut. The order follows from the seed and the epoch alone.
    """
    import numpy as np

    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    if group_by_length:
        width = batch_size * POOL_BATCHES
        pools = [order[first : first + width] for first in range(0, len(order), width)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]) if pools else order
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [batches[number] for number in random.permutation(len(batches))] if group_by_length else batches


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All texts in batches by length, longest first, so that memory runs out at once or not at all; for evaluation."""
    import numpy as np

    order = np.argsort(-lengths, kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def collate(texts: TokenisedTexts, chosen: Sequence[int] | np.ndarray, pad_id: int, width: int | None = None) -> dict[str, Any]:
    """A batch of tensors: `input_ids`, `attention_mask` (texts x tokens) and `labels` (texts).

    It is as wide as its longest text, or `width` tokens.
    """
    import numpy as np
    import torch

    lengths = texts.lengths[chosen]
    width = width or max(1, int(lengths.max()))
    mask = np.arange(width) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([texts.ids[texts.starts[number] : texts.starts[number + 1]] for number in chosen])
    batch: dict[str, torch.Tensor] = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "labels": torch.from_numpy(texts.labels[chosen]),
    }
    return batch


def padding_share(lengths: np.ndarray, batches: Sequence[np.ndarray], width: int | None = None) -> float:
    """Share of the positions in these batches that hold padding, from 0 to 1."""
    positions = sum((width or int(lengths[batch].max())) * len(batch) for batch in batches)
    tokens = sum(int(lengths[batch].sum()) for batch in batches)
    return 1 - tokens / positions if positions else 0.0
