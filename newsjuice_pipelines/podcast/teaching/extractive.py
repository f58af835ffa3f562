"""The free teacher: an article's lead sentences in a spoken frame. No model is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from newsjuice_pipelines.podcast.judging.loops import loops
from newsjuice_pipelines.podcast.teaching.script_filters import has_markup, script_problem
from newsjuice_pipelines.podcast.teaching.teacher import TeacherReply
from newsjuice_pipelines.podcast.text.sentences import ends_complete, split_sentences

MIN_BODY_WORDS = 20
MAX_BODY_WORDS = 150  # with more, the frame is so small a part that the script counts as a copy of its article

_OPENINGS = (
    "Welcome to NewsJuice. Here is a story worth a minute of your time.",
    "Hello, and thanks for listening to NewsJuice. This is what we are following today.",
    "You are listening to NewsJuice, and this is the story.",
    "Good to have you with us on NewsJuice. Let us get straight to the news.",
)
_CLOSINGS = (
    "That is the story for now. Thanks for listening to NewsJuice.",
    "We will keep an eye on it. Until next time, this was NewsJuice.",
    "And that is what we know so far. Thank you for joining us on NewsJuice.",
    "That was your news in brief. Join us again soon on NewsJuice.",
)


@dataclass(frozen=True)
class ExtractiveTeacher:
    """An article's lead sentences, word for word, in a spoken frame. Free and deterministic; no model is asked."""

    body_words: int = 110
    """Most words taken from the article; the frame adds about 25."""

    def __post_init__(self) -> None:
        if not MIN_BODY_WORDS <= self.body_words <= MAX_BODY_WORDS:
            raise ValueError(f"body_words is {self.body_words}: give {MIN_BODY_WORDS} to {MAX_BODY_WORDS}.")

    @property
    def model(self) -> str:
        return "extractive"

    @property
    def prompt_version(self) -> str:
        return "frame-2"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"body_words": self.body_words}

    def most_tokens(self, article: str) -> int:
        """None are counted."""
        return 0

    def most_usd(self, article: str, *, batch: bool = False) -> float:
        """It costs nothing."""
        return 0.0

    async def ask(self, article: str, timeout_s: float) -> TeacherReply:
        """Opening line, complete lead sentences up to `body_words`, closing line; the lines vary by a hash of the article.

        The reply is `empty`, with the reason, for an article that gives no script which `script_problem` accepts.
        """
        body = self._lead(article)
        if not body:
            return TeacherReply("", "empty", "NO_COMPLETE_SENTENCE", cost_usd=0.0)
        digest = hashlib.sha256(article.encode("utf-8", "surrogatepass")).digest()
        opening, closing = _OPENINGS[digest[0] % len(_OPENINGS)], _CLOSINGS[digest[1] % len(_CLOSINGS)]
        script = " ".join([opening, *body, closing])
        problem = script_problem(script, article)
        if problem is not None:
            return TeacherReply("", "empty", problem, cost_usd=0.0)
        return TeacherReply(script, "ok", "STOP", cost_usd=0.0)

    async def close(self) -> None:
        """There is nothing to close."""

    def _lead(self, article: str) -> list[str]:
        """The first sentences that can be spoken; left out are headings, captions, cut ends, links and repetitions."""
        body: list[str] = []
        words = 0
        for sentence in split_sentences(article):
            spoken = " ".join(sentence.split())
            length = len(spoken.split())
            if not ends_complete(spoken) or has_markup(spoken) or length > self.body_words:
                continue
            if words + length > self.body_words:
                break
            if loops(" ".join([*body, spoken])):
                continue
            body.append(spoken)
            words += length
        return body
