"""Reading HuffPost JSON lines: what is kept, what is dropped, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.huffpost import (
    COLUMNS,
    HuffPostError,
    HuffPostTable,
    join_text,
    load_huffpost,
    write_huffpost,
)

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
        ({"headline": "Nameless section", "category": " "}, "empty_category"),
        (GOOD, "duplicate_text"),
        ({**GOOD, "category": "TRAVEL"}, "duplicate_text_other_category"),
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


def test_a_byte_order_mark_does_not_cost_the_first_row(tmp_path: Path) -> None:
    assert len(load_lines(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).rows) == 1


@pytest.mark.parametrize("column", ["headline", "category"])
def test_a_file_without_a_needed_column_is_refused_by_its_name(tmp_path: Path, column: str) -> None:
    row = {name: value for name, value in GOOD.items() if name != column}
    with pytest.raises(HuffPostError, match=f"no row has the column '{column}'"):
        load_lines(tmp_path, row, row)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(HuffPostError, match="is empty"):
        load_huffpost(tmp_path / "rows.jsonl")


def test_a_file_that_is_not_json_lines_is_refused_with_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(HuffPostError, match=r"no usable row among 1 lines.*headline,category"):
        load_lines(tmp_path, b"headline,category")


def test_the_row_id_depends_on_the_text_alone(tmp_path: Path) -> None:
    first = load_lines(tmp_path, GOOD).rows["row_id"].item()
    assert load_lines(tmp_path, {**GOOD, "link": "elsewhere", "date": ""}).rows["row_id"].item() == first


def test_the_written_table_reads_back_with_its_counts(tmp_path: Path, demo_table: HuffPostTable) -> None:
    facts = write_huffpost(demo_table, tmp_path)
    assert list(pd.read_parquet(tmp_path / "rows.parquet").columns) == list(COLUMNS)
    assert facts["row_count"] == 504
    assert set(facts["per_category"].values()) == {12}
    json.dumps(facts, allow_nan=False)


def test_the_real_sample_is_read_without_a_loss(real_data: Path) -> None:
    table = load_huffpost(real_data / "huffpost_sample.jsonl")
    assert table.counts == {"lines": 44_275, "kept": 44_275}
    assert table.rows["category"].nunique() == 42
