"""The form of a script: the ways in which it can fail, each told apart. English rules and short word lists, no model.

Form asks whether a script can be aired as it is. Whether the article supports what it says is `evaluate.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from newsjuice_pipelines.podcast.judging.loops import loops
from newsjuice_pipelines.podcast.text.markup import has_markup, has_remark
from newsjuice_pipelines.podcast.text.sentences import ends_complete, split_sentences

MIN_WORDS = 60
MAX_WORDS = 300
FRAME_SENTENCES = 2  # where an opening and a closing are looked for, from either end
# A first sentence this short is a spoken headline and introduces its story: 3 % of BBC articles begin so, spoken news mostly.
HEADLINE_WORDS = 12
_ENGLISH_FROM_LETTERS = 100  # with fewer letters the language is a guess

FAILURE_KINDS = (
    "empty",
    "not_english",
    "looping",
    "markers",
    "cut_off",
    "too_long",
    "too_short",
    "no_opening",
    "no_closing",
)
"""The format failures. A script may have several; the first one in this order dominates it, causes before consequences: a
script that loops runs into the limit and is then also cut off and too long."""

_WHAT_IS_SPOKEN = re.compile(r"[^\W_]")
_QUOTED = re.compile(r"“[^“”]*”|\"[^\"]*\"")
# What a model repeats of a prompt. Labels are words of ordinary prose too, and count with the colon right behind them only.
_PROMPT = re.compile(
    r"^[^\w\n]*(?:input|output|response|instruction|answer|script|article|host|narrator|speaker)s?"  # labels
    r"(?:[^\S\n]*\([^()\n]{0,30}\))?[^\S\n]*:"
    r"|^[^\S\n]*\#{2,}"  # rules and Markdown headings
    r"|<\|\w+\|>|</?think>"  # control tokens
    r"|\bformat\ your\ response\b|\bthe\ text\ of\ the\ script\b"  # instructions
    r"|\b(?:script|your\ response)\ (?:must|should)\ be\b",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_TO_LISTENERS = r"welcome|listen(?:ers?|ing)|you|your|we|our|(?-i:us)|let['’]s|newsjuice|podcast|episode"
_GREETS = re.compile(
    rf"\b(?:{_TO_LISTENERS}|hello|hi|hey|greetings|good (?:morning|afternoon|evening|day)|imagine|here(?:['’]s| is| are))\b",
    re.IGNORECASE,
)
_SIGNS_OFF = re.compile(
    rf"\b(?:{_TO_LISTENERS}|thank you|thanks|watching|goodbye|bye|farewell|good night|until (?:next|tomorrow)|next time|"
    r"stay (?:tuned|safe|curious|informed)|take care|tune in)\b"
    r"|\b(?:for now|so far|in the end|in (?:short|brief|conclusion|summary)|all in all|ultimately|overall|"
    r"remains to be seen|time will tell|a reminder|one thing is (?:clear|certain)|what (?:happens|comes) next)\b"
    r"|^\W*(?:until then|(?:and |so |but )?that(?:['’]s| is| was))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ScriptForm:
    """The format failures of one script."""

    empty: bool
    """Nothing in it can be spoken: no letter and no digit. Length, ending, opening and closing are then not blamed as well."""
    not_english: bool
    """Plainly written in another language."""
    looping: bool
    """Repeats itself (`loops.py`)."""
    markers: bool
    """Holds labels, headings, instructions or control tokens of a prompt, a remark about itself, or what cannot be spoken
    (`text/markup.py`): a speaker's label, a stage direction, a list, a link."""
    cut_off: bool
    """Does not end with a complete sentence."""
    too_long: bool
    """Over `MAX_WORDS` words."""
    too_short: bool
    """Under `MIN_WORDS` words."""
    no_opening: bool | None
    """Neither greets nor introduces. None for an empty or foreign text, which the word lists cannot judge."""
    no_closing: bool | None
    """Neither signs off nor concludes. False for a script that is cut off, which says it all; None as for `no_opening`."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The failures, the dominating one first."""
        return tuple(kind for kind in FAILURE_KINDS if getattr(self, kind))


def script_form(script: str) -> ScriptForm:
    """Look for each format failure in `script`.

    A script opens when its first two sentences, quotations aside, greet the listeners or speak to them ("welcome", "you",
    "we", "let's", "here is"), or when its first sentence is a spoken headline of at most `HEADLINE_WORDS` words. It closes when
    its last two sentences thank, say goodbye, speak to the listeners or conclude ("for now", "in the end", "that was …").
    """
    empty = is_empty(script)
    count = len(script.split())
    cut_off = not empty and not ends_complete(script)
    foreign = not empty and not is_english(script)
    judged = not empty and not foreign
    sentences = split_sentences(script) if judged else []
    return ScriptForm(
        empty=empty,
        not_english=foreign,
        looping=loops(script),
        markers=has_markup(script) or has_remark(script) or bool(_PROMPT.search(script)),
        cut_off=cut_off,
        too_long=count > MAX_WORDS,
        too_short=not empty and count < MIN_WORDS,
        no_opening=not _opens(sentences) if judged else None,
        no_closing=not cut_off and not any(map(is_closing, sentences[-FRAME_SENTENCES:])) if judged else None,
    )


def is_empty(script: str) -> bool:
    """Whether nothing in `script` can be spoken: no letter and no digit, as in white space and zero-width signs."""
    return not _WHAT_IS_SPOKEN.search(script)


def is_greeting(sentence: str) -> bool:
    """Whether a sentence greets the listeners or speaks to them."""
    return bool(_GREETS.search(_QUOTED.sub(" ", sentence)))


def is_closing(sentence: str) -> bool:
    """Whether a sentence signs off, speaks to the listeners, or concludes."""
    return bool(_SIGNS_OFF.search(_QUOTED.sub(" ", sentence)))


def is_english(text: str) -> bool:
    """False when `text` is plainly in another language; short texts get the benefit of the doubt."""
    if sum(map(str.isalpha, text)) < _ENGLISH_FROM_LETTERS:
        return True
    allows: bool = _english().allows(text)
    return allows


def _opens(sentences: list[str]) -> bool:
    return len(sentences[0].split()) <= HEADLINE_WORDS or any(map(is_greeting, sentences[:FRAME_SENTENCES]))


@cache
def _english() -> Any:
    from newsjuice_pipelines.podcast.sampling.chunk_filters import LanguageHint

    return LanguageHint(("en",))
