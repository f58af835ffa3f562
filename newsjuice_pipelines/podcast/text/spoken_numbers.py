"""Numbers in English prose, in digits or spelled out as speech does, with every value that they can be read as.

Only reading; whether an article supports a number is `support.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

_MAX_RUN_WORDS = 12  # number words in a row that are read as one number; longer runs are counting aloud


class Reading(NamedTuple):
    """One value that the parts `first` to `last` (exclusive) of a number can be read as."""

    first: int
    last: int
    value: Decimal
    decade: bool = False
    """Whether it is a span of ten, such as the 1990s, or somebody's thirties."""


@dataclass(frozen=True)
class Number:
    """A number in a text. `parts` are its words or digit groups; readings of some of them may add up to the whole."""

    text: str
    start: int
    parts: int
    readings: tuple[Reading, ...]
    borders: frozenset[int]
    """Where one number may end and the next begin: "seven thirty" has one in the middle, "thirty-seven" has none."""
    spelled: bool

    def adds_up(self, accepts: Callable[[Reading], bool]) -> bool:
        """Whether readings that are accepted follow one another from the first part to the last."""
        reached = {0}
        for reading in sorted(self.readings):
            if reading.first in reached and {reading.first, reading.last} <= self.borders and accepts(reading):
                reached.add(reading.last)
        return self.parts in reached


class _Word(NamedTuple):
    kind: str
    value: Decimal = Decimal(0)
    is_last: bool = False  # ordinals and decades end a number
    decade: bool = False


_UNITS = "zero one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNIT_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth"
_TEEN_ORDINALS = "tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"


class _Place(NamedTuple):
    """A number word and where it stands."""

    word: _Word
    start: int
    end: int
    behind_comma: bool


def _vocabulary() -> dict[str, _Word]:
    unit_ordinals = _UNIT_ORDINALS.split()
    words = {word: _Word("unit", Decimal(value)) for value, word in enumerate(_UNITS.split())}
    words |= {word: _Word("teen", Decimal(value)) for value, word in enumerate(_TEENS.split(), start=10)}
    words |= {word: _Word("unit", Decimal(value), is_last=True) for value, word in enumerate(unit_ordinals, start=1)}
    words |= {word: _Word("teen", Decimal(value), is_last=True) for value, word in enumerate(_TEEN_ORDINALS.split(), start=10)}
    for value, word in zip(range(20, 100, 10), _TENS.split(), strict=True):
        words[word] = _Word("tens", Decimal(value))
        words[word[:-1] + "ieth"] = _Word("tens", Decimal(value), is_last=True)
        words[word[:-1] + "ies"] = _Word("tens", Decimal(value), is_last=True, decade=True)
    for word, value in (("hundred", 100), ("dozen", 12)):
        words[word] = _Word("hundred", Decimal(value))
    for word, power in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)):
        words[word] = _Word("scale", Decimal(10) ** power)
        words[word + "th"] = _Word("scale", Decimal(10) ** power, is_last=True)
    words["hundredth"] = _Word("hundred", Decimal(100), is_last=True)
    words |= {word: _Word("fraction", Decimal(value)) for value, word in enumerate(("halves", "thirds", "quarters"), start=2)}
    words |= {word + "s": _Word("fraction", Decimal(value)) for value, word in enumerate(unit_ordinals[3:], start=4)}
    words["tenths"] = _Word("fraction", Decimal(10))
    return words | {
        "nought": words["zero"],
        "nil": words["zero"],
        "oh": _Word("oh"),
        "point": _Word("point"),
        "and": _Word("and"),
        "and a half": _Word("and a half"),
        "half a": _Word("half a"),
        "half an": _Word("half a"),
    }


_VOCABULARY = _vocabulary()
_BEFORE_SMALL = frozenset({"", "hundred", "scale", "and"})
_JOINING = frozenset({"oh", "point", "and", "and a half", "fraction"})  # they mean a number after another number word only
_SCALES = {
    "hundred": Decimal(100),
    "dozen": Decimal(12),
    **dict.fromkeys(("k", "thousand"), Decimal(10) ** 3),
    **dict.fromkeys(("m", "mn", "mln", "million"), Decimal(10) ** 6),
    **dict.fromkeys(("b", "bn", "billion"), Decimal(10) ** 9),
    **dict.fromkeys(("t", "tn", "trn", "trillion"), Decimal(10) ** 12),
}
_LETTER_SCALES = frozenset("kmbt")  # also metres, tonnes and the like: the number may be meant as it stands
_VULGAR = {"½": Decimal("0.5"), "¼": Decimal("0.25"), "¾": Decimal("0.75")}
_PLACE = re.compile(
    r"(?P<digits>\d+(?:[.,:]\d+)*)"
    r"(?P<half>\s?[½¼¾]|[\s-]+and[\s-]+a[\s-]+half\b)?"
    r"(?:(?P<scale>[\s-]*(?:hundred|dozen|thousand|million|billion|trillion|mln|mn|bn|trn|tn)\b|[kmbt]\b)|(?P<decade>['’]?s\b))?"
    r"|(?P<word>\bhalf[\s-]+an?(?=[\s-]+(?:dozen|hundred|thousand|million|billion|trillion)\b)|\band[\s-]+a[\s-]+half\b|[^\W\d_]+)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"[\s-]+")
_GAP = re.compile(r"[\s‐‑-]+")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_PLAIN = re.compile(r"\d+(?:\.\d+)?")
_CLOCK = re.compile(r"(\d{1,2})[:.](\d{2})")


def find_numbers(text: str) -> Iterator[Number]:
    """The numbers of `text` in order.

    Digits inside a word ("G8", "A380") belong to a name and are left out, and so are number words that make no number.
    """
    run: list[_Place] = []
    for place in _PLACE.finditer(text):
        word = _number_word(place[0]) if place.lastgroup == "word" else None
        if word is None and place.lastgroup == "word":
            continue
        behind_comma = bool(run) and run[-1].word.kind == "scale" and text.startswith(",", run[-1].end)
        joins = (
            word and len(run) < _MAX_RUN_WORDS and _GAP.fullmatch(text, run[-1].end + behind_comma, place.start())
            if run
            else None
        )
        if not joins:
            yield from _spelled(text, run)
            run, behind_comma = [], False
        if word is None:
            if place.start() == 0 or not text[place.start() - 1].isalpha():
                yield _in_digits(place)
        elif run or word.kind not in _JOINING:
            run.append(_Place(word, place.start(), place.end(), behind_comma))
    yield from _spelled(text, run)


def is_number_word(word: str) -> bool:
    """Whether `word` spells a number or a part of one: "ninth", "hundred", "thirties"."""
    return word.lower() in _VOCABULARY


def _number_word(word: str) -> _Word | None:
    spelled = word.lower()
    return _VOCABULARY.get(spelled if word.isalpha() else _SPACES.sub(" ", spelled))


def _in_digits(place: re.Match[str]) -> Number:
    digits, scale = place["digits"], _SPACES.sub("", place["scale"] or "").lower()
    readings: list[Reading] = []
    groups = re.split(r"[.,:]", digits)
    clock = _CLOCK.fullmatch(digits)
    parts = 1
    if _GROUPED.fullmatch(digits) or _PLAIN.fullmatch(digits):
        value = Decimal(digits.replace(",", ""))
        if place["half"]:
            value += _VULGAR.get(place["half"].strip(), Decimal("0.5"))
        if scale:
            readings.append(Reading(0, 1, value * _SCALES[scale]))
        if not scale or scale in _LETTER_SCALES:
            readings.append(Reading(0, 1, value, decade=bool(place["decade"]) and digits.endswith("0")))
    elif not clock:
        parts = len(groups)
        readings += [Reading(index, index + 1, Decimal(group)) for index, group in enumerate(groups)]
    if clock:  # "7:30", which speech makes "seven thirty"
        readings.append(Reading(0, 1, Decimal(int(clock[1]) * 100 + int(clock[2]))))
        if int(clock[2]) == 0:
            readings.append(Reading(0, 1, Decimal(clock[1])))
    return Number(place.group(), place.start(), parts, tuple(readings), frozenset(range(parts + 1)), spelled=False)


def _spelled(text: str, run: Sequence[_Place]) -> Iterator[Number]:
    """The number that the words of `run` make; none for words that make none."""
    if not run:
        return
    words = [place.word for place in run]
    readings = [
        Reading(first, last, value, decade=words[last - 1].decade)
        for first in range(len(words))
        for last in range(first + 1, len(words) + 1)
        for value in _values(words[first:last])
    ]
    inner = {index for index in range(1, len(words)) if run[index].behind_comma or _may_part(words[index - 1], words[index])}
    start, end = run[0].start, run[-1].end
    number = Number(text[start:end], start, len(words), tuple(readings), frozenset({0, len(words)} | inner), spelled=True)
    if number.adds_up(lambda _: True):
        yield number
    else:  # the last word belongs to something else: "third and fourth quarters"
        yield from _spelled(text, run[:-1])


def _may_part(left: _Word, right: _Word) -> bool:
    """Whether one number may end with `left` and another begin with `right`."""
    if left.is_last or "and" in (left.kind, right.kind):
        return True
    small = {"unit", "teen", "tens"}
    if right.kind not in small:
        return False
    return left.kind in {"unit", "teen"} or (left.kind == "tens" and right.kind != "unit")


def _values(words: Sequence[_Word]) -> set[Decimal]:
    """What the words mean as one number: nothing, when they are not one."""
    if words[0].kind == "and":  # between two numbers
        words = words[1:]
    if not words or any(word.is_last for word in words[:-1]):
        return set()
    values = {_cardinal(words), _decimal(words), _digit_by_digit(words)}
    if words[-1].kind == "fraction":
        values |= _fraction(words[:-1], words[-1].value)
    elif len(words) == 1 and words[0].is_last and 3 <= words[0].value <= 10:  # "a fifth" of something
        values |= _fraction([_Word("unit", Decimal(1))], words[0].value)
    return {value for value in values if value is not None}


def _cardinal(words: Sequence[_Word]) -> Decimal | None:
    """The value of number words in the usual order, such as "two thousand three hundred and four"."""
    total, current, before, scale_before = Decimal(0), Decimal(0), "", None
    for index, (kind, value, _, _) in enumerate(words):
        if kind in {"unit", "teen", "tens"} and (before in _BEFORE_SMALL or (kind == "unit" and value and before == "tens")):
            current += value
        elif kind == "half a" and not before:
            current = Decimal("0.5")
        elif kind == "and a half" and before in {"unit", "teen", "tens"}:
            current += Decimal("0.5")
        elif kind == "hundred" and before in {"", "unit", "teen", "tens", "half a", "and a half"}:
            current = (current or Decimal(1)) * value
        elif kind == "scale" and before not in {"scale", "and"} and (scale_before is None or value < scale_before):
            total += (current or Decimal(1)) * value
            current, scale_before = Decimal(0), value
        elif not (kind == "and" and before in {"hundred", "scale"} and index + 1 < len(words)):
            return None
        before = kind
    return None if before == "half a" else total + current


def _decimal(words: Sequence[_Word]) -> Decimal | None:
    """The value of words such as "one point five million"."""
    kinds = [word.kind for word in words]
    if kinds.count("point") != 1:
        return None
    point = kinds.index("point")
    scales = [word.value for word in words[point + 1 :] if word.kind in {"scale", "hundred"}]
    digits = words[point + 1 : len(words) - len(scales)]
    whole = _cardinal(words[:point])
    if whole is None or not digits or any(word.kind not in {"unit", "teen", "tens", "oh"} for word in digits):
        return None
    value = Decimal(f"{whole:f}.{_joined(digits)}")
    for scale in scales:
        value *= scale
    return value


def _digit_by_digit(words: Sequence[_Word]) -> Decimal | None:
    """The value of words said one after the other: "nineteen ninety-eight", "twenty oh five", "seven thirty", "nine one one"."""
    if len(words) < 2 or words[0].kind == "oh" or any(word.kind not in {"unit", "teen", "tens", "oh"} for word in words):
        return None
    return Decimal(_joined(words))


def _joined(words: Sequence[_Word]) -> str:
    """The digits of words said one after the other; a unit behind a ten fills its last place."""
    digits = ""
    for index, word in enumerate(words):
        fills = word.kind == "unit" and index > 0 and words[index - 1].kind == "tens" and word.value > 0
        digits = digits[:-1] + str(word.value) if fills else digits + str(word.value)
    return digits


def _fraction(count: Sequence[_Word], parts: Decimal) -> set[Decimal]:
    """A fraction as such, with a whole number before it, and in percent, rounded both ways: two thirds are 66 and 67 percent."""
    kinds = [word.kind for word in count]
    border = kinds.index("and") if "and" in kinds else 0
    whole = _cardinal(count[:border]) if border else Decimal(0)
    over = _cardinal(count[border + 1 :] if border else count)
    if whole is None or over is None or not 0 < over < parts:
        return set()
    if whole:
        return {round(whole + over / parts, 4)}
    percent = 100 * over / parts
    return {round(over / parts, 4), Decimal(int(percent)), round(percent, 0)}
