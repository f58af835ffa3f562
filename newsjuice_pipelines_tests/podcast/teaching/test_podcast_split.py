from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.podcast.text.near_duplicates import jaccard, shingle_hashes
from newsjuice_pipelines.podcast.training.dataset_config import DatasetConfig, DatasetError
from newsjuice_pipelines.podcast.training.split import SPLITS, group_rows, shared_between_sides, split_draws, split_groups

WORDS = [f"word{number}" for number in range(3000)]


def rows_of(texts: list[str], articles: list[str] | None = None) -> list[dict[str, Any]]:
    names = articles or [f"a{number}" for number in range(len(texts))]
    rows = zip(names, texts, strict=True)
    return [{"chunk_id": f"c{n}", "article_id": name, "chunk_text": text} for n, (name, text) in enumerate(rows)]


def frames_of(rows: list[dict[str, Any]], parts: dict[str, list[int]]) -> dict[str, pd.DataFrame]:
    columns = ["chunk_id", "article_id", "chunk_text"]
    return {name: pd.DataFrame([rows[place] for place in parts[name]], columns=columns) for name in SPLITS}


def text_of(seed: int, length: int = 100) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(text: str, words: int) -> str:
    return " ".join([*(f"new{number}" for number in range(words)), *text.split()[words:]])


def test_a_near_copy_stays_with_its_original(demo_articles: list[dict[str, Any]]) -> None:
    text = demo_articles[0]["content"]
    copy = "Updated version. " + text.replace("seven", "eight")
    assert group_rows(rows_of([text, demo_articles[1]["content"], copy]), 0.5) == [[0, 2], [1]]


def test_near_duplicates_of_near_duplicates_stay_together() -> None:
    first = text_of(1)
    once, twice = edited(first, 25), edited(first, 45)
    overlaps = [jaccard(shingle_hashes(a), shingle_hashes(b)) for a, b in ((first, once), (once, twice), (first, twice))]
    assert min(overlaps[:2]) >= 0.5 > overlaps[2]
    assert group_rows(rows_of([first, twice, once, text_of(2)]), 0.5) == [[0, 1, 2], [3]]


def test_a_shared_footer_does_not_join_articles(demo_articles: list[dict[str, Any]]) -> None:
    footer = " Subscribe to our newsletter for more stories from the campus, the town and the river valley every single week."
    rows = rows_of([article["content"] + footer for article in demo_articles])
    assert len(group_rows(rows, 0.5)) == len(rows)


def test_two_chunks_of_one_article_stay_together() -> None:
    assert group_rows(rows_of(["one thing", "another thing"], ["a", "a"]), 0.5) == [[0, 1]]


def test_equal_words_stay_together_whatever_their_case_and_punctuation() -> None:
    assert group_rows(rows_of(["Fire, out.", "fire OUT", "", "..."]), 1.0) == [[0, 1], [2, 3]]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=40),
    seed=st.integers(0, 99),
    fraction=st.sampled_from([0.05, 0.1, 0.25]),
)
def test_every_split_has_a_row_and_no_group_is_torn(sizes: list[int], seed: int, fraction: float) -> None:
    config = DatasetConfig(validation_fraction=fraction, test_fraction=fraction, seed=seed)
    numbers = iter(range(sum(sizes)))
    groups = [[next(numbers) for _ in range(size)] for size in sizes]
    names = [f"row{number}" for number in range(sum(sizes))]
    parts = split_groups(groups, names, config)
    assert sorted(index for part in parts.values() for index in part) == list(range(sum(sizes)))
    where = {index: name for name, part in parts.items() for index in part}
    assert all(len({where[index] for index in group}) == 1 for group in groups)
    assert all(parts.values())
    random.Random(seed).shuffle(groups)
    assert split_groups(groups, names, config) == parts


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=60, max_size=120),
    seed=st.integers(0, 99),
    fractions=st.sampled_from([(0.1, 0.1), (0.05, 0.05), (0.2, 0.1)]),
)
def test_sizes_are_the_fractions_to_within_one_group(sizes: list[int], seed: int, fractions: tuple[float, float]) -> None:
    config = DatasetConfig(validation_fraction=fractions[0], test_fraction=fractions[1], seed=seed)
    numbers = iter(range(sum(sizes)))
    groups = [[next(numbers) for _ in range(size)] for size in sizes]
    parts = split_groups(groups, [f"row{number}" for number in range(sum(sizes))], config)
    for name, fraction in zip(("validation", "test"), fractions, strict=True):
        target = round(sum(sizes) * fraction)
        assert target - max(sizes) < len(parts[name]) <= target


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_split_by_groups_is_proved_clean_and_any_torn_group_is_found(data: st.DataObject) -> None:
    """Chains of edits, chunks of one article and equal texts: dealt whole nothing is shared; with one row moved, it is."""
    texts: list[str] = []
    articles: list[str] = []
    for number in range(data.draw(st.integers(6, 12), label="articles")):
        text = text_of(number, 60)
        for copy in range(data.draw(st.integers(1, 4), label="copies")):
            kind = data.draw(st.sampled_from(["edit", "equal", "chunk"]), label="kind")
            text = edited(text, 2 * copy) if kind == "edit" else text
            texts.append(text_of(1000 * number + copy, 60) if kind == "chunk" else text)
            articles.append(f"a{number}" if kind == "chunk" or not copy else f"a{number}.{copy}")
    rows = rows_of(texts, articles)
    groups = group_rows(rows, 0.5)
    parts = split_groups(groups, [row["chunk_id"] for row in rows], DatasetConfig(seed=data.draw(st.integers(0, 9))))
    clean = shared_between_sides(frames_of(rows, parts), 0.5)
    assert (clean.articles, clean.pairs, clean.leaked_rows) == ([], [], 0)
    torn = next((group for group in groups if len(group) > 1 and group[0] in parts["train"]), None)
    if torn is not None:
        parts["train"].remove(torn[0])
        parts["test"].append(torn[0])
        found = shared_between_sides(frames_of(rows, parts), 0.5)
        assert found.articles or found.pairs
        assert found.leaked_rows == 1


def test_the_proof_names_articles_pairs_and_counts_each_leaked_row_once() -> None:
    text = text_of(1)
    near = edited(text, 10)
    rows = rows_of([text, text_of(2), near, text_of(3), near, text_of(4)], ["a", "b", "c", "b", "d", "e"])
    proof = shared_between_sides(frames_of(rows, {"train": [0, 1], "validation": [2, 3], "test": [4, 5]}), 0.5)
    assert proof.articles == ["b"]
    overlap = round(jaccard(shingle_hashes(text), shingle_hashes(near)), 4)
    assert proof.pairs == [("c2", "c4", 1.0), ("c0", "c2", overlap), ("c0", "c4", overlap)]
    assert proof.leaked_rows == 3  # both validation rows; the test row c4, although it is near to two sides


def test_a_test_row_shared_with_validation_only_is_leaked() -> None:
    rows = rows_of([text_of(1), text_of(2), text_of(2)])
    proof = shared_between_sides(frames_of(rows, {"train": [0], "validation": [1], "test": [2]}), 0.5)
    assert proof.leaked_rows == 1


@pytest.mark.parametrize("similarity", [0.3, 0.5, 1.0])
def test_the_proof_compares_all_pairs_exactly_whatever_the_block(similarity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newsjuice_pipelines.podcast.training.split._PAIRS_AT_ONCE", 70)
    rows = rows_of([edited(text_of(number % 7, 40), number) for number in range(40)] + ["", "!", "one word"])
    parts = {"train": list(range(0, 43, 2)), "validation": list(range(1, 43, 4)), "test": list(range(3, 43, 4))}
    expected = {
        tuple(rows[place]["chunk_id"] for place in (first, second))
        for number, side in enumerate(SPLITS)
        for other in SPLITS[number + 1 :]
        for first in parts[side]
        for second in parts[other]
        if rows[first]["chunk_text"].strip("!")
        and rows[second]["chunk_text"].strip("!")
        and jaccard(shingle_hashes(rows[first]["chunk_text"]), shingle_hashes(rows[second]["chunk_text"])) >= similarity
    }
    assert {pair[:2] for pair in shared_between_sides(frames_of(rows, parts), similarity).pairs} == expected
    assert expected or similarity == 1.0


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 rows cannot be split"):
        split_draws([0, 0], DatasetConfig())


def test_real_copies_are_on_one_side_and_random_draws_are_found_out(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()
    articles = [json.loads(line) for line in lines[:900]]
    rows = rows_of([article["content"] for article in articles], [article["article_id"] for article in articles])
    config = DatasetConfig()
    parts = split_groups(group_rows(rows, 0.5), [row["chunk_id"] for row in rows], config)
    side: dict[str, set[str]] = {}
    for name, part in parts.items():
        for index in part:
            side.setdefault(rows[index]["chunk_text"], set()).add(name)
    assert len(side) < len(rows)
    assert all(len(names) == 1 for names in side.values())
    proof = shared_between_sides(frames_of(rows, parts), 0.5)
    assert (proof.articles, proof.pairs, proof.leaked_rows) == ([], [], 0)
    drawn = frames_of(rows, split_draws(random.Random(1).choices(range(len(rows)), k=300), config))
    leaky = shared_between_sides(drawn, 0.5)
    assert leaky.leaked_rows > 5
    assert leaky.articles
    assert leaky.pairs
