"""Whether an article supports the names and the numbers of a script. Numbers are compared by value, not by spelling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

from newsjuice_pipelines.podcast.text.names import Names, find_names
from newsjuice_pipelines.podcast.text.spoken_numbers import Number, Reading, find_numbers

# Small counts that speech adds by itself when spelled out: "one of them", "both of the two", "the second point".
_COMMON_COUNTS = frozenset(map(Decimal, (0, 1, 2)))
_LATEST_YEAR = 2100
_HEDGES = {
    ROUND_FLOOR: r"over|above|(?:more|greater|higher) than|at least|upwards of",
    ROUND_CEILING: r"nearly|almost|under|below|(?:less|fewer|lower) than|up to|at most|as (?:many|much) as|close to",
    ROUND_HALF_UP: r"about|around|approximately|roughly|some|an estimated",
}
_HEDGE_BEFORE = {
    rounding: re.compile(rf"\b(?:{words})[\s-]+(?:an?\s+)?[£$€]?$", re.IGNORECASE) for rounding, words in _HEDGES.items()
}
_HEDGE_BEHIND = re.compile(r"[\s-]*(?:odd\b|or so\b|ish\b)", re.IGNORECASE)
_CENTURY_BEHIND = re.compile(r"[\s-]*century\b", re.IGNORECASE)
_SPAN_BEHIND = re.compile(r"[\s-]*(?P<span>decades?|century|centuries)\b", re.IGNORECASE)
_SPAN = re.compile(r"\b(?P<count>half[\s-]+a|an?|the|last|past)[\s-]+(?P<span>decade|century)\b", re.IGNORECASE)
_YEARS = {"d": 10, "c": 100}  # in a decade, in a century
_HEDGE_REACH = 24  # characters in front of a number where a hedge is looked for
_TWO_DIGIT_END = re.compile(r"[-–/](\d{2})(?!\d)")  # the second year of "2004-05"
_ROMAN = re.compile(r"\b(?=[IVX]{2}|[VX]\b)(X{0,3})(IX|IV|V?I{0,3})\b")
_ROMAN_UNITS = {"": 0, "I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9}


@dataclass(frozen=True)
class Support:
    """How many names or numbers were found in a script, and those that the article does not support."""

    found: int
    unsupported: tuple[str, ...]

    @property
    def share(self) -> float | None:
        """Supported ones over all, 0 to 1; None where nothing was found."""
        return 1 - len(self.unsupported) / self.found if self.found else None


def unsupported_numbers(script: str, article: str) -> tuple[str, ...]:
    """The numbers of `script`, as they are written there, whose values are not in `article`."""
    return number_support(script, article).unsupported


def unsupported_names(script: str, article: str) -> tuple[str, ...]:
    """The words of names inside the sentences of `script` that are not in `article`."""
    return name_support(script, article).unsupported


def number_support(script: str, article: str) -> Support:
    """Look for the values of the script's numbers in the article.

    Separators, currency, percent, scale words, ordinals, decades, clock times and spelling make no difference. A number may
    be rounded when the script says so ("nearly", "more than") or keeps two digits. Spelled counts up to two are not looked at.
    """
    numbers = list(find_numbers(script))
    if not numbers:
        return Support(0, ())
    known = _known_values(article)
    return Support(len(numbers), tuple(number.text for number in numbers if not _is_supported(number, script, known)))


def name_support(script: str, article: str) -> Support:
    """Look for the words of the script's names in the article, in any inflection."""
    found = find_names(script)
    if not found:
        return Support(0, ())
    names = Names(article)
    return Support(len(found), tuple(name.text for name in found if not names.support(name)))


def _is_supported(number: Number, script: str, known: frozenset[Decimal]) -> bool:
    """Whether readings that the article supports add up to the whole number."""
    before = script[max(0, number.start - _HEDGE_REACH) : number.start]
    behind = script[number.start + len(number.text) :][:_HEDGE_REACH]
    hedge = next((rounding for rounding, words in _HEDGE_BEFORE.items() if words.search(before)), None)
    if hedge is None and _HEDGE_BEHIND.match(behind):
        hedge = ROUND_HALF_UP
    is_century = bool(_CENTURY_BEHIND.match(behind))
    years = _years_behind(behind)

    def is_known(reading: Reading) -> bool:
        value = reading.value
        return (
            value in known
            or value * years in known
            or (number.spelled and value in _COMMON_COUNTS)
            or (reading.decade and _any_between(known, value, value + 9))
            or (is_century and _any_between(known, (value - 1) * 100, value * 100))
            or any(_rounds_to(exact, value, hedge) for exact in known)
        )

    return number.adds_up(is_known)


def _years_behind(behind: str) -> int:
    """How many years the word behind a number stands for; 1 when it is no span of years."""
    span = _SPAN_BEHIND.match(behind)
    return _YEARS[span["span"][0].lower()] if span else 1


def _any_between(known: frozenset[Decimal], lowest: Decimal, highest: Decimal) -> bool:
    return any(lowest <= value <= highest for value in known)


def _rounds_to(exact: Decimal, rounded: Decimal, hedge: str | None) -> bool:
    """Whether `rounded` stands for `exact`: as its hedge says, or else to two digits or more, years excepted."""
    if not rounded / 2 < exact < rounded * 2:
        return False
    _, digits, exponent = rounded.normalize().as_tuple()
    if not isinstance(exponent, int):
        return False
    step = Decimal(1).scaleb(exponent)
    if hedge is not None:
        return _to_step(exact, step, hedge) == rounded
    is_year = exponent >= 0 and 1000 <= rounded < _LATEST_YEAR
    is_rough = exact >= 1000 or exact != exact.to_integral_value()
    return len(digits) >= 2 and is_rough and not is_year and _to_step(exact, step, ROUND_HALF_UP) == rounded


def _to_step(value: Decimal, step: Decimal, rounding: str) -> Decimal:
    return (value / step).to_integral_value(rounding) * step


def _known_values(article: str) -> frozenset[Decimal]:
    """Every value that the article's numbers, and parts of them, can be read as."""
    known: set[Decimal] = set()
    for number in find_numbers(article):
        years = _years_behind(article[number.start + len(number.text) :][:_HEDGE_REACH])
        known |= {value for reading in number.readings for value in (reading.value, reading.value * years)}
        if not number.spelled:
            known |= _derived_values(number, article)
    for span in _SPAN.finditer(article):
        length = Decimal(_YEARS[span["span"][0].lower()])
        known.add(length / 2 if span["count"][0] in "hH" else length)
    for tens, units in _ROMAN.findall(article):
        known.add(Decimal(10 * len(tens) + _ROMAN_UNITS[units]))
    return frozenset(known)


def _derived_values(number: Number, article: str) -> set[Decimal]:
    """Other ways to say what stands in digits: short and full years, clock times, pounds and pence."""
    derived: set[Decimal] = set()
    for value in {reading.value for reading in number.readings}:
        whole = int(value)
        if value == whole and 1000 <= whole < _LATEST_YEAR:
            derived.add(value % 100)
            if second_year := _TWO_DIGIT_END.match(article, number.start + 4):
                derived.add(Decimal(whole // 100 * 100 + int(second_year[1])))
        if value == whole < 100 and article[max(0, number.start - 1) : number.start] in {"'", "’", "‘"}:
            derived |= {value + 1900, value + 2000}
    if clock := re.fullmatch(r"(\d{1,2})[:.](\d{2})", number.text):
        hour, minute = int(clock[1]), int(clock[2])
        derived |= {Decimal(hour), Decimal(hour + 1)}
        if "." in number.text:  # perhaps money
            derived.add(Decimal(minute))
        if 12 < hour < 24:
            derived |= {Decimal(hour - 12), Decimal(hour - 11), Decimal((hour - 12) * 100 + minute)}
    return derived
