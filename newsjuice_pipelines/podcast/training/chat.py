"""An article and its script as chat messages that fit a token budget. The article gives way, never the answer.

Training and inference both build their prompts here, so that the student is asked as it was taught.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from newsjuice_pipelines.podcast.teaching.prompts import STUDENT_SYSTEM_LINE
from newsjuice_pipelines.podcast.text.sentences import sentence_spans

Message = dict[str, str]

MIN_ARTICLE_WORDS = 40  # a script needs at least this much of its article in the prompt, or it teaches invention
_WORD = re.compile(r"\S+")


def training_messages(article: str, script: str, tokenizer: Any, max_tokens: int) -> tuple[list[Message], list[Message]] | None:
    """Prompt and completion of at most `max_tokens` tokens together, end-of-turn token included.

    The article is cut at a sentence boundary until both fit; the script is never cut. Returns None when the script
    leaves no room for `MIN_ARTICLE_WORDS` words of the article (or the whole of a shorter one).
    """
    article, script = plain_text(article, tokenizer), plain_text(script, tokenizer)
    completion = [{"role": "assistant", "content": script}]

    def fits(part: str) -> bool:
        return token_count([*_prompt(part), *completion], tokenizer) <= max_tokens

    fitted = _longest_fitting(article, fits)
    if fitted is None or len(fitted.split()) < min(MIN_ARTICLE_WORDS, len(article.split())):
        return None
    return _prompt(fitted), completion


def prompt_messages(article: str, tokenizer: Any, max_prompt_tokens: int) -> list[Message]:
    """The prompt for `article`, cut at a sentence boundary to `max_prompt_tokens` tokens with the generation header.

    Raises:
        ValueError: the article is empty, or the budget does not hold even one word of it.
    """
    article = plain_text(article, tokenizer)
    if not article:
        raise ValueError("an empty article cannot become a prompt: leave such rows out before inference.")

    def fits(part: str) -> bool:
        return token_count(_prompt(part), tokenizer, for_generation=True) <= max_prompt_tokens

    fitted = _longest_fitting(article, fits)
    if fitted is None:
        frame = token_count(_prompt(""), tokenizer, for_generation=True)
        raise ValueError(
            f"a prompt budget of {max_prompt_tokens} tokens leaves no room for the article (the chat frame alone takes {frame}): "
            "raise the prompt budget, or lower the number of new tokens."
        )
    return _prompt(fitted)


def token_count(messages: Sequence[Message], tokenizer: Any, *, for_generation: bool = False) -> int:
    """Tokens of `messages` under the tokenizer's chat template with thinking off."""
    encoded = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=for_generation, return_dict=True, enable_thinking=False
    )
    return len(encoded["input_ids"])


def plain_text(text: str, tokenizer: Any) -> str:
    """`text` without outer blanks, its control tokens (such as `<|im_end|>`) broken up so that they stay ordinary text."""
    markers = [token for token in tokenizer.get_added_vocab() if token.strip() and not token.isalnum()]
    if markers and any(marker in text for marker in markers):
        pattern = re.compile("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)))
        text = pattern.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}".rstrip(), text)
    return text.strip()


def _prompt(article: str) -> list[Message]:
    return [{"role": "system", "content": STUDENT_SYSTEM_LINE}, {"role": "user", "content": article}]


def _longest_fitting(article: str, fits: Callable[[str], bool]) -> str | None:
    """The longest beginning of `article` that fits: whole, else up to a sentence's end, else up to a word's end."""
    if fits(article):
        return article
    for ends in ([end for _, end in sentence_spans(article)], [word.end() for word in _WORD.finditer(article)]):
        count = _largest_count(ends, lambda end: fits(article[:end]))
        if count:
            return article[: ends[count - 1]]
    return None


def _largest_count(ends: Sequence[int], fits: Callable[[int], bool]) -> int:
    """How many of the rising `ends` fit, by bisection."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(ends[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return low
