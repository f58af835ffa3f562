"""Names in English prose: capitalised words inside sentences, and whether an article holds them in any form.

Rules and short word lists, no model. What is done with an unsupported name is `script_filters.py`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from newsjuice_pipelines.podcast.text.sentences import sentence_spans
from newsjuice_pipelines.podcast.text.spoken_numbers import is_number_word

_WORD = re.compile(r"(?<!\w)[^\W\d_](?:[\w&]|['’.-](?=\w))*")
_HUMP = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_IS_CODE = re.compile(r"[\d&]")
_PIECE_BORDER = re.compile(r"[-']")
_INSIDE_RUN = re.compile(r"\.?\s+(?:(?:of|the|for|and)\s+){0,2}")
_QUOTES = "\"'“‘«"
_SENTENCE_LIKE = frozenset(",:;—–…?!")  # in front of a quotation, and all but the comma in front of any word: it starts there
_DAYS = "monday tuesday wednesday thursday friday saturday sunday"
_MONTHS = (
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
_TITLES = (
    "mr mrs ms miss mx dr prof professor sir dame lord lady st saint rev reverend father sister president vice prime minister "
    "chancellor secretary chairman chairwoman chairperson chair chief executive officer director dean judge justice senator "
    "congressman congresswoman representative governor mayor king queen prince princess captain coach general colonel major "
    "sergeant lieutenant detective inspector constable ambassador councillor doctor nurse host"
)
_FUNCTION_WORDS = (
    "a an and as at but by for from he her his how i if in into is it its my no nor not of off on or our out she so than that "
    "the their then there these they this those to up was we were what when where which while who why with yes you your"
)
# Said in any news script without being a claim about its article.
_COMMON = "newsjuice ok okay tv am pm gmt internet web english north south east west northern southern eastern western"
_NO_NAMES = frozenset(" ".join((_DAYS, _MONTHS, _TITLES, _FUNCTION_WORDS, _COMMON)).split())
_ENDINGS = ("", "n", "an", "ian", "ean", "ese", "ish", "i", "ic", "y", "ey", "a", "e", "en", "ce", "k", "er")
_INFLECTIONS = frozenset(_ENDINGS) | {ending + "s" for ending in _ENDINGS} | {"es"}
_MIN_STEM = 4
# Countries and unions under their other names; "united", "states" and the like tell nothing alone, only their initials do.
_SAME = tuple(
    frozenset(group.split())
    for group in (
        "us usa america american americans united states",
        "uk britain british briton britons united kingdom",
        "eu europe european europeans union",
        "un united nations",
        "france french",
        "spain spanish spaniard spaniards",
        "poland polish pole poles",
        "wales welsh",
        "denmark danish dane danes",
        "netherlands dutch holland",
        "scotland scottish scots scot",
        "england english",
        "ireland irish",
        "switzerland swiss",
        "norway norwegian norwegians",
        "finland finnish finn finns",
        "turkey turkish turk turks",
        "cyprus cypriot cypriots",
        "philippines filipino filipinos",
    )
)
_TELL_NOTHING = frozenset({"united", "states", "kingdom", "union", "nations"})
_LONGEST_ACRONYM = 6
_LONGEST_WORDLIKE = 4


@dataclass(frozen=True)
class Name:
    """A capitalised word of a script, without accents, and the run of such words that it stands in."""

    text: str
    run: tuple[str, ...]


def find_names(script: str) -> list[Name]:
    """The capitalised words inside the sentences of `script`, without those that are no names.

    A sentence's first word, and the first of a quotation, is capitalised anyway and left out.
    """
    names: list[Name] = []
    folded = _fold(script)
    for start, end in sentence_spans(folded):
        sentence = folded[start:end]
        for run in _capital_runs(sentence):
            words = tuple(word.group() for word in run)
            names += [Name(word.group(), words) for word in run if not _starts(sentence, word) and not _is_no_name(word.group())]
    return names


class Names:
    """The words of an article, to look up names in."""

    def __init__(self, article: str) -> None:
        self._article = _fold(article)
        self._words = set(_WORD.findall(self._article))
        self._keys = {key for word in self._words for key in _keys(word)}

    def support(self, name: Name) -> bool:
        """Whether the article holds the name's word, or each part of it: inflected, as a country's other name, as initials."""
        word, key = name.text, _key(name.text)
        if word.isupper() and len(key) <= _LONGEST_WORDLIKE:  # "US" and "WHO" are no "us" and "who"
            return key in self._capitalised or key in self._other_names or key.upper() in self._acronyms
        if key in self._keys or key.replace("-", "") in self._keys or self._holds_initials(name):
            return True
        if _IS_CODE.search(word):  # "G8", "AT&T": its letters alone say nothing
            return False
        return all(
            self._knows(_key(piece)) or (_humps(piece) and all(self._knows(_key(hump)) for hump in _humps(piece)))
            for piece in _PIECE_BORDER.split(word)
        )

    def _knows(self, part: str) -> bool:
        return (
            len(part) <= 1
            or is_number_word(part)
            or part in _NO_NAMES
            or part in self._keys
            or part.removesuffix("s") in self._keys
            or part + "s" in self._keys
            or part in self._other_names
            or part.upper() in self._acronyms
            or any(_inflects(part, key) for key in self._by_beginning.get(part[:_MIN_STEM], ()))
        )

    def _holds_initials(self, name: Name) -> bool:
        """Whether the article has the short form of what the script spells out: "WHO" for World Health Organization."""
        return any(
            name.text in name.run[first:last] and "".join(word[0] for word in name.run[first:last]) in self._abbreviations
            for first in range(len(name.run) - 1)
            for last in range(first + 2, min(len(name.run), first + _LONGEST_ACRONYM) + 1)
        )

    @cached_property
    def _abbreviations(self) -> frozenset[str]:
        bare = (word.replace(".", "") for word in self._words)
        return frozenset(word for word in bare if word.isupper() and 2 <= len(word) <= _LONGEST_ACRONYM)

    @cached_property
    def _acronyms(self) -> frozenset[str]:
        """Initials of the article's capitalised words in a row, two to six of them."""
        runs = [[word.group()[0] for word in run] for run in _capital_runs(self._article)]
        return frozenset(
            "".join(run[first:last])
            for run in runs
            for first in range(len(run) - 1)
            for last in range(first + 2, min(len(run), first + _LONGEST_ACRONYM) + 1)
        )

    @cached_property
    def _capitalised(self) -> frozenset[str]:
        return frozenset(key for word in self._words if word[0].isupper() for key in _keys(word))

    @cached_property
    def _other_names(self) -> frozenset[str]:
        present = {key for key in self._capitalised if len(key) > 2} - _TELL_NOTHING | {
            word.lower() for word in self._abbreviations | self._acronyms
        }
        return frozenset().union(*(group for group in _SAME if group & present))

    @cached_property
    def _by_beginning(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in self._keys:
            found.setdefault(key[:_MIN_STEM], []).append(key)
        return found


def _capital_runs(text: str) -> list[list[re.Match[str]]]:
    """Capitalised words that follow one another, also across "of", "the", "for" and "and"."""
    runs: list[list[re.Match[str]]] = []
    for word in _WORD.finditer(text):
        if not word.group()[0].isupper():
            continue
        if runs and _INSIDE_RUN.fullmatch(text, runs[-1][-1].end(), word.start()):
            runs[-1].append(word)
        else:
            runs.append([word])
    return runs


def _starts(sentence: str, word: re.Match[str]) -> bool:
    """Whether the word is capitalised because something starts with it: the sentence, a quotation, what follows a colon."""
    before = sentence[: word.start()]
    if before[-1:] and before[-1] in _QUOTES:
        outside = before.rstrip(_QUOTES).rstrip()
        return not outside or outside[-1] in _SENTENCE_LIKE
    stripped = before.rstrip()
    if not any(character.isalnum() for character in stripped):
        return True
    return stripped.endswith("..") or stripped[-1] in _SENTENCE_LIKE - {","}


def _is_no_name(word: str) -> bool:
    first = re.split(r"['’]", word)[0].replace(".", "").lower()
    return (len(first) == 1 and len(word) <= 4) or first in _NO_NAMES or is_number_word(first)


def _fold(text: str) -> str:
    """The text without accents, with straight apostrophes."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text).replace("’", "'")
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _key(word: str) -> str:
    """A folded word in lower case without dots and possessive ending."""
    return word.lower().removesuffix("'s").removesuffix("'").replace(".", "")


def _keys(word: str) -> set[str]:
    """All that a folded word of the article can be found by: as a whole, joined, and by its parts."""
    if word.isalpha() and word[1:].islower():
        return {word.lower()}
    key = _key(word)
    return {key, key.replace("-", ""), *(_key(part) for piece in _PIECE_BORDER.split(word) for part in (piece, *_humps(piece)))}


def _humps(word: str) -> list[str]:
    """The parts of a word such as TimeWarner; none for another word."""
    parts = _HUMP.findall(word)
    return parts if len(parts) > 1 and all(len(part) > 2 for part in parts) else []


def _inflects(word: str, other: str) -> bool:
    """Whether both are one stem of four letters or more with usual endings: Canada, Canadian."""
    return any(
        other[length:] in _INFLECTIONS and word[length:] in _INFLECTIONS and word[:length] == other[:length]
        for length in range(_MIN_STEM, min(len(word), len(other)) + 1)
    )
