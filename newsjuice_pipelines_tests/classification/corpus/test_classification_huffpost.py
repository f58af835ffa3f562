"""Reading HuffPost JSON lines: what is kept, what is dropped, and what is said about it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.huffpost import (
    COLUMNS,
    MAX_LINE_BYTES,
    HuffPostError,
    HuffPostTable,
    join_text,
    load_huffpost,
    read_huffpost,
    row_id_of,
    write_huffpost,
)
from newsjuice_pipelines.classification.corpus.schemas import rows_schema, schema_problems
from newsjuice_pipelines.classification.corpus.split import PART_COLUMNS, SplitConfig, balanced_split
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy

GOOD = {
    "headline": "Rain Expected",
    "category": "WEATHER",
    "short_description": "Bring a coat.",
    "link": "https://headlines.example/entry/rain",
    "authors": "Ann Reed",
    "date": "2014-01-02",
}


def load_lines(folder: Path, *lines: dict[str, Any] | bytes) -> HuffPostTable:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n")
    return load_huffpost(path)


@pytest.mark.parametrize(
    ("headline", "description", "text"),
    [
        ("Rain Expected", "Bring a coat.", "Rain Expected. Bring a coat."),
        ("Will It Rain?", "Yes.", "Will It Rain? Yes."),
        ("'Will It Rain?'", "Yes.", "'Will It Rain?' Yes."),
        ("Rain  Expected\n", "", "Rain Expected"),
        ("", " Bring a  coat.", "Bring a coat."),
    ],
)
def test_the_text_joins_headline_and_description_at_a_sentence_boundary(headline: str, description: str, text: str) -> None:
    assert join_text(headline, description) == text


def test_links_authors_and_dates_are_kept_apart_from_the_text(tmp_path: Path) -> None:
    row = load_lines(tmp_path, GOOD).rows.iloc[0]
    assert row["text"] == "Rain Expected. Bring a coat."
    assert (row["link"], row["authors"], row["date"]) == (GOOD["link"], GOOD["authors"], GOOD["date"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"headline": "cut off', "broken_json"),
        (b'{"headline": "caf\xe9", "category": "A"}', "invalid_utf8"),
        (b'{"headline": "\\ud800", "category": "A"}', "invalid_unicode"),
        (b"[" * 100_000, "broken_json"),
        (b"[1, 2]", "not_an_object"),
        (b"  ", "blank_line"),
        ({"category": "A"}, "missing_headline"),
        ({"headline": "No section"}, "missing_category"),
        ({"headline": 7, "category": "A"}, "non_string_headline"),
        ({"headline": "A list", "category": ["A"]}, "non_string_category"),
        ({"headline": " ", "category": "A", "short_description": ""}, "empty_text"),
        ({"headline": "\u200b \ufeff", "category": "A", "short_description": "\u2060"}, "empty_text"),
        ({"headline": "Nameless section", "category": " "}, "empty_category"),
        (GOOD, "duplicate_text"),
        ({**GOOD, "category": " weather "}, "duplicate_text"),
        ({**GOOD, "category": "TRAVEL"}, "duplicate_text_other_category"),
        (b'{"headline": "a\0b", "category": "A"}', "broken_json"),
        (b'{"headline": "' + b"x" * MAX_LINE_BYTES + b'", "category": "A"}', "line_too_long"),
    ],
)
def test_an_unusable_line_is_dropped_and_counted_with_its_number(
    tmp_path: Path, line: dict[str, Any] | bytes, reason: str
) -> None:
    table = load_lines(tmp_path, GOOD, line)
    assert (table.counts["lines"], table.counts["kept"], table.counts[f"dropped_{reason}"]) == (2, 1, 1)
    assert [example["line"] for example in table.examples[reason]] == [2]


def test_a_null_among_the_optional_values_becomes_empty_and_is_counted(tmp_path: Path) -> None:
    table = load_lines(tmp_path, {**GOOD, "authors": None, "short_description": 3})
    assert table.rows.iloc[0]["authors"] == ""
    assert table.counts["blanked_authors"] == table.counts["blanked_short_description"] == 1


def test_a_line_of_10_mb_is_dropped_without_being_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b'{"headline": "' + b"x" * 10_000_000 + b'"}\n' + good + b"\n" + b"y" * 10_000_000)
    load_lines(tmp_path / "..", GOOD)  # what is imported on the way is not the line's doing
    tracemalloc.start()
    table = load_huffpost(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (table.counts["lines"], table.counts["kept"], table.counts["dropped_line_too_long"]) == (3, 1, 2)
    assert [example["line"] for example in table.examples["line_too_long"]] == [1, 3]
    assert peak_bytes < 6 * MAX_LINE_BYTES


def test_line_ends_of_windows_are_no_part_of_the_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\r\n".join(json.dumps({**GOOD, "headline": name}).encode() for name in "ab"))
    table = load_huffpost(tmp_path / "rows.jsonl")
    assert list(table.rows["headline"]) == ["a", "b"]


def test_a_nul_in_a_value_becomes_a_space_and_is_counted(tmp_path: Path) -> None:
    table = load_lines(tmp_path, {**GOOD, "headline": "Rain\0Expected"})
    assert table.rows["text"].item() == "Rain Expected. Bring a coat."
    assert table.counts["cleaned_nul"] == 1


@pytest.mark.parametrize(
    ("written", "kept", "blanked"),
    [
        ("2014-01-02", "2014-01-02", 0),
        ("2014-01-02T10:00:00Z", "2014-01-02", 0),
        ("", "", 0),
        ("2 Jan", "", 1),
        ("2014-02-30", "", 1),
    ],
)
def test_a_date_is_kept_as_an_iso_day_or_not_at_all(tmp_path: Path, written: str, kept: str, blanked: int) -> None:
    table = load_lines(tmp_path, {**GOOD, "date": written})
    assert (table.rows["date"].item(), table.counts.get("blanked_date", 0)) == (kept, blanked)


def test_other_spellings_of_a_section_are_one_section_under_the_most_frequent_one(tmp_path: Path) -> None:
    names = ["POLITICS", "politics", " POLITICS ", "Politics", "FOOD  & DRINK"]
    table = load_lines(tmp_path, *({**GOOD, "headline": f"row {number}", "category": name} for number, name in enumerate(names)))
    assert list(table.rows["category"]) == ["POLITICS"] * 4 + ["FOOD & DRINK"]
    assert table.spellings == {
        "POLITICS": {" POLITICS ": 1, "Politics": 1, "politics": 1},
        "FOOD & DRINK": {"FOOD  & DRINK": 1},
    }
    assert table.counts["respelled_category"] == 4


def test_a_text_has_the_section_it_came_with_most_often_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    seen = [("a", "TRAVEL"), ("a", "GREEN"), ("a", "travel"), ("b", "TASTE"), ("b", "MEDIA"), ("c", "GREEN"), ("c", "GREEN")]
    lines = [
        {**GOOD, "headline": name, "category": section, "date": f"2014-01-{20 - number}"}
        for number, (name, section) in enumerate(seen)
    ]
    found = [load_lines(tmp_path, *order) for order in (lines, lines[::-1])]
    by_headline, again = (table.rows.sort_values("row_id", ignore_index=True) for table in found)
    pd.testing.assert_frame_equal(by_headline, again)
    assert found[0].counts == found[1].counts
    rows = by_headline.set_index("headline")
    assert dict(rows["category"]) == {"a": "TRAVEL", "b": "MEDIA", "c": "GREEN"}
    assert dict(rows["date"]) == {"a": "2014-01-18", "b": "2014-01-16", "c": "2014-01-14"}
    counts = {name: json.loads(found or "null") for name, found in rows["section_counts"].items()}
    assert counts == {"a": {"GREEN": 1, "TRAVEL": 2}, "b": {"MEDIA": 1, "TASTE": 1}, "c": None}
    dropped = {reason: found[0].counts[f"dropped_{reason}"] for reason in ("duplicate_text", "duplicate_text_other_category")}
    assert dropped == {"duplicate_text": 2, "duplicate_text_other_category": 2}


def test_a_text_of_two_sections_bounds_the_accuracy_that_a_split_promises(tmp_path: Path) -> None:
    lines = [
        {"headline": f"{row_id_of(str(number))} {row_id_of(str(-number))}", "category": section}
        for section in ("PARENTS", "PARENTING")
        for number in range(1, 401)
    ]
    others = [{"headline": row_id_of(f"other {number}") * 2, "category": "PARENTS"} for number in range(400)]
    write_huffpost(load_lines(tmp_path, *lines, *others), tmp_path)
    split = balanced_split(read_huffpost(tmp_path), load_taxonomy("raw-42"), SplitConfig(grouping="exact"))
    found = split.facts["clusters"]
    assert (found["disagreeing_clusters"], found["rows_in_disagreeing_clusters"]) == (400, 800)
    assert found["best_possible_accuracy"] == pytest.approx(800 / 1200, abs=1e-6)
    assert found["disagreeing_examples"][0]["labels"] == {"PARENTING": 1, "PARENTS": 1}
    assert {tuple(frame.columns) for frame in split.parts.values()} == {PART_COLUMNS}


def test_all_sections_in_lower_case_find_their_classes(tmp_path: Path, demo_table: HuffPostTable) -> None:
    lower = demo_table.rows.assign(category=demo_table.rows["category"].str.lower()).to_dict("records")
    table = load_lines(tmp_path, *lower)
    taxonomy = load_taxonomy("raw-42")
    assert {taxonomy.class_of(section) for section in table.rows["category"]} == set(taxonomy.classes)
    assert "respelled_category" not in table.counts


def test_the_schema_of_the_rows_names_the_column_and_a_bad_value(demo_table: HuffPostTable) -> None:
    broken = demo_table.rows.copy()
    broken.loc[3, "date"] = "yesterday"
    broken.loc[5, "text"] = " "
    broken.loc[7, "row_id"] = broken.loc[8, "row_id"]
    problems = "; ".join(schema_problems(broken, rows_schema()))
    assert "column date: ISO date or empty does not hold for 1 rows, such as 'yesterday'" in problems
    assert "column text: not empty does not hold for 1 rows" in problems
    assert "column row_id: field_uniqueness" in problems
    assert schema_problems(demo_table.rows, rows_schema()) == []
    assert schema_problems(demo_table.rows.drop(columns="link"), rows_schema()) == ["missing column link"]
    assert schema_problems(demo_table.rows.assign(label="x"), rows_schema()) == ["unknown column label"]


def test_a_byte_order_mark_does_not_cost_the_first_row(tmp_path: Path) -> None:
    assert len(load_lines(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).rows) == 1


@pytest.mark.parametrize("column", ["headline", "category"])
def test_a_file_without_a_needed_column_is_refused_by_its_name(tmp_path: Path, column: str) -> None:
    row = {name: value for name, value in GOOD.items() if name != column}
    with pytest.raises(HuffPostError, match=f"no row has the column '{column}'"):
        load_lines(tmp_path, row, row)


@pytest.mark.parametrize("name", ["", "nowhere.json"])
def test_a_folder_and_a_missing_file_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(HuffPostError, match=rf"{tmp_path / name} cannot be read \("):
        load_huffpost(tmp_path / name)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(HuffPostError, match="is empty"):
        load_huffpost(tmp_path / "rows.jsonl")


def test_a_file_that_is_not_json_lines_is_refused_with_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(HuffPostError, match=r"no usable row among 1 lines.*headline,category"):
        load_lines(tmp_path, b"headline,category")


@pytest.mark.parametrize(("start", "kind"), [(b"PK\x03\x04", "a zip archive"), ("{}".encode("utf-16"), "UTF-16 text")])
def test_a_file_of_another_kind_is_refused_by_what_it_is(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(start + b"\xff\xfe")
    with pytest.raises(HuffPostError, match=kind):
        load_huffpost(tmp_path / "rows.jsonl")


def test_the_row_id_depends_on_the_text_alone(tmp_path: Path) -> None:
    first = load_lines(tmp_path, GOOD).rows["row_id"].item()
    assert load_lines(tmp_path, {**GOOD, "link": "elsewhere", "date": ""}).rows["row_id"].item() == first


def test_the_written_table_reads_back_with_its_counts(tmp_path: Path, demo_table: HuffPostTable) -> None:
    facts = write_huffpost(demo_table, tmp_path)
    assert list(pd.read_parquet(tmp_path / "rows.parquet").columns) == list(COLUMNS)
    assert facts["row_count"] == 504
    assert set(facts["per_category"].values()) == {12}
    assert facts["format_per_category"]["TASTE"] == {"rows": 12, "with_description": 1.0, "lower_case": 0.0}
    assert facts["first_date"] < facts["last_date"]
    json.dumps(facts, allow_nan=False)


def test_the_format_of_every_section_is_in_the_facts(tmp_path: Path) -> None:
    rows = [{**GOOD, "headline": f"Row {number}"} for number in range(3)] + [{"headline": "row 4", "category": "WEATHER"}]
    facts = write_huffpost(load_lines(tmp_path, *rows), tmp_path)
    assert facts["format_per_category"] == {"WEATHER": {"rows": 4, "with_description": 0.75, "lower_case": 0.25}}
    assert facts["with_date"] == 3


def test_the_real_sample_is_read_without_a_loss(real_data: Path) -> None:
    table = load_huffpost(real_data / "huffpost_sample.jsonl")
    assert table.counts == {"lines": 44_275, "kept": 44_275}
    assert table.rows["category"].nunique() == 42
