"""An article and its script as chat messages that fit a token budget. The article gives way, never the answer.

Training and inference both build their prompts here, so that the student is asked as it was taught.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from newsjuice_pipelines.podcast.teaching.prompts import STUDENT_SYSTEM_LINE, render_prompt
from newsjuice_pipelines.podcast.text.sentences import sentence_spans
from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL, encode_example, encode_prompt, plain_text
from newsjuice_pipelines.runtime.provenance import fingerprint

Message = dict[str, str]

STUDENT_PROMPTS = ("short", "original")
MIN_ARTICLE_WORDS = 40  # a script needs at least this much of its article in the prompt, or it teaches invention
# How far the tokens of a cut text may differ from those of the same passage within the whole text: in fact by two.
_ESTIMATE_SLACK_TOKENS = 4
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class TrainingRow:
    """An article and its script as a training row."""

    prompt: list[Message]
    completion: list[Message]
    ids: list[int]
    """Token ids as training encodes the row."""
    labels: list[int]
    """Of the loss: `IGNORED_LABEL` on the prompt."""
    article_cut: bool
    """Whether a part of the article is left out."""


def training_row(
    article: str, script: str, tokenizer: Any, max_tokens: int | None, prompt_version: str = "short"
) -> TrainingRow | None:
    """The row that training encodes to at most `max_tokens` tokens, instruction and end of turn included; None: no limit.

    The article is cut at the end of a sentence until both fit; the script is never cut. Returns None when the script
    leaves no room for `MIN_ARTICLE_WORDS` words of the article (or the whole of a shorter one).
    """
    article = plain_text(article, tokenizer)
    prompt = _prompt(article, tokenizer, prompt_version)
    completion = [{"role": "assistant", "content": plain_text(script, tokenizer)}]
    ids, labels = encode_example(tokenizer, prompt, completion)
    if max_tokens is None or len(ids) <= max_tokens:
        return TrainingRow(prompt, completion, ids, labels, article_cut=False)
    prompt_budget = max_tokens - len(labels) + labels.count(IGNORED_LABEL)  # the answer's tokens do not depend on the cut
    sentence_ends = [end for _, end in sentence_spans(article)]
    part = _longest_beginning(article, sentence_ends, tokenizer, prompt_budget, prompt_version)
    if part is None or len(part.split()) < min(MIN_ARTICLE_WORDS, len(article.split())):
        return None
    prompt = _prompt(part, tokenizer, prompt_version)
    ids, labels = encode_example(tokenizer, prompt, completion)
    assert len(ids) <= max_tokens, f"a row of {len(ids)} tokens after fitting it to {max_tokens}"
    return TrainingRow(prompt, completion, ids, labels, article_cut=True)


def training_messages(
    article: str, script: str, tokenizer: Any, max_tokens: int | None, prompt_version: str = "short"
) -> tuple[list[Message], list[Message]] | None:
    """Prompt and completion of `training_row`."""
    row = training_row(article, script, tokenizer, max_tokens, prompt_version)
    return None if row is None else (row.prompt, row.completion)


def prompt_messages(article: str, tokenizer: Any, max_prompt_tokens: int, prompt_version: str = "short") -> list[Message]:
    """The prompt for `article`, at most `max_prompt_tokens` tokens with instruction and generation header.

    The article is cut at the end of a sentence; where not even its first one fits, between two words.

    Raises:
        ValueError: the article is empty, or the budget does not hold even one word of it.
    """
    article = plain_text(article, tokenizer)
    if not article:
        raise ValueError("an empty article cannot become a prompt: leave such rows out before inference.")
    prompt = _prompt(article, tokenizer, prompt_version)
    if len(encode_prompt(tokenizer, prompt)) <= max_prompt_tokens:
        return prompt
    for ends in ([end for _, end in sentence_spans(article)], [word.end() for word in _WORD.finditer(article)]):
        part = _longest_beginning(article, ends, tokenizer, max_prompt_tokens, prompt_version)
        if part is not None:
            return _prompt(part, tokenizer, prompt_version)
    frame = len(encode_prompt(tokenizer, _prompt("", tokenizer, prompt_version)))
    raise ValueError(
        f"a prompt budget of {max_prompt_tokens} tokens leaves no room for the article (instruction and chat frame alone take "
        f"{frame}): raise the prompt budget, or lower the number of new tokens."
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) of what decides the ids of a conversation: vocabulary, merges, control tokens and chat template.

    How batches are padded or truncated does not change it, nor does saving and loading, nor do the special tokens that a
    tokenizer adds around plain text, which conversations never use.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    unused = dict.fromkeys(("padding", "truncation", "post_processor"))
    return fingerprint({**backend, **unused, "chat_template": tokenizer.chat_template})


def _prompt(article: str, tokenizer: Any, version: str) -> list[Message]:
    if version == "short":
        return [{"role": "system", "content": STUDENT_SYSTEM_LINE}, {"role": "user", "content": article}]
    if version == "original":  # rendering leaves out unseen characters, which can join the parts of a control token
        return [{"role": "user", "content": plain_text(render_prompt("original", article), tokenizer)}]
    raise ValueError(f"there is no student prompt {version!r}: use one of {', '.join(STUDENT_PROMPTS)}.")


def _longest_beginning(article: str, ends: Sequence[int], tokenizer: Any, budget: int, version: str) -> str | None:
    """The longest beginning of `article` up to one of the rising `ends` whose prompt has at most `budget` tokens."""

    def prompt_tokens(part: str) -> int:
        return len(encode_prompt(tokenizer, _prompt(part, tokenizer, version)))

    room = budget - prompt_tokens("")
    if room <= 0:
        return None
    # The article's own tokens tell where about the cut must be; only whole prompts tell exactly.
    offsets = tokenizer(article, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    reach = offsets[min(room + _ESTIMATE_SLACK_TOKENS, len(offsets)) - 1][1]
    count = _largest_count(ends[: bisect_right(ends, reach)], lambda end: prompt_tokens(article[:end]) <= budget)
    return article[: ends[count - 1]] if count else None


def _largest_count(ends: Sequence[int], fits: Callable[[int], bool]) -> int:
    """How many of the rising `ends` fit: from the last one down in growing steps, so that few looks find one near the end."""
    low, high, step = 0, len(ends), 0  # `low` of them fit, more than `high` do not
    while low < high:
        middle = max(high - step, (low + high + 1) // 2)
        if fits(ends[middle - 1]):
            low, step = middle, 0
        else:
            high, step = middle - 1, 2 * step + 1
    return low
