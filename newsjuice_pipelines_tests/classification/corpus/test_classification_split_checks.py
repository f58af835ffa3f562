"""The checks of a written split: quiet when all is as promised, and one sentence for each thing that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable
from newsjuice_pipelines.classification.corpus.split import SplitConfig, balanced_split, read_part, write_split
from newsjuice_pipelines.classification.corpus.split_checks import split_problems
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy

QUIET: dict[str, list[str]] = {"schema": [], "sides": [], "counts": []}


@pytest.fixture
def written(tmp_path: Path, demo_table: HuffPostTable) -> Callable[..., Path]:
    """Splits the demo headlines and writes the parts; returns the folder."""

    def write(**config: Any) -> Path:
        settings = SplitConfig(**{"per_class": 10, **config})
        write_split(balanced_split(demo_table.rows, load_taxonomy("original-29"), settings), tmp_path)
        return tmp_path

    return write


def change(folder: Path, part: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    edit(read_part(folder, part)).to_parquet(folder / f"{part}.parquet", index=False)


@pytest.mark.parametrize(
    "config",
    [{}, {"per_class": 0}, {"preset": "full"}, {"grouping": "none"}, {"grouping": "exact"}, {"order": "temporal"},
     {"preset": "full", "order": "temporal"}],
)  # fmt: skip
def test_a_split_as_it_is_made_has_no_problem(written: Callable[..., Path], config: dict[str, Any]) -> None:
    assert split_problems(written(**config)) == QUIET


def test_rows_that_were_lost_are_missed_by_class(written: Callable[..., Path]) -> None:
    folder = written()
    change(folder, "test", lambda rows: rows[rows["label"] != "TECH"])
    assert split_problems(folder)["counts"] == ["TECH has 8 rows; 10 were to be drawn."]


def test_a_held_out_part_that_is_far_from_its_share_is_a_problem(written: Callable[..., Path]) -> None:
    folder = written(per_class=0, test_fraction=0.5)
    moved = read_part(folder, "test").query("label == 'NEWS'")
    change(folder, "test", lambda rows: rows[rows["label"] != "NEWS"])
    change(folder, "train", lambda rows: pd.concat([rows, moved], ignore_index=True))
    assert split_problems(folder)["counts"] == ["NEWS has 0 rows in test; 36 were promised."]


def test_a_row_on_two_sides_is_a_problem(written: Callable[..., Path]) -> None:
    folder = written(preset="full")
    copied = read_part(folder, "train")[:1]
    change(folder, "validation", lambda rows: pd.concat([rows, copied], ignore_index=True))
    assert split_problems(folder)["sides"] == [
        "1 rows are in more than one part.",
        "1 texts are in more than one part.",
        "1 groups of near-duplicates are in more than one part.",
    ]


def test_an_empty_part_is_a_problem(written: Callable[..., Path]) -> None:
    folder = written()
    change(folder, "calibration", lambda rows: rows[:0])
    assert "The part calibration has no rows." in split_problems(folder)["counts"]


def test_a_class_whose_test_rows_are_older_than_its_training_rows_is_a_problem(written: Callable[..., Path]) -> None:
    folder = written(order="temporal")
    change(folder, "test", lambda rows: rows.assign(date=rows["date"].mask(rows["label"] == "TECH", "1999-01-01")))
    assert split_problems(folder)["counts"] == [
        "In 1 classes a later part holds rows that are not later than an earlier part's: TECH."
    ]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", "GARDENING", "train: column label: a class of the split does not hold for 1 rows, such as 'GARDENING'"),
        ("label_id", 0, "train: label_id is the place of label among the classes does not hold"),
        ("date", "soon", "train: column date: ISO date or empty does not hold"),
        ("text", "  ", "train: column text: not empty does not hold"),
        ("row_id", "7", "train: column row_id: SHA-1 in hexadecimal digits does not hold"),
    ],
)
def test_a_table_that_breaks_the_schema_is_named_with_its_column(
    written: Callable[..., Path], column: str, value: object, message: str
) -> None:
    folder = written()
    last = len(read_part(folder, "train")) - 1
    if column == "label_id":
        last = read_part(folder, "train")["label_id"].idxmax()
    change(folder, "train", lambda rows: rows.assign(**{column: rows[column].where(rows.index != last, value)}))
    assert any(problem.startswith(message) for problem in split_problems(folder)["schema"])


def test_a_missing_column_is_named(written: Callable[..., Path]) -> None:
    folder = written()
    change(folder, "test", lambda rows: rows.drop(columns="group"))
    assert split_problems(folder)["schema"] == ["test: missing column group"]
