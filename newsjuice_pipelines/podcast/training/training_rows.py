"""The student data set as token ids and labels, the way the trainer takes them, with every row accounted for.

Making the data set is `dataset.py`; encoding one conversation is `chat_tokens.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.chat import tokenizer_fingerprint
from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL, PLAIN_TEMPLATE, encode_example
from newsjuice_pipelines.podcast.training.dataset import DATASET_RECORD
from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
from newsjuice_pipelines.runtime.provenance import file_fingerprint, fingerprint

logger = logging.getLogger("newsjuice.finetune")

SPLIT_FILES = ("train.parquet", "validation.parquet", "test.parquet")
NAMED_ROWS = 5


class FinetuneError(ValueError):
    """The adapter cannot be trained on this data set, base model or configuration."""


@dataclass
class TrainingRows:
    """Rows of one split, and what was done to them."""

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    useful_tokens: int = 0
    """Tokens of articles and answers; the rest is instruction and template."""
    cut: int = 0
    """Rows that lost their end to `max_length`."""
    without_answer: int = 0
    """Rows of which nothing to train on was left; they are dropped."""
    without_end_token: int = 0
    """Rows whose last label is not the end token."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.input_ids))

    def examples(self, count: int) -> list[tuple[list[int], list[int]]]:
        """Ids and labels of the first `count` rows."""
        return list(zip(self.input_ids[:count], self.labels[:count], strict=True))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.input_ids))


def encode_rows(file: Path, tokenizer: Any, config: FinetuneConfig) -> TrainingRows:
    """Token ids and labels of one split. Unless a defect is asked for, rows are whole and end with the end token.

    Raises:
        FinetuneError: the split is missing or empty, or rows are longer than `max_length` or lack their end; names them.
    """
    import pandas as pd

    if not file.is_file():
        raise FinetuneError(f"{file.name} is missing in {file.parent}: materialise student_dataset again.")
    table = pd.read_parquet(file, columns=["chunk_id", "chunk_text", "prompt", "completion"])
    if table.empty:
        raise FinetuneError(f"{file.name} of the student data set has no rows: give more teacher scripts and make it again.")
    rows, end = TrainingRows(), tokenizer.eos_token_id
    too_long, without_end = [], []
    for chunk_id, article, prompt, completion in table.itertuples(index=False):
        ids, labels = encode_example(tokenizer, list(prompt), list(completion))
        if labels[-1] != end:
            without_end.append(chunk_id)
        elif not config.end_token:
            ids, labels = ids[:-1], labels[:-1]
        if len(ids) > config.max_length:
            too_long.append(f"{chunk_id} ({len(ids)})")
            ids, labels = ids[: config.max_length], labels[: config.max_length]
        answer_tokens = sum(label != IGNORED_LABEL for label in labels)
        if not config.completion_only_loss:
            labels = ids
        elif not answer_tokens:
            rows.without_answer += 1
            continue
        rows.input_ids.append(ids)
        rows.labels.append(labels)
        rows.useful_tokens += answer_tokens + _article_tokens(tokenizer, article, list(prompt), len(ids) - answer_tokens)
        rows.without_end_token += labels[-1] != end
    if too_long and not config.cut_long_rows:
        raise FinetuneError(
            f"{len(too_long)} of {len(table)} rows of {file.name} are longer than max_length {config.max_length} tokens: "
            f"{_some(too_long)}. Raise max_length, or lower the data set's max_tokens and materialise student_dataset again; "
            "an answer is not cut."
        )
    if without_end and config.end_token:
        raise FinetuneError(
            f"{len(without_end)} of {len(table)} rows of {file.name} do not end with {tokenizer.eos_token!r}, so the student "
            f"would never learn to stop: {_some(without_end)}. The chat template must close the assistant's turn with it."
        )
    if not len(rows):
        raise FinetuneError(
            f"max_length {config.max_length} cuts the whole answer off all {len(table)} rows of {file.name}: raise max_length."
        )
    rows.cut = len(too_long)
    return rows


def check_tokenizer(dataset: Path, tokenizer: Any) -> None:
    """Raise `FinetuneError` unless the data set was fitted with this tokenizer and chat template."""
    try:
        record = json.loads((dataset / DATASET_RECORD).read_text(encoding="utf-8"))
        fitted_with = record["tokenizer"]
    except (OSError, ValueError, KeyError):
        raise FinetuneError(
            f"the data set in {dataset} does not say which tokenizer it was fitted with ({DATASET_RECORD}): materialise "
            "student_dataset again."
        ) from None
    found = tokenizer_fingerprint(tokenizer)
    if fitted_with != found:
        raise FinetuneError(
            f"the data set was fitted with another tokenizer or chat template ({str(fitted_with)[:12]}) than the base model's "
            f"({found[:12]}), so lengths and end tokens would be wrong: materialise student_dataset again on this base model, or "
            "go back to the base model it was made for."
        )


def use_plain_template(tokenizer: Any) -> None:
    """Replace the chat template by plain-text headings, for everything that uses this tokenizer and its saved copy."""
    tokenizer.chat_template = PLAIN_TEMPLATE


def dataset_fingerprint(dataset: Path) -> str:
    """SHA-256 (hex) over the split files of a student data set."""
    return fingerprint({name: file_fingerprint(dataset / name) for name in SPLIT_FILES if (dataset / name).is_file()})


def _article_tokens(tokenizer: Any, article: str, prompt: Iterable[Any], prompt_tokens: int) -> int:
    """Tokens of the article in a prompt: its user message, less an instruction that is longer than the article."""
    asked = " ".join(message["content"] for message in prompt if message["role"] == "user")
    shorter = min(asked, article, key=len)
    return min(prompt_tokens, len(tokenizer(shorter, add_special_tokens=False)["input_ids"]))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_ROWS
    return ", ".join(names[:NAMED_ROWS]) + (f" and {more} more" if more > 0 else "")
