"""Whether a reply is a script fit for training: its form, that it is no copy, and that the article supports its claims.

What becomes of an unfit script is the caller's business; measures for reports are in `evaluate.py`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from newsjuice_pipelines.podcast.judging import loops
from newsjuice_pipelines.podcast.text import markup, names, sentences, spoken_numbers, support
from newsjuice_pipelines.podcast.text.markup import has_markup, has_remark
from newsjuice_pipelines.podcast.text.sentences import ends_complete
from newsjuice_pipelines.podcast.text.support import unsupported_names, unsupported_numbers
from newsjuice_pipelines.runtime.provenance import fingerprint

__all__ = ["PROBLEMS", "copied_share", "filters_version", "has_markup", "script_problem"]

MAX_SCRIPT_WORDS = 300
MIN_SCRIPT_WORDS = 20  # below it the reply is a remark, not a script
# A script that retells in its own words shares few runs of eight words with its article beyond quotations; the extractive
# teacher, 110 words of article in a frame of at least 20, reaches 0.84. Above 0.9 there is not even a frame.
COPY_RUN_WORDS = 8
MAX_COPIED_SHARE = 0.9

PROBLEMS: Mapping[str, str] = MappingProxyType(
    {
        "too_long": f"It has more than {MAX_SCRIPT_WORDS} words.",
        "too_short": f"It has fewer than {MIN_SCRIPT_WORDS} words.",
        "refusal": "It declines to write a script.",
        "preamble": "It opens or ends with a remark about the script, such as 'Here is your script'.",
        "markup": "It holds markup, a link, a list, a stage direction or a speaker label, which cannot be spoken.",
        "incomplete_sentence": "Its last sentence is cut off.",
        "looping": "It repeats itself.",
        "copy_of_article": f"More than {MAX_COPIED_SHARE:.0%} of its words are copied from the article in long runs.",
        "unsupported_number": "It holds a number that is not in the article.",
        "unsupported_name": "It holds a name that is not in the article.",
    }
)
"""What each reason of `script_problem` means, in the order in which they are looked for."""

_REFUSAL = re.compile(
    r"\W*(?:i(?:'m|’m| am) (?:sorry|unable|not able)|i can(?:not|'t|’t) (?:help|write|create|provide|assist)|as an ai\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def script_problem(script: str, article: str) -> str | None:
    """Why `script` is not fit for training, as a key of `PROBLEMS`; None for a fit one. The first reason found is given."""
    return _form_problem(script) or _content_problem(script, article)


@lru_cache(maxsize=1)
def filters_version() -> str:
    """A name for the rules as they are now: another one as soon as a line of their code changes."""
    modules = (sys.modules[__name__], support, names, spoken_numbers, sentences, markup, loops)
    return fingerprint([inspect.getsource(module) for module in modules])[:12]


def copied_share(script: str, article: str) -> float:
    """Share of the script's words that stand in runs of at least `COPY_RUN_WORDS` words shared with the article, 0 to 1."""
    words, source = _words(script), _words(article)
    known = {tuple(source[start : start + COPY_RUN_WORDS]) for start in range(len(source) - COPY_RUN_WORDS + 1)}
    copied, covered_to = 0, 0
    for start in range(len(words) - COPY_RUN_WORDS + 1):
        if tuple(words[start : start + COPY_RUN_WORDS]) in known:
            copied += start + COPY_RUN_WORDS - max(start, covered_to)
            covered_to = start + COPY_RUN_WORDS
    return copied / len(words) if words else 0.0


def _form_problem(script: str) -> str | None:
    words = len(script.split())
    if words > MAX_SCRIPT_WORDS:
        return "too_long"
    if _REFUSAL.match(script):
        return "refusal"
    if words < MIN_SCRIPT_WORDS:
        return "too_short"
    if has_remark(script):
        return "preamble"
    if has_markup(script):
        return "markup"
    if not ends_complete(script):
        return "incomplete_sentence"
    return "looping" if loops.loops(script) else None


def _content_problem(script: str, article: str) -> str | None:
    if copied_share(script, article) > MAX_COPIED_SHARE:
        return "copy_of_article"
    if unsupported_numbers(script, article):
        return "unsupported_number"
    return "unsupported_name" if unsupported_names(script, article) else None


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]
