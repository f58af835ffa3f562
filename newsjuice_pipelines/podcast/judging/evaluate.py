"""Measures of a script: its form, its variety, what it copies, and whether the article supports what it names and quotes.

All are deterministic and need no model. Means and intervals are `intervals.py`, pages and plots `quality.py`; the verdict is
`decision.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from difflib import SequenceMatcher
from html import unescape

from newsjuice_pipelines.podcast.judging.intervals import cluster_interval, summarise
from newsjuice_pipelines.podcast.judging.loops import LOOP_RULES, loops, sequences, words
from newsjuice_pipelines.podcast.judging.script_form import FAILURE_KINDS, MAX_WORDS, MIN_WORDS, script_form
from newsjuice_pipelines.podcast.text.sentences import split_sentences
from newsjuice_pipelines.podcast.text.support import Support, name_support, number_support

__all__ = [
    "FAILURE_KINDS",
    "LOOP_RULES",
    "MAX_WORDS",
    "MIN_WORDS",
    "ScriptMeasures",
    "cluster_interval",
    "lead_script",
    "loops",
    "measure_script",
    "quotation_support",
    "rouge_l",
    "summarise",
]

LEAD_WORDS = 150
COPY_WORDS = 5
DISTINCT_WORDS = 2
REPEAT_WORDS = 4
QUOTATION_WORDS = 3

# Every style of quotation marks as one pair: straight double ones, and for single ones `‘` or a straight one.
_STYLES = (
    (re.compile(r"(?<!\w)«[^\S\n]+"), '"'),  # French spaces inside, before the marks that need none
    (re.compile(r"(?<=\S)[^\S\n]+»(?!\w)"), '"'),
    (re.compile(r"[“”„‟«»＂〝〞〟]|``|''|‘‘|’’"), '"'),
    (re.compile(r"[’＇]"), "'"),
)
# What may stand before a mark that opens. It closes before none of a word.
_OPENS = r"(?<![^\s(\[—–:,\"'‘-])"
# A single mark is mostly an apostrophe. It closes with a sign of punctuation or the end of the text beside it, and a straight
# one opens before a word that is neither a year nor one of those that drop their beginning.
_QUOTATION = re.compile(
    rf"{_OPENS}\"(?=\S)([^\"]+)(?:(?<=[.,;:!?…])\"|\"(?!\w))"
    rf"|{_OPENS}(?:‘|'(?=\w)(?!(?:\d\ds?|n|em|tis|twas|til|cause|bout)\b))"
    r"((?:[^‘']|(?<!\s)'){1,500}?)"
    r"(?:(?<=[.,;:!?…])'(?!\w)|'(?=[.,;:!?…)\]\"]|\s*\Z))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ScriptMeasures:
    """Measures of one script. Shares lie between 0 and 1; None where there is nothing to take a share of."""

    words: int
    """Number of words."""
    empty: bool
    not_english: bool
    looping: bool
    markers: bool
    cut_off: bool
    too_long: bool
    too_short: bool
    no_opening: bool | None
    no_closing: bool | None
    distinct_2: float | None
    """Different word pairs / word pairs."""
    repeated_4: float | None
    """Runs of four words that came before in the script / runs of four words."""
    copied_5: float | None
    """Runs of five words that stand in the article / runs of five words."""
    longest_copied_words: int | None
    """Words of the longest run that stands in the article."""
    has_names: bool | None
    """Whether the script has names that can be looked for. A script without any says nothing that can be unsupported."""
    has_numbers: bool | None
    names_supported: float | None
    """Capitalised names inside sentences whose words stand in the article. English only, as the next one."""
    numbers_supported: float | None
    """Numbers whose value stands in the article, spelled out or in digits."""
    quotations_supported: float | None
    """Quotations of at least `QUOTATION_WORDS` words that stand in the article word for word."""
    rouge_l: float | None
    """ROUGE-L F1 against the reference script."""

    @property
    def failures(self) -> tuple[str, ...]:
        """The format failures, the dominating one first (`script_form.FAILURE_KINDS`)."""
        return tuple(kind for kind in FAILURE_KINDS if getattr(self, kind))

    @property
    def passes(self) -> bool:
        """Whether the script has none of the format failures."""
        return not self.failures

    @property
    def first_failure(self) -> str | None:
        """The failure that dominates the script, None for one that passes: these shares and the passes add up to all."""
        return next(iter(self.failures), None)

    def values(self) -> dict[str, float | None]:
        """`passes` and all measures as numbers."""
        known = {"passes": self.passes, **{field.name: getattr(self, field.name) for field in fields(self)}}
        return {name: None if value is None else float(value) for name, value in known.items()}


def measure_script(script: str, article: str | None = None, reference: str | None = None) -> ScriptMeasures:
    """Measure one script, against its article and against a reference script where these are given.

    Support of names and numbers follows English spelling and is not measured for a script in another language.
    """
    spoken, form = words(script), script_form(script)
    source = None if article is None else words(article)
    english_article = None if form.not_english else article
    names = None if english_article is None else name_support(script, english_article)
    numbers = None if english_article is None else number_support(script, english_article)
    return ScriptMeasures(
        words=len(script.split()),
        **asdict(form),
        distinct_2=_distinct(spoken, DISTINCT_WORDS),
        repeated_4=_repeated(spoken, REPEAT_WORDS),
        copied_5=None if source is None else _copied(spoken, source, COPY_WORDS),
        longest_copied_words=None if source is None else _longest_run(spoken, source),
        has_names=None if names is None else names.found > 0,
        has_numbers=None if numbers is None else numbers.found > 0,
        names_supported=None if names is None else names.share,
        numbers_supported=None if numbers is None else numbers.share,
        quotations_supported=None if article is None else quotation_support(script, article).share,
        rouge_l=None if reference is None else rouge_l(script, reference),
    )


def quotation_support(script: str, article: str) -> Support:
    """Look in the article for what the script has in quotation marks, up to case, punctuation, white space and quote style.

    Shorter quotations than `QUOTATION_WORDS` words are titles and nicknames and not looked at.
    """
    text = unescape(script)
    for style, mark in _STYLES:
        text = style.sub(mark, text)
    quoted = [(said, words(said)) for found in _QUOTATION.findall(text) for said in found if said]
    long = [(said, spoken) for said, spoken in quoted if len(spoken) >= QUOTATION_WORDS]
    known = f" {' '.join(words(unescape(article)))} " if long else ""
    return Support(len(long), tuple(said for said, spoken in long if f" {' '.join(spoken)} " not in known))


def lead_script(article: str, max_words: int = LEAD_WORDS) -> str:
    """The baseline that needs no model: the article's first sentences, whole ones, up to `max_words` words (at least one)."""
    taken: list[str] = []
    count = 0
    for sentence in split_sentences(article):
        count += len(sentence.split())
        if taken and count > max_words:
            break
        taken.append(sentence)
    return " ".join(taken)


def rouge_l(script: str, reference: str) -> float:
    """ROUGE-L F1 on lower-case words: twice the longest common subsequence over the sum of both lengths (C.-Y. Lin, 2004).

    The subsequence's length comes from one row of bits a word (H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004).
    """
    first, second = words(script), words(reference)
    if not first or not second:
        return 0.0
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(second)) - 1
    row = everything
    for word in first:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return 2 * (len(second) - row.bit_count()) / (len(first) + len(second))


def _distinct(spoken: Sequence[str], length: int) -> float | None:
    runs = sequences(spoken, length)
    return len(set(runs)) / len(runs) if runs else None


def _repeated(spoken: Sequence[str], length: int) -> float | None:
    distinct = _distinct(spoken, length)
    return None if distinct is None else 1 - distinct


def _copied(spoken: Sequence[str], source: Sequence[str], length: int) -> float | None:
    runs, known = sequences(spoken, length), set(sequences(source, length))
    return sum(run in known for run in runs) / len(runs) if runs else None


def _longest_run(spoken: Sequence[str], source: Sequence[str]) -> int:
    return SequenceMatcher(None, spoken, source, autojunk=False).find_longest_match().size
