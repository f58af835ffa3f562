"""Articles of another source: compared honestly, nothing lost, nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.classification.judging.calibrate import Calibration, read_calibration
from newsjuice_pipelines.classification.serving.crosswalk import Crosswalk
from newsjuice_pipelines.classification.serving.external import (
    ExternalDataError,
    category_of,
    predict_external,
    read_external_csv,
    spreadsheet_safe,
)
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError

CROSSWALK = Crosswalk("test", {"Dining": ("FOOD",), "Research": ("SCIENCE",), "Sailing": ("BOATS",)})
ARTICLES = [
    {"id": "1", "title": "Ten Chocolate Cake Recipes For Dinner", "content": "", "summary": '{"category": "dining"}'},
    {"id": "2", "title": "Bake This Cheese Recipe In Your Kitchen", "content": "", "summary": '{"category": "Research"}'},
    {"id": "3", "title": "Scientists Find A Planet", "content": "The telescope saw it.", "summary": '{"category": "Sailing"}'},
    {"id": "4", "title": "=cmd()", "content": "", "summary": "{broken"},
    {"id": "5", "title": "Senate Votes", "content": "", "summary": ""},
    {"id": "6", "title": "Senate Votes Again", "content": "", "summary": '{"topic": "Politics"}'},
    {"id": "7", "title": " ", "content": "", "summary": '{"category": "Dining"}'},
]


def compare(
    trained: Any, out: Path, articles: list[dict[str, Any]], **calibration: Any
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    read = read_calibration(trained.evaluation)
    settings = {"temperature": read.temperature, "threshold": None, "top3_threshold": None, **calibration}
    columns = ["id", "title", "content", "summary"]
    facts = predict_external(
        pd.DataFrame(articles, columns=columns), trained.checkpoint, Calibration(read.classes, **settings), CROSSWALK, out
    )
    with (out / "predictions_comparison.csv").open(encoding="utf-8", newline="") as stream:
        return facts, list(csv.DictReader(stream))


def test_a_label_matches_through_the_crosswalk_and_an_unmapped_one_is_left_open(minilm: Any, tmp_path: Path) -> None:
    _, rows = compare(minilm, tmp_path, ARTICLES)
    assert [row["predicted_category"] for row in rows[:3]] == ["FOOD", "FOOD", "SCIENCE"]
    assert [row["match"] for row in rows] == ["True", "False", "", "", "", "", ""]


def test_the_match_rate_is_over_mapped_articles_only(minilm: Any, tmp_path: Path) -> None:
    facts, _ = compare(minilm, tmp_path, ARTICLES)
    assert (facts["match_rate"], facts["match_rows"]) == (0.5, 2)
    assert facts["mapped_share"] == 3 / 4
    assert facts["unmapped_labels"] == {"Sailing": 1}


def test_every_article_is_counted_by_what_its_summary_held(minilm: Any, tmp_path: Path) -> None:
    facts, rows = compare(minilm, tmp_path, ARTICLES)
    assert facts["counts"] == {
        "labelled": 4, "missing": 1, "broken": 1, "without_category": 1, "mapped": 3, "empty_text": 1,
        "filed": 0, "top-3": 0, "abstained": 7,
    }  # fmt: skip
    assert len(rows) == facts["rows"] == len(ARTICLES)


def test_no_mapped_label_means_no_match_rate(minilm: Any, tmp_path: Path) -> None:
    facts, _ = compare(minilm, tmp_path, ARTICLES[2:3])
    assert facts["match_rate"] is None
    assert "not measured" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("thresholds", "decision"),
    [
        ({"threshold": 0.0}, "filed"),
        ({"threshold": 1.1, "top3_threshold": 0.0}, "top-3"),
        ({"threshold": 1.1, "top3_threshold": 1.1}, "abstained"),
        ({}, "abstained"),
    ],
)
def test_the_thresholds_decide_what_is_done(thresholds: dict[str, float], decision: str, minilm: Any, tmp_path: Path) -> None:
    facts, rows = compare(minilm, tmp_path, ARTICLES[:2], **thresholds)
    assert {row["decision"] for row in rows} == {decision}
    assert facts["counts"][decision] == 2
    assert facts["filed_match_rate"] == (0.5 if decision == "filed" else None)


def test_a_cell_that_starts_like_a_formula_is_disarmed(minilm: Any, tmp_path: Path) -> None:
    _, rows = compare(minilm, tmp_path, ARTICLES)
    assert rows[3]["title"] == "'=cmd()"


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_every_start_of_a_formula_is_disarmed(text: str) -> None:
    assert spreadsheet_safe(text) == f"'{text}"
    assert spreadsheet_safe("1" + text) == "1" + text


@pytest.mark.parametrize(
    ("summary", "found"),
    [
        ('{"category": " Arts  & Culture "}', ("Arts & Culture", "labelled")),
        ({"category": "Arts"}, ("Arts", "labelled")),
        ('{"category": 3}', (None, "without_category")),
        ('["category"]', (None, "broken")),
        ("[" * 100_000, (None, "broken")),
        (None, (None, "missing")),
        (float("nan"), (None, "missing")),
    ],
)
def test_the_category_is_read_from_any_summary(summary: Any, found: tuple[str | None, str]) -> None:
    assert category_of(summary) == found


def test_the_content_adds_to_the_title(minilm: Any, tmp_path: Path) -> None:
    article = {"id": "1", "title": "A Story", "summary": ""}
    recipe = "Bake the chocolate cake with butter, cheese and a recipe from the kitchen."
    confident = []
    for name, content in (("without", ""), ("with", recipe)):
        (tmp_path / name).mkdir()
        confident.append(compare(minilm, tmp_path / name, [{**article, "content": content}])[1][0])
    assert confident[1]["predicted_category"] == "FOOD"
    assert float(confident[1]["confidence"]) > float(confident[0]["confidence"])


def test_a_calibration_of_other_classes_is_refused(minilm: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="evaluation report"):
        predict_external(pd.DataFrame(ARTICLES), minilm.checkpoint, Calibration(("A", "B"), 1.0, None, None), CROSSWALK, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,title,content\n1,a,b\n", "missing column summary"),
        (b"id,title,content,summary\n", "no article"),
        (b"", "cannot be read"),
        (b"id,title,content,summary\n1,caf\xe9,,\n", "UTF-8"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "articles.csv").write_bytes(content)
    with pytest.raises(ExternalDataError, match=message):
        read_external_csv(tmp_path / "articles.csv")


def test_words_that_look_like_missing_values_stay_text(tmp_path: Path) -> None:
    (tmp_path / "articles.csv").write_text('id,title,content,summary\n007,NA,null,"{""category"": ""x""}"\n', encoding="utf-8")
    assert json.loads(read_external_csv(tmp_path / "articles.csv").to_json(orient="records")) == [
        {"id": "007", "title": "NA", "content": "null", "summary": '{"category": "x"}'}
    ]


def test_the_real_external_file_is_read_whole(real_data: Path) -> None:
    rows = read_external_csv(real_data / "harvard_external.csv")
    readings = [category_of(summary)[1] for summary in rows["summary"]]
    assert (len(rows), readings.count("labelled"), readings.count("missing")) == (429, 426, 3)
