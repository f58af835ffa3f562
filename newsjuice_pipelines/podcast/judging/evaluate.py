"""Measures of a script: its format, its variety, what it copies, and whether the article supports its names and numbers.

All are deterministic and need no model. Pages and plots are `report.py`; the verdict is `decision.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from newsjuice_pipelines.podcast.text.sentences import ends_complete, split_sentences
from newsjuice_pipelines.podcast.text.support import name_support, number_support

MIN_WORDS = 60
MAX_WORDS = 300
LEAD_WORDS = 150
COPY_WORDS = 5
DISTINCT_WORDS = 2
# A loop: eight words in a row that came before, or four words in a row at the fourth time. Under 2 % of BBC articles do
# this in their first 250 words; "five words twice" is met by 14 % of them and would blame ordinary prose.
LOOP_RULES = ((8, 2), (4, 4))
FAILURE_KINDS = ("cut_off", "looping", "markers", "too_short", "too_long")
BOOTSTRAP_RESAMPLES = 1000
MIN_CLUSTERS = 5

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MARKERS = re.compile(
    r"^\W*(?:input|output|response|instruction|question|answer|script|article)\b[^.\n]{0,20}:"  # labels of a prompt
    r"|^\s*\#{2,}"  # Markdown headings, as prompts use them
    r"|^\s*\#+\s*(?:input|output|response|instruction|article|the\ end|end\ of)\b"
    r"|<\|\w+\|>|</?think>|```",  # control tokens and fences
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True)
class ScriptMeasures:
    """Measures of one script. Shares lie between 0 and 1; None where there is nothing to take a share of."""

    words: int  # number of words
    cut_off: bool  # does not end with a complete sentence
    looping: bool  # repeats itself (LOOP_RULES)
    markers: bool  # holds labels, headings or control tokens of a prompt
    too_short: bool  # under MIN_WORDS words
    too_long: bool  # over MAX_WORDS words
    distinct_2: float | None  # different word pairs / word pairs
    copied_5: float | None  # five-word sequences of the script that stand in the article
    names_supported: float | None  # capitalised names inside sentences whose words stand in the article
    numbers_supported: float | None  # numbers whose value stands in the article, spelled out or in digits
    rouge_l: float | None  # ROUGE-L F1 against the reference script

    @property
    def passes(self) -> bool:
        """Whether the script has none of the format failures."""
        return not any(getattr(self, kind) for kind in FAILURE_KINDS)


def measure_script(script: str, article: str | None = None, reference: str | None = None) -> ScriptMeasures:
    """Measure one script, against its article and against a reference script where these are given."""
    words = _words(script)
    count = len(script.split())
    return ScriptMeasures(
        words=count,
        cut_off=not ends_complete(script),
        looping=_loops(words),
        markers=bool(_MARKERS.search(script)),
        too_short=count < MIN_WORDS,
        too_long=count > MAX_WORDS,
        distinct_2=_distinct(words, DISTINCT_WORDS),
        copied_5=None if article is None else _copied(words, _words(article), COPY_WORDS),
        names_supported=None if article is None else name_support(script, article).share,
        numbers_supported=None if article is None else number_support(script, article).share,
        rouge_l=None if reference is None else rouge_l(script, reference),
    )


def loops(text: str) -> bool:
    """Whether `text` repeats itself, by `LOOP_RULES`."""
    return _loops(_words(text))


def summarise(measures: Sequence[ScriptMeasures], clusters: Sequence[str], seed: int = 42) -> dict[str, Any]:
    """Means over scripts, each with a 95 % bootstrap interval that resamples whole articles.

    Args:
        measures: one entry a script.
        clusters: the article of each script; scripts of one article are not independent.
        seed: of the resampling.

    Returns:
        `scripts`, `articles`, and for each measure (and `passes`) `{"value", "low", "high", "scripts"}`; None where not
        measured. Intervals need at least five articles.
    """
    if len(measures) != len(clusters):
        raise ValueError(f"{len(measures)} scripts but {len(clusters)} article ids: give one id a script.")
    result: dict[str, Any] = {"scripts": len(measures), "articles": len(set(clusters))}
    for name in ("passes", *(field.name for field in fields(ScriptMeasures))):
        found = [(getattr(entry, name), cluster) for entry, cluster in zip(measures, clusters, strict=True)]
        known = [(float(value), cluster) for value, cluster in found if value is not None]
        values, owners = [value for value, _ in known], [owner for _, owner in known]
        low, high = cluster_interval(values, owners, seed) or (None, None)
        mean = sum(values) / len(values) if values else None
        result[name] = {"value": mean, "low": low, "high": high, "scripts": len(values)}
    return result


def cluster_interval(values: Sequence[float], clusters: Sequence[str], seed: int) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of the mean when clusters are drawn with replacement; None below five clusters.

    The pairs cluster bootstrap of A. C. Cameron and D. L. Miller, "A Practitioner's Guide to Cluster-Robust Inference", 2015.
    """
    import numpy as np

    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    if len(names) < MIN_CLUSTERS:
        return None
    sums = np.bincount(index, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(names), size=(BOOTSTRAP_RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def lead_script(article: str, max_words: int = LEAD_WORDS) -> str:
    """The baseline that needs no model: the article's first sentences, whole ones, up to `max_words` words (at least one)."""
    taken: list[str] = []
    for sentence in split_sentences(article):
        if taken and len(" ".join([*taken, sentence]).split()) > max_words:
            break
        taken.append(sentence)
    return " ".join(taken)


def rouge_l(script: str, reference: str) -> float:
    """ROUGE-L F1 on lower-case words: twice the longest common subsequence over the sum of both lengths (C.-Y. Lin, 2004)."""
    first, second = _words(script), _words(reference)
    if not first or not second:
        return 0.0
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return 2 * row[-1] / (len(first) + len(second))


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def _sequences(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def _loops(words: Sequence[str]) -> bool:
    return any(_most_frequent(words, length) >= times for length, times in LOOP_RULES)


def _most_frequent(words: Sequence[str], length: int) -> int:
    return max(Counter(_sequences(words, length)).values(), default=0)


def _distinct(words: Sequence[str], length: int) -> float | None:
    sequences = _sequences(words, length)
    return len(set(sequences)) / len(sequences) if sequences else None


def _copied(words: Sequence[str], article: Sequence[str], length: int) -> float | None:
    sequences = _sequences(words, length)
    known = set(_sequences(article, length))
    return sum(sequence in known for sequence in sequences) / len(sequences) if sequences else None
