"""Training rows shown with their mask: what the loss covers and what it does not. Encoding rows is `chat_tokens.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL
from newsjuice_pipelines.runtime.reports import cell

MASKED_ROWS_FILE = "masked_rows.md"


def masked_rows(tokenizer: Any, examples: Sequence[tuple[Sequence[int], Sequence[int]]], count: int = 2) -> str:
    """A Markdown page of the first `count` rows, decoded: each run of trained or untrained tokens in a block of its own.

    Texts stand in code blocks that they cannot close, so that no article can format the page.

    Args:
        tokenizer: the one that encoded the rows.
        examples: token ids and labels of each row.
        count: rows shown.
    """
    parts = ["# What training sees", "The loss covers the trained tokens only; control tokens are shown as they are."]
    for number, (ids, labels) in enumerate(examples[:count], start=1):
        trained_tokens = sum(label != IGNORED_LABEL for label in labels)
        parts.append(f"## Row {number}: {trained_tokens:,} of {len(ids):,} tokens are trained")
        places = groupby(range(len(ids)), key=lambda place: labels[place] != IGNORED_LABEL)
        for trained, run in places:
            run_ids = [ids[place] for place in run]
            text = tokenizer.decode(run_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            parts += [f"**{'Trained' if trained else 'Not trained'}** ({len(run_ids):,} tokens):", _code_block(text)]
        parts.append(_ending(tokenizer, labels))
    return "\n\n".join(parts) + "\n"


def _ending(tokenizer: Any, labels: Sequence[int]) -> str:
    if labels and labels[-1] == tokenizer.eos_token_id:
        return f"The last trained token is the end token {cell(tokenizer.eos_token)}: the student learns to stop there."
    return f"**The row does not end with a trained end token** {cell(tokenizer.eos_token)}: the student does not learn to stop."


def _code_block(text: str) -> str:
    """`text` between fences longer than any in it; characters that cannot be seen as escapes."""
    seen = "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode() for letter in text
    )
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", seen)), default=0))
    return f"{fence}text\n{seen}\n{fence}"
