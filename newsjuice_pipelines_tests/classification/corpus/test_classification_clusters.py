"""Near-duplicate clusters: what belongs together, whatever the order, found without comparing everything with everything."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.corpus import clusters
from newsjuice_pipelines.classification.corpus.clusters import find_clusters, label_disagreement
from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable, load_huffpost
from newsjuice_pipelines.classification.corpus.shingles import BANDS, SHINGLE_LETTERS, letters_of, overlaps


def together(texts: list[str], **options: int) -> set[frozenset[str]]:
    """The clusters of several different texts, as sets of texts."""
    numbers = find_clusters(texts, **options).numbers
    found = [frozenset(text for text, owner in zip(texts, numbers, strict=True) if owner == number) for number in set(numbers)]
    return {cluster for cluster in found if len(cluster) > 1}


def exact_overlap(one: str, other: str) -> float:
    """Jaccard of the sets of 5-grams, straight from the definition."""
    first, second = (
        {letters[start : start + SHINGLE_LETTERS] for start in range(max(1, len(letters) - SHINGLE_LETTERS + 1))}
        for letters in (letters_of(one), letters_of(other))
    )
    return len(first & second) / len(first | second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't Panic, The Mayor Says!", "dont panic the mayor says"),
        ("Ｆｕｌｌ width letters", "FULL WIDTH LETTERS"),
        ("The first - ever robot that cooks dinner for a family", "The first-ever robot that cooks dinner for a family"),
        (
            "Senate passes sweeping climate bill after a long night of debate in Washington",
            "Senate passes sweeping climate bill after long night of debate in Washington",
        ),
    ],
)
def test_two_writings_of_one_text_are_together(one: str, other: str) -> None:
    assert together([one, other, "Nine soups that taste of autumn"]) == {frozenset((one, other))}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("???", "!!!"),
        ("Yes", "No"),
        ("", " "),
        ("Nine soups that taste of autumn", "A guide to the best beaches of Portugal"),
    ],
)
def test_different_texts_are_apart(one: str, other: str) -> None:
    assert together([one, other]) == set()


def test_overlaps_are_those_of_the_definition(demo_table: HuffPostTable) -> None:
    texts = ["", "a", "abc", "abcde", "abcdef", *demo_table.rows["text"][:30]]
    pairs = np.array(list(combinations(range(len(texts)), 2)))
    found = overlaps([letters_of(text) for text in texts], pairs[:, 0], pairs[:, 1])
    assert found == pytest.approx([exact_overlap(texts[one], texts[other]) for one, other in pairs])


def test_no_pair_above_the_limit_is_missed(demo_table: HuffPostTable) -> None:
    chance = random.Random(5)
    texts = list(demo_table.rows["text"][:150])
    edited = []
    for text in texts:  # from one to several edited words
        words = text.split()
        for _ in range(chance.randint(1, 5)):
            words[chance.randrange(len(words))] = chance.choice(texts).split()[0]
        edited.append(" ".join(words))
    numbers = dict(zip(texts + edited, find_clusters(texts + edited, embedded_pairs=0).numbers, strict=True))
    near = [pair for pair in zip(texts, edited, strict=True) if exact_overlap(*pair) >= clusters.SAME_OVERLAP]
    assert len(near) > 40
    assert [pair for pair in near if numbers[pair[0]] != numbers[pair[1]]] == []


def test_the_demo_headlines_are_all_different(demo_table: HuffPostTable) -> None:
    assert together(list(demo_table.rows["text"])) == set()


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.text("abc .", max_size=24), max_size=30))
def test_clusters_do_not_depend_on_the_order_or_the_repetition_of_the_texts(chance: random.Random, texts: list[str]) -> None:
    shuffled = texts + chance.choices(texts, k=5) if texts else []
    chance.shuffle(shuffled)
    assert together(shuffled, embedded_pairs=0) == together(texts, embedded_pairs=0)


def test_all_texts_equal_are_one_cluster() -> None:
    found = find_clusters(["The same headline"] * 1000)
    assert set(found.numbers) == {0}
    assert found.facts["largest_cluster"] == 1000
    assert found.facts["compared_pairs"] == 0


def test_no_text_at_all_has_no_cluster() -> None:
    assert find_clusters([]).facts["clusters"] == 0


def test_a_frequent_phrase_does_not_make_the_work_quadratic() -> None:
    chance = random.Random(1)
    phrase = "Sign up for the morning mail and read all the news that matter to you before breakfast"
    texts = [f"{phrase} {chance.getrandbits(200):x}" for _ in range(1500)]
    facts = find_clusters(texts, embedded_pairs=0).facts
    assert facts["compared_pairs"] <= len(texts) * BANDS * clusters.NEIGHBOURS


SAME_STORY = (
    "Teen rescues three children from burning house in Ohio",
    "Ohio teen rescues three children from a burning house",
)
OTHER_STORY = (
    "How to find a good dentist in Springfield this winter",
    "How to find a good plumber in Springfield this winter",
)


def test_minilm_tells_a_rewritten_headline_from_another_story_with_the_same_words() -> None:
    assert all(clusters.DOUBTFUL_OVERLAP <= exact_overlap(*pair) < clusters.SAME_OVERLAP for pair in (SAME_STORY, OTHER_STORY))
    found = find_clusters([*SAME_STORY, *OTHER_STORY])
    assert found.facts["second_look"] == {"minilm": {"pairs": 2, "linked": 1}}
    assert found.numbers[0] == found.numbers[1]
    assert found.numbers[2] != found.numbers[3]


def test_without_the_weights_words_decide_and_the_facts_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "packaged_minilm", lambda: None)
    assert find_clusters([*SAME_STORY, *OTHER_STORY]).facts["second_look"]["tf-idf"]["pairs"] == 2


def test_only_so_many_pairs_are_embedded() -> None:
    facts = find_clusters([*SAME_STORY, *OTHER_STORY], embedded_pairs=1).facts
    assert {method: seen["pairs"] for method, seen in facts["second_look"].items()} == {"minilm": 1, "tf-idf": 1}


def test_only_so_many_doubtful_pairs_are_held_and_the_facts_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit in (2, 1):
        monkeypatch.setattr(clusters, "DOUBTFUL_PAIRS", limit)
        facts = find_clusters([*SAME_STORY, *OTHER_STORY], embedded_pairs=0).facts
        found.append((facts["doubtful_pairs"], facts["all_doubtful_pairs_held"]))
    assert found == [(2, True), (1, False)]


def test_few_of_the_real_headlines_are_near_duplicates(real_data: Path) -> None:
    rows = load_huffpost(real_data / "huffpost_sample.jsonl").rows
    found = find_clusters(list(rows["text"]), embedded_pairs=0)
    together = dict(zip(rows["text"], found.numbers, strict=True))
    assert together["joachim seinfeld in the imageblog"] == together["joachim seinfeld on the imageblog"]
    assert 50 < found.facts["clusters_of_several"] < 200
    assert found.facts["largest_cluster"] < 40
    assert label_disagreement(found.numbers, list(rows["category"]), list(rows["text"]))["best_possible_accuracy"] > 0.999


def test_clusters_whose_labels_disagree_bound_the_accuracy() -> None:
    numbers = np.array([0, 0, 0, 1, 1, 2])
    labels = ["A", "A", "B", "C", "C", "A"]
    found = label_disagreement(numbers, labels, ["t1", "t2", "t3", "u1", "u2", "v"])
    assert (found["disagreeing_clusters"], found["rows_in_disagreeing_clusters"]) == (1, 3)
    assert found["best_possible_accuracy"] == pytest.approx(5 / 6, abs=1e-6)
    [example] = found["disagreeing_examples"]
    assert example["labels"] == {"A": 2, "B": 1}
    assert example["rows"][2] == {"text": "t3", "label": "B"}
