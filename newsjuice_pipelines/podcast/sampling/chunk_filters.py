"""Which chunks may be in the sample: the settings, the test each row of the table must pass, and the language hint.

Ranks, duplicates and the choice among the rows that pass belong to `chunks`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any

SOURCE_COLUMNS = (
    "article_id",
    "chunk_index",
    "title",
    "author",
    "source_link",
    "source_type",
    "published_at",
    "fetched_at",
    "chunk",
    "summary",
)

Values = Sequence[Any]  # a row, in the order of SOURCE_COLUMNS

# Share of the model's probability. On 12,978 passages of 60 words of BBC news English never fell below 8e-4 (squads of Italian
# names), while news in other languages stayed below 1e-13, also where two neighbours such as Croatian and Bosnian share the rest.
FOREIGN_BELOW = 1e-5
_HINT_CHARACTERS = 400
_WORDS_AT_ONCE = 64


@dataclass(frozen=True)
class ChunkSampling:
    """Which chunks of the table are eligible, and how many are taken."""

    sample_size: int = 2000
    """Chunks in the sample, over all days."""
    seed: int = 42
    """Decides the ranks: another seed is another sample."""
    max_chunks_per_article: int = 1
    """Most chunks taken from one article."""
    min_words: int = 60
    """Chunks with fewer words are left out."""
    max_words: int = 700
    """Chunks with more words are left out."""
    source_types: tuple[str, ...] = ()
    """Only these values of `source_type`; empty for all."""
    published_from: str = ""
    """First day of publication, as 2026-09-01 (UTC); empty for no limit. Rows without `published_at` count by `fetched_at`."""
    published_until: str = ""
    """Last day of publication, included; empty for no limit."""
    languages: tuple[str, ...] = ("en",)
    """Only chunks that may be in these languages (ISO 639-1: en, de); empty for all. Doubtful texts are kept."""
    near_duplicate_similarity: float = 0.8
    """Chunks that share this much of their three-word sequences (0 to 1) with a lower ranked one are left out; 0: none are."""

    def __post_init__(self) -> None:
        if self.sample_size < 1 or self.max_chunks_per_article < 1:
            raise ValueError(
                f"sample_size={self.sample_size}, max_chunks_per_article={self.max_chunks_per_article}: both must be at least 1."
            )
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(f"min_words={self.min_words}, max_words={self.max_words}: need 1 <= min_words <= max_words.")
        if not 0 <= self.near_duplicate_similarity <= 1:
            raise ValueError(
                f"near_duplicate_similarity={self.near_duplicate_similarity}: need 0 (off) to 1 (same three-word sequences)."
            )
        unknown = [code for code in self.languages if not re.fullmatch("[a-z]{2,3}", code)]
        if unknown:
            raise ValueError(f"languages={unknown}: give ISO 639-1 codes in lower case, such as en or de.")
        first, last = self.publication_window
        if first > last:
            raise ValueError(f"published_from={self.published_from} is after published_until={self.published_until}.")

    @property
    def publication_window(self) -> tuple[date, date]:
        """First and last day of publication, both included; the calendar's first and last where there is no limit."""
        return _day("published_from", self.published_from, date.min), _day("published_until", self.published_until, date.max)


def _day(name: str, text: str, default: date) -> date:
    try:
        return date.fromisoformat(text) if text else default
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a day: write it as 2026-09-01, or leave it empty.") from None


class RowFilter:
    """Tells why a row of the table is not eligible. It sees every row, so it does as little as can be.

    Args:
        sampling: the limits.
        since: first eligible day of `fetched_at`.
    """

    def __init__(self, sampling: ChunkSampling, since: date = date.min) -> None:
        self._sampling = sampling
        self._sources = frozenset(sampling.source_types)
        self._since = datetime.combine(since, time.min)
        first, last = sampling.publication_window
        self._has_window = bool(sampling.published_from or sampling.published_until)
        self._published_from = datetime.combine(first, time.min)
        self._published_before = datetime.max if last == date.max else datetime.combine(last + timedelta(days=1), time.min)

    def problem(self, values: Values) -> str | None:
        """The first reason against a row, given in the order of `SOURCE_COLUMNS`; None when it is eligible.

        Rows that nobody asked for (another source, another time) are named so before anything is said about their text.
        """
        article, index, _, _, _, source_type, published_at, fetched_at, text, _ = values
        if article is None or index is None:
            return "no_id"
        if self._sources and source_type not in self._sources:
            return "other_source_type"
        if fetched_at is None:
            return "no_fetched_at"
        fetched_at = as_utc(fetched_at)
        if fetched_at < self._since:
            return "before_first_day"
        if self._has_window:
            moment = fetched_at if published_at is None else as_utc(published_at)
            if not self._published_from <= moment < self._published_before:
                return "outside_date_window"
        return length_problem(text or "", self._sampling.min_words, self._sampling.max_words)


def as_utc(moment: datetime) -> datetime:
    """Without a time zone, in UTC; columns with and without one both occur."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def length_problem(text: str, min_words: int, max_words: int) -> str | None:
    """Whether a text has words at all, `min_words` at least and `max_words` at most.

    Splits off only as many words as it takes to know: L characters hold at most (L + 1) / 2 words.
    """
    pieces = text.split(None, min_words)  # the last one is the rest, where there is one
    if not pieces:
        return "empty_text"
    if len(pieces) < min_words:
        return "too_short"
    if len(pieces) == min_words:
        return None
    counted, rest = min_words, pieces[-1]
    while counted + (len(rest) + 1) // 2 > max_words:
        pieces = rest.split(None, _WORDS_AT_ONCE)
        if len(pieces) <= _WORDS_AT_ONCE:
            return "too_long" if counted + len(pieces) > max_words else None
        counted, rest = counted + _WORDS_AT_ONCE, pieces[-1]
        if counted >= max_words:
            return "too_long"
    return None


class LanguageHint:
    """Whether a text may be in one of some languages. Only a text that is plainly in another one is refused.

    Names, scores and lists look like no language in particular and are kept. The beginning decides; where it is foreign, the
    whole text is asked.

    Args:
        languages: ISO 639-1 codes; empty for all.

    Raises:
        ValueError: a language that the model does not know.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self._languages = tuple(dict.fromkeys(languages))
        known = set(_identifier().labels) if languages else set()
        unknown = [code for code in self._languages if code not in known]
        if unknown:
            raise ValueError(f"languages={unknown}: not known here. Known are {', '.join(sorted(known))}.")

    def allows(self, text: str) -> bool:
        """False when the text is plainly in another language."""
        if not self._languages or self._share(text[:_HINT_CHARACTERS]) >= FOREIGN_BELOW:
            return True
        return len(text) > _HINT_CHARACTERS and self._share(text) >= FOREIGN_BELOW

    def _share(self, text: str) -> float:
        shares = dict(_identifier().rank(text))
        return float(sum(shares[code] for code in self._languages))


@cache
def _identifier() -> Any:
    """The language model of py3langid (140 languages), read once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
