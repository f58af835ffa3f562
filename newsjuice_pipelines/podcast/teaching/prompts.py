"""Versioned prompts for the teacher, and the student's one system line. The texts themselves lie in `prompt_texts/`."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from importlib.resources import files

PROMPT_VERSIONS = ("v2", "v1", "original")

# The student learns the form from its training, so that its prompt needs no instruction beyond this line.
STUDENT_SYSTEM_LINE = "Write a podcast script about this article."

_PLACE = "{{ARTICLE}}"
# Control characters but line break and tab, invisible and direction marks, lone surrogates, the "tag" letters that hide text.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_BRACKET = re.compile("[<\u2039\u27e8\u276e\u276c\u2329\u3008\ufe64\uff1c\u02c2\u1438\U0001d236]")
_MARK = "article"
_MARK_REACH = 200  # characters behind a bracket in which the fence's name is looked for
# Letters of other alphabets that look like those of the fence's name.
_LOOK_ALIKES = {
    ord(other): letter
    for letter, others in {"a": "аɑα", "r": "гʀ", "t": "тτ", "i": "іιɩı", "c": "сϲ", "l": "ӏ", "e": "еєɛ"}.items()
    for other in others
}


class UnknownPromptVersion(ValueError):
    """The prompt version has no text in this package."""


def render_prompt(version: str, article: str) -> str:
    """The teacher's prompt of `version` with `article` fenced as data between `<article>` and `</article>`.

    What the article says changes nothing around it. Characters that nobody sees are left out, and a bracket that opens
    something like the fence itself is written as `&lt;`, so that no article can close its fence.
    """
    before, after = _template(version)
    return f"{before}{_fenced(article)}{after}"


def _fenced(article: str) -> str:
    lines = article.replace("\r\n", "\n").replace("\r", "\n")
    seen = _UNSEEN.sub(lambda unseen: " " if unseen.group().isspace() else "", lines).strip()
    return _BRACKET.sub(lambda bracket: "&lt;" if _opens_fence(seen, bracket.end()) else bracket.group(), seen)


def _opens_fence(text: str, start: int) -> bool:
    """Whether the first letters behind a bracket are the fence's name, in any alphabet that looks like it."""
    plain = unicodedata.normalize("NFKD", text[start : start + _MARK_REACH]).casefold().translate(_LOOK_ALIKES)
    return "".join(character for character in plain if character.isalpha()).startswith(_MARK)


@lru_cache(maxsize=len(PROMPT_VERSIONS))
def _template(version: str) -> tuple[str, str]:
    """The text before and after the article."""
    if version not in PROMPT_VERSIONS:
        raise UnknownPromptVersion(f"there is no prompt version {version!r}: use one of {', '.join(PROMPT_VERSIONS)}.")
    text = files("newsjuice_pipelines.podcast.teaching").joinpath("prompt_texts", f"{version}.txt").read_text(encoding="utf-8")
    before, _, after = text.strip().partition(_PLACE)
    return before, after
