"""Splitting: seeded, balanced, independent of row order, and without duplicates on two sides."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

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
    read_part,
    write_split,
)
from newsjuice_pipelines.classification.corpus.taxonomy import Taxonomy, load_taxonomy
from newsjuice_pipelines.classification.judging.overlap import overlap_report


def rows_of(texts: dict[str, list[str]]) -> pd.DataFrame:
    pairs = [(text, category) for category, those in texts.items() for text in those]
    return pd.DataFrame([{"row_id": row_id_of(text), "text": text, "category": category} for text, category in pairs])


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
        "SPORTS": [f"{word} game number {number}{end}" for number in range(20) for word, end in (("The", "."), ("THE", "!"))],
        "TASTE": [f"Soup of the day, number {number}" for number in range(20)],
    }
    split = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig())
    sides = pd.concat([frame.assign(part=part) for part, frame in split.parts.items()]).groupby("group")["part"].nunique()
    assert sides.max() == 1
    assert split.facts["duplicate_groups"] == 20
    assert len(split.parts["test"]) == 12


def test_without_grouping_every_row_is_its_own_group() -> None:
    texts = {"SPORTS": ["A game", "a game!", "b", "c", "d"], "TASTE": ["e", "f", "g", "h", "i"]}
    split = balanced_split(rows_of(texts), load_taxonomy("original-29"), SplitConfig(group_duplicates=False))
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
    "config", [{"per_class": -1}, {"test_fraction": 1.0}, {"validation_fraction": 0.5, "calibration_fraction": 0.5}]
)
def test_impossible_shares_are_refused(config: dict[str, float]) -> None:
    with pytest.raises(SplitError):
        SplitConfig(**config)


def test_a_written_split_reads_back_whole(tmp_path: Path, demo_table: HuffPostTable, topics: Taxonomy) -> None:
    split = balanced_split(demo_table.rows, topics, SplitConfig())
    facts = write_split(split, tmp_path)
    assert read_classes(tmp_path) == ("FAMILY", "FOOD", "POLITICS", "SCIENCE")
    assert {part: len(read_part(tmp_path, part)) for part in PARTS} == facts["rows_per_part"]
    assert list(read_part(tmp_path, "train").columns) == list(PART_COLUMNS)


def test_a_folder_without_a_split_names_the_asset_to_materialise(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="balanced_split"):
        read_part(tmp_path, "train")


def test_the_overlap_report_finds_no_shared_text_in_a_grouped_split(tmp_path: Path, topic_split: Path) -> None:
    facts = overlap_report(topic_split, tmp_path)
    assert (facts["shared_texts"], facts["shared_groups"]) == (0, 0)
    assert facts["checked_every_row"]
    assert facts["similar_classes"][0]["cosine"] < 1
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.md", "class_similarity.png"}


def test_the_overlap_report_finds_a_near_duplicate_across_parts(tmp_path: Path, topic_split: Path) -> None:
    leaky, out = tmp_path / "split", tmp_path / "out"
    leaky.mkdir()
    out.mkdir()
    for path in topic_split.iterdir():
        (leaky / path.name).write_bytes(path.read_bytes())
    train, test = read_part(leaky, "train"), read_part(leaky, "test")
    test.loc[0, "text"] = train.loc[0, "text"] + " s"
    test.to_parquet(leaky / "test.parquet", index=False)
    facts = overlap_report(leaky, out)
    assert facts["near_duplicate_pairs"] == facts["near_duplicate_rows"] == 1
    example = json.loads((out / "results.json").read_text(encoding="utf-8"))["near_duplicate_examples"][0]
    assert sorted(example["parts"]) == ["test", "train"]


def test_the_overlap_report_counts_a_text_on_two_sides(tmp_path: Path, topic_split: Path) -> None:
    leaky, out = tmp_path / "split", tmp_path / "out"
    leaky.mkdir()
    out.mkdir()
    for path in topic_split.iterdir():
        (leaky / path.name).write_bytes(path.read_bytes())
    pd.concat([read_part(leaky, "test"), read_part(leaky, "train")[:3]]).to_parquet(leaky / "test.parquet", index=False)
    assert overlap_report(leaky, out)["shared_texts"] == 3
