"""Versioned prompts for the teacher, and the student's one system line. The texts themselves lie in `prompt_texts/`."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

PROMPT_VERSIONS = ("v1", "original")

# The student learns the form from its training, so that its prompt needs no instruction beyond this line.
STUDENT_SYSTEM_LINE = "Write a podcast script about this article."

_PLACE = "{{ARTICLE}}"
_FENCE = re.compile(r"<(?=\s*/?\s*article)", re.IGNORECASE)


class UnknownPromptVersion(ValueError):
    """The prompt version has no text in this package."""


def render_prompt(version: str, article: str) -> str:
    """The teacher's prompt of `version` with `article` fenced as data between `<article>` and `</article>`.

    An article that holds the fence itself has that mark's `<` written as `&lt;`, so that it cannot close the fence.
    """
    fenced = _FENCE.sub("&lt;", article.strip())
    before, after = _template(version)
    return f"{before}{fenced}{after}"


@lru_cache(maxsize=len(PROMPT_VERSIONS))
def _template(version: str) -> tuple[str, str]:
    """The text before and after the article."""
    if version not in PROMPT_VERSIONS:
        raise UnknownPromptVersion(f"there is no prompt version {version!r}: use one of {', '.join(PROMPT_VERSIONS)}.")
    text = files("newsjuice_pipelines.podcast").joinpath("prompt_texts", f"{version}.txt").read_text(encoding="utf-8")
    before, _, after = text.strip().partition(_PLACE)
    return before, after
