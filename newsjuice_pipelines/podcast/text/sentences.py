"""Splitting prose into sentences, and telling whether a text ends with a complete one. English rules, no model."""

from __future__ import annotations

import re


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# An abbreviation before a name or a number: never the end of a sentence, so a text that stops here was cut off.
_TITLES = _words(
    "adm brig capt cmdr col cpl det dr fr gen gov hon insp lt maj messrs mr mrs ms mx pres prof rep reps rev sen sens sgt supt"
)
# An abbreviation that may also end a sentence: the next word decides.
_ABBREVIATIONS = _words(
    "a.d a.k.a a.m approx apt assn asst ave b.a b.c b.s blvd bros ca cf co corp d.c dept dist e.g ed eds esp est etc ext ft "
    "hwy i.e inc jr l.a ltd m.a m.d mt n.y p.m ph.d rd sq sr st u.k u.n u.s u.s.a univ viz vol vs "
    "ariz calif colo conn fla ga ky minn okla penn tenn tex va vt wis"
)
# Before a number only ("Sept. 4", "No. 5", "p. 12").
_BEFORE_NUMBERS = _words("jan feb mar apr jun jul aug sep sept oct nov dec no nos fig figs p pp vol art ch sec")
# Words that open sentences and hardly ever follow an abbreviation within one.
_OPENERS = _words(
    "a about according after all although an and another as at because before both but by critics despite during each "
    "earlier even every few for from he her here his how however i if in instead it its just last later many meanwhile "
    "most my nearly neither next no nobody none nor not now officials on once one only or other others our people police "
    "researchers she since so some still such that the their then there these they this those though three to two under "
    "until we what when where whether which while who why with within without yet you your"
)
_CLOSERS = "\"'”’»)]}"
_OPENING = "\"'“‘«([{¿¡"
# Starts at the first mark of a run and gives none back: a long run of dots is read once, not from each of its dots.
_END = re.compile(rf"(?:(?<![.!?…])[.!?…]++[{re.escape(_CLOSERS)}]*+(?=\s|$)|[。！？]+[」』”’]*)")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_LAST_WORD = re.compile(r"[^\s(\[{\"“‘'—–-]+$")
_NEXT_WORD = re.compile(r"[\w'’]+")


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` in order, stripped, each with its closing quotes; a blank line always ends one.

    Abbreviations (`Dr.`, `U.S.`), initials, decimals and ellipses inside a sentence do not end it. Text after the last
    full stop is returned as a last, incomplete sentence.
    """
    return [text[start:end] for start, end in sentence_spans(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end offsets of each sentence in `text`, so that a caller can cut the text without rewriting it."""
    spans: list[tuple[int, int]] = []
    begin = 0
    for gap in [*_PARAGRAPH.finditer(text), None]:
        end = gap.start() if gap else len(text)
        spans += _spans_of_paragraph(text, begin, end)
        begin = gap.end() if gap else end
    return spans


def ends_complete(text: str) -> bool:
    """Whether `text` stops at the end of a sentence: `. ! ?` with any closing quotes behind it.

    A trailing ellipsis, an abbreviation that needs a next word (`Dr.`) and a bare list number (`2.`) are not an end.
    """
    stripped = text.rstrip()
    bare = stripped.rstrip(_CLOSERS + "」』")
    if not bare or bare[-1] not in ".!?。！？" or bare.endswith(".."):
        return False
    if bare[-1] != ".":
        return True
    last_sentence = stripped[sentence_spans(stripped)[-1][0] :]
    if re.fullmatch(r"\W*\d+\W*", last_sentence):
        return False
    return _word_before(bare, len(bare) - 1) not in _TITLES


def _spans_of_paragraph(text: str, begin: int, end: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = begin
    for mark in _END.finditer(text, begin, end):
        if _ends_sentence(text, mark, end) and not text[start : mark.start()].strip().isdigit():  # a bare list number
            _append(spans, text, start, mark.end())
            start = mark.end()
    _append(spans, text, start, end)
    return spans


def _append(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    inner = text[start:end]
    stripped = inner.strip()
    if stripped:
        first = start + len(inner) - len(inner.lstrip())
        spans.append((first, first + len(stripped)))


def _ends_sentence(text: str, mark: re.Match[str], end: int) -> bool:
    following = text[mark.end() : min(end, mark.end() + 80)].lstrip()  # a look at the next word, not a copy of the rest
    if not following:
        return True
    first = following.lstrip(_OPENING)[:1]
    if first.islower():
        return False
    sign = mark.group().rstrip(_CLOSERS)
    if sign != ".":
        return True
    word = _word_before(text, mark.start())
    if word in _TITLES or (first.isdigit() and word in _BEFORE_NUMBERS):
        return False
    is_initial = len(word) == 1 and word.isalpha() and text[mark.start() - 1].isupper()
    if is_initial or word in _ABBREVIATIONS:
        next_word = _NEXT_WORD.search(following)
        return next_word is not None and next_word.group().casefold() in _OPENERS
    return True


def _word_before(text: str, stop: int) -> str:
    """The word that ends at offset `stop`, in lower case; only the nearby text is looked at."""
    found = _LAST_WORD.search(text[max(0, stop - 24) : stop])
    return found.group().casefold() if found else ""
