from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from newsjuice_pipelines.podcast.text.near_duplicates import PERMUTATIONS, RECALL, NearDuplicates, bands, jaccard, shingle_hashes

WORDS = [f"word{number}" for number in range(5000)]


def text_of(seed: int, length: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def shared(first: str, second: str) -> float:
    """Jaccard similarity of three-word shingles, spelled out."""
    sets = [{tuple(words[start : start + 3]) for start in range(len(words) - 2)} for words in (first.split(), second.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_a_lightly_edited_text_is_found_under_the_key_of_the_first() -> None:
    held = NearDuplicates()
    words = text_of(1)
    edited = [*words[:50], "rewritten", *words[51:], "and", "more"]
    assert held.add("first", " ".join(words)) is None
    assert held.add("second", " ".join(edited).upper().replace(" ", " , ")) == "first"


def test_a_text_that_shares_half_is_no_near_duplicate() -> None:
    held = NearDuplicates()
    held.add("first", " ".join(text_of(1)))
    assert held.add("second", " ".join([*text_of(1)[:100], *text_of(2)[:100]])) is None


def test_the_most_similar_text_is_named() -> None:
    held = NearDuplicates(0.5)
    words = text_of(3)
    held.add("far", " ".join([*words[:150], *text_of(4)[:50]]))
    held.add("near", " ".join([*text_of(5)[:80], *words[80:]]))
    assert held.add("asked", " ".join([*words[:20], "x", *words[21:]])) == "far"


def test_a_near_duplicate_is_not_held_so_that_edits_do_not_chain() -> None:
    words = text_of(6)
    once, twice = ([*text_of(7)[:edited], *words[edited:]] for edited in (16, 32))
    held = NearDuplicates()
    held.add("first", " ".join(words))
    assert held.add("once", " ".join(once)) == "first"
    assert shared(" ".join(once), " ".join(twice)) > 0.8 > shared(" ".join(words), " ".join(twice))
    assert held.add("twice", " ".join(twice)) is None


def test_near_names_all_similar_texts_and_holds_every_text_so_that_edits_chain() -> None:
    words = text_of(6)
    once, twice = ([*text_of(7)[:edited], *words[edited:]] for edited in (16, 32))
    held = NearDuplicates()
    assert held.near("first", " ".join(words)) == []
    assert held.near("once", " ".join(once)) == ["first"]
    assert held.near("twice", " ".join(twice)) == ["once"]
    again = held.near("again", " ".join(once))
    assert again[0] == "once"
    assert sorted(again[1:]) == ["first", "twice"]


def test_add_finds_what_near_holds() -> None:
    held = NearDuplicates()
    held.near("first", " ".join(text_of(1)))
    assert held.add("second", " ".join(text_of(1))) == "first"


def test_near_uses_a_key_once_and_holds_no_text_without_a_word() -> None:
    held = NearDuplicates()
    assert held.near("blank", "!!!") == []
    assert held.near("blank", "...") == []
    held.near("a", "one two three four")
    with pytest.raises(ValueError, match="'a' is held already"):
        held.near("a", "five six seven eight")


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9, 0.95])
def test_exactly_the_pairs_at_or_above_the_limit_are_found(similarity: float) -> None:
    for trial in range(60):
        words = text_of(trial, 120)
        kept = random.Random(trial).randrange(20, 118)
        other = [*words[:kept], *text_of(trial + 1000, 120 - kept)]
        held = NearDuplicates(similarity)
        held.add("first", " ".join(words))
        near = shared(" ".join(words), " ".join(other)) >= similarity
        assert held.add("other", " ".join(other)) == ("first" if near else None)


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8, 0.95, 1.0])
def test_the_index_misses_at_most_one_pair_in_a_thousand_at_the_limit(similarity: float) -> None:
    count, rows = bands(similarity)
    assert count * rows <= PERMUTATIONS
    assert 1 - (1 - similarity**rows) ** count >= RECALL


def test_short_texts_are_compared_whole() -> None:
    held = NearDuplicates()
    assert held.add("a", "Fire out.") is None
    assert held.add("b", "fire, OUT") == "a"
    assert held.add("c", "Fire in.") is None


@pytest.mark.parametrize("text", ["", " \n", "!!! ---"])
def test_texts_without_a_word_are_never_duplicates(text: str) -> None:
    held = NearDuplicates()
    assert held.add("a", text) is None
    assert held.add("b", text) is None


def test_a_key_is_used_once() -> None:
    held = NearDuplicates()
    held.add("a", "one two three four")
    with pytest.raises(ValueError, match="'a' is held already"):
        held.add("a", "five six seven eight")


@pytest.mark.parametrize("similarity", [0.0, -1.0, 1.01])
def test_a_limit_that_cannot_work_is_refused(similarity: float) -> None:
    with pytest.raises(ValueError, match=f"similarity={similarity}"):
        NearDuplicates(similarity)


def test_half_a_character_is_no_harm() -> None:
    assert NearDuplicates().add("a", "one \ud83d two three") is None


def test_real_copies_are_found_and_different_articles_are_not(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()
    articles = {entry["article_id"]: entry["content"] for entry in map(json.loads, lines[:500])}
    held = NearDuplicates()
    found = {name: other for name, text in articles.items() if (other := held.add(name, text))}
    overlaps = {name: jaccard(shingle_hashes(articles[name]), shingle_hashes(articles[other])) for name, other in found.items()}
    assert found
    assert min(overlaps.values()) >= 0.8
