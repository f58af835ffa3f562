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
from newsjuice_pipelines.podcast.text import names, sentences, spoken_numbers, support
from newsjuice_pipelines.podcast.text.sentences import ends_complete
from newsjuice_pipelines.podcast.text.support import unsupported_names, unsupported_numbers
from newsjuice_pipelines.runtime.provenance import fingerprint

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

_PREAMBLE = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay)\b[^.!?\n]{0,40}!|"
    r"(?:(?:sure|certainly|of course|absolutely|okay)\b[,.:]?\s+)?"
    r"(?:here(?:'s|’s| is| are)|below is|i(?:'ve|’ve| have) (?:written|prepared|created))\b[^.!?\n]{0,60}"
    r"\b(?:script|transcript|draft|rewrite)\b|"
    r"(?:podcast |episode )?(?:script|transcript|title)\s*:)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:i(?:'m|’m| am) (?:sorry|unable|not able)|i can(?:not|'t|’t) (?:help|write|create|provide|assist)|as an ai\b)",
    re.IGNORECASE,
)
_REMARK_BEHIND = re.compile(
    r"\b(?:let me know if you(?:['’]d|\s+would|\s+want|\s+need)|would you like me to|i hope this (?:script|helps)|word count|"
    r"feel free to (?:adjust|edit|change))\b",
    re.IGNORECASE,
)
_REMARK_REACH = 200  # characters from the end in which a remark behind the script begins
_MARKUP = re.compile(
    r"\*\*|__|```|<\|[^|]*\|>|</?[a-z][^<>]*>|"
    r"^[^\S\n]*#{1,6}\s|^[^\S\n]*[-*•]\s|"  # headings, lists
    r"https?://|\bwww\.\w|\w@\w+\.\w|"
    r"\*\w[^*\n]{0,60}\*|"  # emphasis
    r"\[[^\]]{0,80}\]|"
    r"[(*][^()*]{0,40}\b(?:music|jingle|sound effect|pauses?|sfx|applause|intro|outro|laughs|chuckles|sighs|whoosh)\b"
    r"[^()*]{0,40}[)*]|"
    r"^[^\S\n]*(?:host|narrator|speaker|announcer|anchor)(?: \w+)?[^\S\n]*:|(?-i:^[^\S\n]*[A-Z][A-Z .]{2,20}:)|"  # who speaks
    r"[\U0001F300-\U0001FAFF\u2600-\u27BF\u266A-\u266C]",  # emoji, notes
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def script_problem(script: str, article: str) -> str | None:
    """Why `script` is not fit for training, as a key of `PROBLEMS`; None for a fit one. The first reason found is given."""
    return _form_problem(script) or _content_problem(script, article)


@lru_cache(maxsize=1)
def filters_version() -> str:
    """A name for the rules as they are now: another one as soon as a line of their code changes."""
    modules = (sys.modules[__name__], support, names, spoken_numbers, sentences, loops)
    return fingerprint([inspect.getsource(module) for module in modules])[:12]


def has_markup(text: str) -> bool:
    """Whether `text` holds something that cannot be spoken: markup, a link, a list, a stage direction, a speaker label."""
    return bool(_MARKUP.search(text))


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
    if _PREAMBLE.match(script) or _REMARK_BEHIND.search(script[-_REMARK_REACH:]):
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
