"""Articles of another source: compared honestly, nothing lost, nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.split import read_part
from newsjuice_pipelines.classification.corpus.taxonomy import TaxonomyError
from newsjuice_pipelines.classification.judging.calibrate import read_calibration
from newsjuice_pipelines.classification.serving.crosswalk import Crosswalk
from newsjuice_pipelines.classification.serving.external import (
    ExternalDataError,
    category_of,
    judge_crosswalk,
    predict_external,
    read_external_csv,
)
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.serving.spreadsheet import spreadsheet_safe
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError

# TRAVEL is a class of the packaged taxonomies that the four topics of these tests do not have.
CROSSWALK = Crosswalk("test", {"Dining": ("FOOD",), "Research": ("SCIENCE",), "Sailing": ("TRAVEL",)}, ("Opinion",))
UNLABELLED = [
    {"id": "4", "title": "=cmd()", "content": "", "summary": "{broken"},
    {"id": "5", "title": "Senate Votes", "content": "", "summary": ""},
    {"id": "6", "title": "Senate Votes Again", "content": "", "summary": '{"topic": "Politics"}'},
]
BLANK = {"id": "7", "title": " ", "content": "", "summary": '{"category": "Dining"}'}


@pytest.fixture(scope="session")
def learnt(linear: Any, topic_split: Path) -> dict[str, list[str]]:
    """By class, texts that the classifier files rightly: it was trained on them."""
    rows, loaded = read_part(topic_split, "train"), load_classifier(linear.checkpoint)
    right = rows[loaded.predict_logits(rows["text"].tolist()).argmax(axis=1) == rows["label_id"]]
    return {str(label): texts.tolist() for label, texts in right.groupby("label")["text"]}


@pytest.fixture(scope="session")
def articles(learnt: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Two about food, the second labelled otherwise, one about science whose label we have no class for, and what is no use."""
    titles = [*learnt["FOOD"][:2], learnt["SCIENCE"][0]]
    labelled = [
        {"id": str(number), "title": title, "content": "", "summary": json.dumps({"category": label})}
        for number, title, label in zip((1, 2, 3), titles, ("dining", "Research", "Sailing"), strict=True)
    ]
    return [*labelled, *UNLABELLED, BLANK]


def compare(
    trained: Any,
    out: Path,
    articles: list[dict[str, Any]],
    crosswalk: Crosswalk = CROSSWALK,
    raw: bool = False,
    **thresholds: Any,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    nothing = {"threshold": None, "parent_threshold": None, "top3_threshold": None}
    calibration = replace(read_calibration(trained.evaluation), **{**nothing, **thresholds})
    rows = pd.DataFrame(articles, columns=["id", "title", "content", "summary"], dtype=object)
    facts = predict_external(rows, trained.checkpoint, calibration, crosswalk, out, compare_raw_strings=raw)
    with (out / "predictions_comparison.csv").open(encoding="utf-8", newline="") as stream:
        return facts, list(csv.DictReader(stream))


def test_a_label_matches_through_the_crosswalk_and_an_unmapped_one_is_left_open(
    linear: Any, articles: list[Any], tmp_path: Path
) -> None:
    _, rows = compare(linear, tmp_path, articles)
    assert [row["predicted_category"] for row in rows[:3]] == ["FOOD", "FOOD", "SCIENCE"]
    assert [row["match"] for row in rows] == ["True", "False", "", "", "", "", ""]


def test_the_match_rate_is_over_mapped_articles_only(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    facts, _ = compare(linear, tmp_path, articles)
    assert (facts["match_rate"], facts["match_rows"]) == (0.5, 2)
    assert facts["mapped_share"] == 3 / 4
    assert facts["unmapped_labels"] == {"Sailing": 1}


def test_every_article_is_counted_by_what_its_summary_held(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    facts, rows = compare(linear, tmp_path, articles)
    assert facts["counts"] == {
        "labelled": 4, "missing": 1, "broken": 1, "without_category": 1, "mapped": 3, "empty_text": 1,
        "filed": 0, "parent": 0, "top-3": 0, "abstained": 7,
    }  # fmt: skip
    assert len(rows) == facts["rows"] == 7


def test_no_mapped_label_means_no_match_rate(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    facts, _ = compare(linear, tmp_path, articles[2:3])
    assert facts["match_rate"] is None
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "not measured" in page
    assert "the vocabularies do not meet" in page
    assert judge_crosswalk(facts)[0] is False


@pytest.mark.parametrize(("unmapped", "passed"), [(5, True), (6, False)])
def test_the_check_asks_for_95_percent_of_the_labels(unmapped: int, passed: bool) -> None:
    counts = {"labelled": 100, "mapped": 100 - unmapped}
    results = {"counts": counts, "compare_raw_strings": False, "unmapped_labels": {"Sailing": unmapped}}
    verdict, sentence = judge_crosswalk(results)
    assert verdict is passed
    assert f"{100 - unmapped} of 100 labels" in sentence
    assert "Add to the crosswalk: Sailing" in sentence


def test_articles_without_labels_fail_the_check(linear: Any, tmp_path: Path) -> None:
    facts, _ = compare(linear, tmp_path, UNLABELLED)
    assert judge_crosswalk(facts) == (False, "The articles carry no labels, so that nothing could be compared.")


def test_letter_by_letter_nothing_matches_and_the_check_says_so(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    facts, rows = compare(linear, tmp_path, articles[:3], raw=True)
    assert [row["match"] for row in rows] == ["False", "False", "False"]
    assert facts["match_rate"] == 0
    assert judge_crosswalk(facts) == (False, "Labels were compared letter by letter, and 0 of 3 are spelt like a class.")


def test_a_label_without_a_counterpart_on_purpose_is_counted_apart_and_still_unmapped(
    linear: Any, articles: list[Any], tmp_path: Path
) -> None:
    opinion = {**articles[0], "summary": '{"category": "OPINION"}'}
    facts, _ = compare(linear, tmp_path, [articles[0], opinion])
    assert facts["mapped_share"] == 0.5
    assert (facts["unmapped_labels"], facts["no_counterpart_labels"]) == ({}, {"OPINION": 1})


def test_a_crosswalk_with_an_unknown_class_is_refused(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="BOATS"):
        compare(linear, tmp_path, articles, Crosswalk("test", {"Sailing": ("BOATS",), "Dining": ("FOOD",)}))


def test_repeated_ids_are_kept_and_counted(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    facts, rows = compare(linear, tmp_path, [articles[0], articles[0], articles[1]])
    assert ([row["id"] for row in rows], facts["repeated_ids"]) == (["1", "1", "2"], 1)


def test_rows_of_a_database_with_nulls_and_numbers_are_taken(linear: Any, learnt: dict[str, list[str]], tmp_path: Path) -> None:
    row = {"id": 7, "title": learnt["FOOD"][0], "content": None, "summary": {"category": "Dining"}}
    facts, rows = compare(linear, tmp_path, [row, {"id": 8, "title": None, "content": None, "summary": None}])
    assert (rows[0]["id"], rows[0]["match"], facts["counts"]["empty_text"]) == ("7", "True", 1)


def test_halves_of_characters_in_labels_and_titles_do_not_stop_the_comparison(
    linear: Any, articles: list[Any], tmp_path: Path
) -> None:
    halved = {"id": "1\ud800", "title": "half \ud800 a title", "content": "\udfff", "summary": '{"category":"\\ud800x"}'}
    facts, rows = compare(linear, tmp_path, [articles[0], halved])
    assert (rows[1]["id"], rows[1]["title"], rows[1]["summary_category"]) == ("1?", "half ? a title", "?x")
    assert facts["unmapped_labels"] == {"?x": 1}


def test_control_characters_of_labels_do_not_reach_the_terminal() -> None:
    unknown = {"\x1b[31mSailing\x07\u202e": 1}
    results = {"counts": {"labelled": 2, "mapped": 1}, "compare_raw_strings": False, "unmapped_labels": unknown}
    sentence = judge_crosswalk(results)[1]
    assert sentence.isprintable()
    assert "Sailing" in sentence


def test_text_from_labels_cannot_break_out_of_the_page(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    evil = {**articles[0], "summary": json.dumps({"category": "<script>x</script> | a\nb"})}
    compare(linear, tmp_path, [evil])
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("thresholds", "decision"),
    [
        ({"threshold": 0.0}, "filed"),
        ({"parent_threshold": 0.0}, "parent"),
        ({"threshold": 1.1, "top3_threshold": 0.0}, "top-3"),
        ({"threshold": 1.1, "parent_threshold": 1.1, "top3_threshold": 1.1}, "abstained"),
        ({}, "abstained"),
    ],
)
def test_the_thresholds_decide_what_is_done(
    thresholds: dict[str, float], decision: str, linear: Any, articles: list[Any], tmp_path: Path
) -> None:
    if decision == "parent":  # two classes below one parent, so that the parent says less than a class
        results = json.loads((linear.evaluation / "results.json").read_text(encoding="utf-8"))
        parents = {"FOOD": "LIFE", "FAMILY": "LIFE", "POLITICS": "WORLD", "SCIENCE": "WORLD"}
        thresholds = {**thresholds, "parents": tuple(parents[name] for name in results["classes"])}
    facts, rows = compare(linear, tmp_path, articles[:2], **thresholds)
    assert {row["decision"] for row in rows} == {decision}
    assert facts["counts"][decision] == 2
    assert facts["filed_match_rate"] == (0.5 if decision == "filed" else None)
    assert all((row["parent"] != "") == (row["parent_confidence"] != "") == (decision in ("filed", "parent")) for row in rows)
    if decision == "parent":
        assert all(float(row["parent_confidence"]) >= float(row["confidence"]) for row in rows)
        assert [row["parent"] for row in rows] == ["LIFE", "LIFE"]
        assert facts["by_decision"]["parent"]["rate"] == 0.5


def test_three_classes_are_named_in_the_order_of_their_probability(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    _, rows = compare(linear, tmp_path, articles[:1])
    named = rows[0]["top_3"].split(" | ")
    assert (named[0], len(set(named))) == ("FOOD", 3)


def test_a_cell_that_starts_like_a_formula_is_disarmed(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    _, rows = compare(linear, tmp_path, articles)
    assert rows[3]["title"] == "'=cmd()"


@pytest.mark.parametrize("text", ["=1", "+1+1", "-1-cmd()", "-", "@a", "\t=1", "\r=1", "\n=1", "＝1", "+1 =2"])
def test_every_start_of_a_formula_is_disarmed(text: str) -> None:
    assert spreadsheet_safe(text) == f"'{text}"
    assert spreadsheet_safe("1" + text) == "1" + text


@pytest.mark.parametrize("text", ["", "-5", "+1.5", "-1,000.25", "-3e-7", "'=1"])
def test_a_plain_number_is_no_formula(text: str) -> None:
    assert spreadsheet_safe(text) == text


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


def test_the_content_adds_to_the_title(linear: Any, learnt: dict[str, list[str]], tmp_path: Path) -> None:
    title = {"id": "1", "title": "A Story", "summary": ""}
    for label in ("FOOD", "POLITICS"):
        _, rows = compare(linear, tmp_path, [{**title, "content": learnt[label][0]}])
        assert rows[0]["predicted_category"] == label


def test_a_calibration_of_other_classes_is_refused(linear: Any, articles: list[Any], tmp_path: Path) -> None:
    other = replace(read_calibration(linear.evaluation), classes=("A", "B"), parents=("A", "B"))
    with pytest.raises(CheckpointError, match="evaluation report"):
        predict_external(pd.DataFrame(articles), linear.checkpoint, other, CROSSWALK, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,title,content\n1,a,b\n", "missing column summary"),
        (b"id,title,content,summary\n", "no article"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"id,title,content,summary\n1,caf\xe9,,\n", "not UTF-8 at line 2"),
        (b"id,title,content,summary\n1,a,,\n2,b\n", "line 3: 2 cells under a header of 4"),
        (b'id,title,content,summary\n1,"a,,\n2,b,,\n', "Is a quote missing"),
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


def test_byte_order_marks_windows_line_ends_and_nul_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid,title,content,summary\r\n1,"two\r\nlines",a\x00b,\r\n\r\n2,x,,\r\n')
    rows = read_external_csv(tmp_path / "a.csv")
    assert rows.values.tolist() == [["1", "two\r\nlines", "a\x00b", ""], ["2", "x", "", ""]]
