"""Splitting: seeded, balanced, independent of row order, and without duplicates on two sides."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable, row_id_of
from newsjuice_pipelines.classification.corpus.split import (
    PART_COLUMNS,
    PARTS,
    Split,
    SplitConfig,
    SplitError,
    balanced_split,
    group_key,
    read_classes,
    read_parents,
    read_part,
    read_split_facts,
    write_split,
)
from newsjuice_pipelines.classification.corpus.taxonomy import Taxonomy, load_taxonomy


def rows_of(texts: dict[str, list[str]]) -> pd.DataFrame:
    pairs = [(text, category) for category, those in texts.items() for text in those]
    return pd.DataFrame([{"row_id": row_id_of(text), "text": text, "category": category} for text, category in pairs])


def dated(texts: dict[str, list[str]], days: Callable[[int], str]) -> pd.DataFrame:
    """The rows of `rows_of`, dated by their number within the section."""
    rows = rows_of(texts)
    return rows.assign(date=[days(number) for number in rows.groupby("category").cumcount()])


def day(number: int) -> str:
    return (date(2014, 1, 1) + timedelta(days=number)).isoformat()


def members(split: Split) -> dict[str, list[str]]:
    return {part: list(frame["row_id"]) for part, frame in split.parts.items()}


def test_the_split_does_not_depend_on_the_order_of_the_rows(demo_table: HuffPostTable) -> None:
    taxonomy, config = load_taxonomy("original-29"), SplitConfig(per_class=12)
    shuffled = demo_table.rows.sample(frac=1, random_state=7)
    assert members(balanced_split(shuffled, taxonomy, config)) == members(balanced_split(demo_table.rows, taxonomy, config))


def test_another_seed_gives_another_test_part(demo_table: HuffPostTable) -> None:
    taxonomy = load_taxonomy("original-29")
    first, second = (balanced_split(demo_table.rows, taxonomy, SplitConfig(seed=seed)) for seed in (1, 2))
    assert members(first)["test"] != members(second)["test"]


def test_every_class_is_divided_by_the_same_fractions(demo_table: HuffPostTable) -> None:
    facts = balanced_split(demo_table.rows, load_taxonomy("raw-42"), SplitConfig(per_class=10)).facts
    assert {tuple(parts.values()) for parts in facts["rows_per_class"].values()} == {(6, 1, 1, 2)}
    assert facts["undrawn_rows"] == 42 * 2
    assert facts["short_classes"] == {}


def test_a_cap_of_zero_takes_every_row(demo_table: HuffPostTable) -> None:
    facts = balanced_split(demo_table.rows, load_taxonomy("original-29"), SplitConfig(per_class=0)).facts
    assert (facts["row_count"], facts["undrawn_rows"]) == (504, 0)


def test_a_smaller_draw_is_part_of_a_larger_one(demo_table: HuffPostTable) -> None:
    taxonomy = load_taxonomy("raw-42")
    small, large = (balanced_split(demo_table.rows, taxonomy, SplitConfig(per_class=size)) for size in (5, 10))
    assert {row for rows in members(small).values() for row in rows} < {row for rows in members(large).values() for row in rows}


def test_texts_that_differ_only_in_case_and_punctuation_stay_on_one_side() -> None:
    texts = {
        "SPORTS": [f"{word} game {number}{end}" for number in range(20) for word, end in (("The", "."), ("THE", "!"))],
        "TASTE": [f"Soup {number}" for number in range(20)],
    }
    split = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig(grouping="exact"))
    sides = pd.concat([frame.assign(part=part) for part, frame in split.parts.items()]).groupby("group")["part"].nunique()
    assert sides.max() == 1
    assert split.facts["duplicate_groups"] == 20
    assert len(split.parts["test"]) == 12


def test_without_grouping_every_row_is_its_own_group() -> None:
    texts = {"SPORTS": ["A game", "a game!", "b", "c", "d"], "TASTE": ["e", "f", "g", "h", "i"]}
    split = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig(grouping="none"))
    assert split.facts["duplicate_groups"] == 0


@pytest.mark.parametrize(("one", "other"), [("Don't Panic!", "dont panic"), ("Ｆｕｌｌ width", "FULL WIDTH")])
def test_group_keys_ignore_case_punctuation_and_width(one: str, other: str) -> None:
    assert group_key(one) == group_key(other)


def test_texts_without_letters_do_not_fall_into_one_group() -> None:
    assert group_key("???") != group_key("!!!")


def test_a_class_with_one_row_only_trains_and_is_reported() -> None:
    texts = {"SPORTS": ["only one"], "TASTE": [f"soup {n}" for n in range(10)], "TRAVEL": [f"trip {n}" for n in range(10)]}
    facts = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig()).facts
    assert facts["rows_per_class"]["SPORTS"] == {"train": 1, "validation": 0, "calibration": 0, "test": 0}
    assert facts["classes_missing_from"]["test"] == ["SPORTS"]
    assert facts["short_classes"]["SPORTS"] == 1
    assert "POLITICS" in facts["empty_classes"]


def test_rows_of_unknown_sections_are_left_out_and_counted() -> None:
    texts = {name: [f"{name} {n}" for n in range(10)] for name in ("TASTE", "TRAVEL", "GARDENING")}
    split = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig())
    assert split.facts["unknown_categories"] == {"GARDENING": 10}
    assert split.classes == ("FOOD & DRINK", "TRAVEL")


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(SplitError, match="A classifier needs two"):
        balanced_split(rows_of({"TASTE": ["a", "b"], "GARDENING": ["c"]}), load_taxonomy("original-29"), SplitConfig())


def test_rows_too_few_for_every_part_are_refused_by_the_empty_part() -> None:
    with pytest.raises(SplitError, match="part calibration would be empty"):
        balanced_split(rows_of({"TASTE": ["a", "b"], "TRAVEL": ["c", "d", "e"]}), load_taxonomy("original-29"), SplitConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"per_class": -1}, "per_class is -1"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"validation_fraction": 0.5, "calibration_fraction": 0.5}, "no training rows"),
        ({"preset": "all"}, "preset is 'all'; use one of balanced, full"),
        ({"grouping": ""}, "use one of clusters, exact, none"),
        ({"order": "sorted"}, "use one of random, temporal"),
    ],
)
def test_impossible_settings_are_refused_by_their_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        SplitConfig(**config)


def test_a_written_split_reads_back_whole(tmp_path: Path, demo_table: HuffPostTable, topics: Taxonomy) -> None:
    split = balanced_split(demo_table.rows, topics, SplitConfig())
    facts = write_split(split, tmp_path)
    assert read_classes(tmp_path) == ("FAMILY", "FOOD", "POLITICS", "SCIENCE")
    assert {part: len(read_part(tmp_path, part)) for part in PARTS} == facts["rows_per_part"]
    assert list(read_part(tmp_path, "train").columns) == list(PART_COLUMNS)


def test_parents_are_aligned_with_the_classes(tmp_path: Path, demo_table: HuffPostTable) -> None:
    taxonomy = load_taxonomy("original-29")
    write_split(balanced_split(demo_table.rows, taxonomy, SplitConfig()), tmp_path)
    assert read_parents(tmp_path) == tuple(taxonomy.parents[name] for name in read_classes(tmp_path))
    assert read_split_facts(tmp_path)["parent_count"] == 9


def test_dates_reach_every_part(demo_table: HuffPostTable) -> None:
    split = balanced_split(demo_table.rows, load_taxonomy("original-29"), SplitConfig())
    known = dict(zip(demo_table.rows["row_id"], demo_table.rows["date"], strict=True))
    assert all(
        known[row] == day for frame in split.parts.values() for row, day in zip(frame["row_id"], frame["date"], strict=True)
    )
    assert split.facts["dates_per_part"]["train"][0] == split.parts["train"]["date"].min()


def words_of(number: int) -> str:
    """Words that no other number has."""
    return " ".join(group_key(f"{number}-{place}")[:8] for place in range(6))


def test_near_duplicates_of_two_sections_stay_on_one_side_and_bound_the_accuracy() -> None:
    texts = {"POLITICS": [], "GREEN": []}
    for number in range(40):
        story = f"{words_of(number)} senate passes climate bill"
        texts["POLITICS"] += [story, words_of(1000 + number)]
        texts["GREEN"] += [f"{story} again", words_of(2000 + number)]
    split = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig())
    sides = pd.concat([frame.assign(part=part) for part, frame in split.parts.items()]).groupby("group")["part"].nunique()
    assert sides.max() == 1
    found = split.facts["clusters"]
    assert (found["disagreeing_clusters"], found["rows_in_disagreeing_clusters"]) == (40, 80)
    assert found["best_possible_accuracy"] == 0.75
    assert found["disagreeing_examples"][0]["labels"] == {"ENVIRONMENT": 1, "POLITICS": 1}
    assert {tuple(parts.values()) for parts in split.facts["rows_per_class"].values()} == {(52, 6, 6, 16)}
    disagreeing = split.parts["test"]["group"].duplicated().sum()
    assert 2 <= disagreeing <= 14, "the test part holds its share of them, not all that fit"


def test_the_full_preset_holds_out_the_same_rows_and_trains_on_all_others(demo_table: HuffPostTable) -> None:
    taxonomy = load_taxonomy("original-29")
    balanced, full = (
        balanced_split(demo_table.rows, taxonomy, SplitConfig(preset=preset, per_class=8)) for preset in ("balanced", "full")
    )
    for part in PARTS[1:]:
        pd.testing.assert_frame_equal(balanced.parts[part], full.parts[part])
    assert set(members(balanced)["train"]) < set(members(full)["train"])
    assert full.facts["row_count"] == len(demo_table.rows) - full.facts["left_out_for_their_group"]


def test_the_full_preset_leaves_out_what_repeats_a_held_out_row() -> None:
    texts = {
        name: [f"{words_of(number + base)} {end}" for number in range(20) for end in ("one", "two")]
        for name, base in (("TASTE", 0), ("TRAVEL", 500))
    }
    full = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig(preset="full", per_class=20))
    sides = pd.concat([frame.assign(part=part) for part, frame in full.parts.items()]).groupby("group")["part"].nunique()
    assert sides.max() == 1
    assert full.facts["left_out_for_their_group"] > 0
    assert full.facts["row_count"] + full.facts["left_out_for_their_group"] == 80


def test_a_temporal_split_trains_on_the_past_of_every_class() -> None:
    texts = {name: [words_of(number + base) for number in range(50)] for name, base in (("TASTE", 0), ("TRAVEL", 500))}
    rows = dated(texts, lambda number: day(number // 2))
    split = balanced_split(rows, load_taxonomy("original-29"), SplitConfig(order="temporal"))
    spans = {part: frame.groupby("label")["date"].agg(["min", "max"]) for part, frame in split.parts.items()}
    for earlier, later in pairwise(PARTS):
        assert (spans[earlier]["max"] < spans[later]["min"]).all()
    assert split.facts["rows_per_class"]["TRAVEL"] == {"train": 32, "validation": 4, "calibration": 4, "test": 10}


def test_a_temporal_split_leaves_out_rows_without_dates_and_counts_them() -> None:
    texts = {
        name: [words_of(number + base) for number in range(30)] for name, base in (("TASTE", 0), ("TRAVEL", 500), ("WOMEN", 900))
    }
    rows = dated(texts, lambda number: day(number) if number < 20 else "")
    rows.loc[rows["category"] == "WOMEN", "date"] = ""
    facts = balanced_split(rows, load_taxonomy("original-29"), SplitConfig(order="temporal")).facts
    assert (facts["rows_without_date"], facts["classes_without_dates"], facts["row_count"]) == (50, ["WOMEN"], 40)


def test_a_story_told_again_later_is_left_out_of_a_temporal_split() -> None:
    texts = {name: [words_of(number + base) for number in range(29)] for name, base in (("TASTE", 0), ("TRAVEL", 500))}
    texts["TASTE"].append(texts["TASTE"][0] + " again")
    split = balanced_split(dated(texts, day), load_taxonomy("original-29"), SplitConfig(order="temporal"))
    assert split.facts["left_out_for_their_group"] == 1
    assert texts["TASTE"][0] in set(split.parts["train"]["text"])
    assert split.facts["row_count"] == 58


def test_a_full_temporal_split_trains_on_no_future_row() -> None:
    texts = {name: [words_of(number + base) for number in range(60)] for name, base in (("TASTE", 0), ("TRAVEL", 500))}
    rows = dated(texts, day)
    balanced, full = (
        balanced_split(rows, load_taxonomy("original-29"), SplitConfig(preset=preset, order="temporal", per_class=30))
        for preset in ("balanced", "full")
    )
    assert members(balanced)["test"] == members(full)["test"]
    last, first = full.parts["train"].groupby("label")["date"].max(), full.parts["validation"].groupby("label")["date"].min()
    assert (last < first).all()
    assert len(full.parts["train"]) > len(balanced.parts["train"])
    assert full.facts["left_out_as_too_late"] > 0


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (lambda number: "", r"needs dates: only 0 of 60 rows have one"),
        (lambda number: day(0), r"1 different dates .* a day is not divided"),
    ],
)
def test_a_temporal_split_without_enough_dates_is_refused(days: Callable[[int], str], message: str) -> None:
    texts = {name: [words_of(number + base) for number in range(30)] for name, base in (("TASTE", 0), ("TRAVEL", 500))}
    with pytest.raises(SplitError, match=message):
        balanced_split(dated(texts, days), load_taxonomy("original-29"), SplitConfig(order="temporal"))


def test_texts_that_are_all_equal_are_refused_with_the_reason() -> None:
    rows = rows_of({"TASTE": ["Soup of the day"] * 50, "TRAVEL": ["SOUP of the day!"] * 50})
    with pytest.raises(SplitError, match="only 1 different texts"):
        balanced_split(rows, load_taxonomy("original-29"), SplitConfig())


def test_sections_in_another_case_are_split_alike(demo_table: HuffPostTable) -> None:
    taxonomy, lower = load_taxonomy("original-29"), demo_table.rows.assign(category=demo_table.rows["category"].str.lower())
    assert members(balanced_split(lower, taxonomy, SplitConfig())) == members(
        balanced_split(demo_table.rows, taxonomy, SplitConfig())
    )


TEXTS = st.lists(st.text("abcdef ", min_size=1, max_size=14), min_size=8, max_size=30, unique=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    texts=st.tuples(TEXTS, TEXTS),
    preset=st.sampled_from(["balanced", "full"]),
    grouping=st.sampled_from(["clusters", "exact", "none"]),
    order=st.sampled_from(["random", "temporal"]),
    per_class=st.sampled_from([0, 6, 10]),
    seed=st.integers(0, 5),
    chance=st.randoms(use_true_random=False),
)
def test_whatever_the_rows_no_group_is_on_two_sides_and_no_row_twice(
    texts: tuple[list[str], list[str]], preset: str, grouping: str, order: str, per_class: int, seed: int, chance: Any
) -> None:
    first, second = texts
    rows = dated({"TASTE": first, "TRAVEL": [text for text in second if text not in first]}, lambda number: day(number // 3))
    config = SplitConfig(
        preset=preset,
        grouping=grouping,
        order=order,
        per_class=per_class,
        seed=seed,
        test_fraction=0.3,
        validation_fraction=0.3,
        calibration_fraction=0.3,
    )
    places = list(range(len(rows)))
    chance.shuffle(places)
    try:
        split = balanced_split(rows, load_taxonomy("original-29"), config)
    except SplitError:
        with pytest.raises(SplitError):
            balanced_split(rows.iloc[places], load_taxonomy("original-29"), config)
        return
    assert members(balanced_split(rows.iloc[places], load_taxonomy("original-29"), config)) == members(split)
    whole = pd.concat([frame.assign(part=part) for part, frame in split.parts.items()])
    assert whole["row_id"].is_unique
    assert whole.groupby("group")["part"].nunique().max() == 1
    assert len(whole) + split.facts["undrawn_rows"] == len(rows)


def test_a_folder_without_a_split_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="balanced_split"):
        read_part(tmp_path, "train")
