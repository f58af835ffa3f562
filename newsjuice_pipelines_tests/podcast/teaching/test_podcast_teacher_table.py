"""The table of teacher scripts: statuses, its CSV letter by letter, and its counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
from newsjuice_pipelines.podcast.teaching.teacher import TeacherReply, request_key
from newsjuice_pipelines.podcast.teaching.teacher_table import TEACHER_COLUMNS, read_teacher_csv, teacher_table, write_teacher_csv

ARTICLE = "The swifts are nesting in the tower again this year, and the town is glad of it. " * 3
GOOD = "Welcome to the programme. There is news from the tower, where swifts have come back to nest. Thanks for listening."
OK = TeacherReply(
    GOOD, "ok", "STOP", input_tokens=10, cached_tokens=4, output_tokens=5, thought_tokens=0, latency_s=0.5, cost_usd=0.001
)


def table(*replies: TeacherReply, articles: list[str] | None = None) -> pd.DataFrame:
    """A table in which each reply answers an article of its own."""
    keys = [str(number) for number in range(len(replies))]
    chunks = pd.DataFrame(
        {"chunk_id": [f"a{key}:0" for key in keys], "article_id": [f"a{key}" for key in keys], "text": articles or ARTICLE}
    )
    return teacher_table(chunks, keys, dict(zip(keys, replies, strict=True)), ExtractiveTeacher())


def test_it_begins_with_the_columns_of_the_first_experiment() -> None:
    scripts = table(OK)
    assert tuple(scripts.columns) == TEACHER_COLUMNS
    assert TEACHER_COLUMNS[:3] == ("chunk_text", "gemini_podcast_text", "gemini_length")
    assert scripts.loc[0, "gemini_length"] == len(GOOD)


def test_an_unfit_script_keeps_its_row_its_text_and_its_reason() -> None:
    scripts = table(replace(OK, text="Sure! " + GOOD), OK)
    assert scripts["status"].tolist() == ["rejected", "ok"]
    assert scripts.loc[0, "finish_reason"] == "preamble"
    assert scripts.loc[0, "gemini_podcast_text"] == "Sure! " + GOOD


def test_a_script_is_judged_against_its_own_article() -> None:
    scripts = table(OK, OK, articles=[ARTICLE, "Rain fell on Monday. It was wet."])
    assert scripts["status"].tolist() == ["ok", "ok"]
    invented = replace(OK, text=GOOD.replace("swifts", "4,711 swifts"))
    assert table(invented)["finish_reason"].tolist() == ["unsupported_number"]


@pytest.mark.parametrize("status", ["blocked_prompt", "blocked_output", "empty", "failed", "not_asked"])
def test_a_reply_without_a_script_has_no_text(status: Any) -> None:
    scripts = table(TeacherReply("", status, "WHY"))
    assert scripts[["status", "finish_reason", "gemini_podcast_text"]].values.tolist() == [[status, "WHY", ""]]


@pytest.mark.parametrize("change", [{"model": "m2"}, {"prompt_version": "v2"}, {"settings": {"max_output_tokens": 9}}])
def test_whatever_decides_the_answer_is_in_the_key(change: dict[str, Any]) -> None:
    class Other(ExtractiveTeacher):
        model = change.get("model", "extractive")
        prompt_version = change.get("prompt_version", ExtractiveTeacher().prompt_version)
        settings = change.get("settings", ExtractiveTeacher().settings)

    assert request_key(ExtractiveTeacher(), "text") != request_key(Other(), "text")
    assert request_key(ExtractiveTeacher(), "text") != request_key(ExtractiveTeacher(), "texts")


def test_texts_survive_the_csv_file_letter_by_letter(tmp_path: Path) -> None:
    odd = ['=1+1, "quoted"', "NA", "null", "line\none\r\ntwo", " blanks ", "Ünïcode “x” 😀", ""]
    scripts = table(*[OK] * len(odd), articles=odd)
    write_teacher_csv(scripts, tmp_path)
    pd.testing.assert_frame_equal(read_teacher_csv([tmp_path]), scripts)


def test_partitions_are_read_as_one_table(tmp_path: Path) -> None:
    scripts = table(*[replace(OK, latency_s=None, cost_usd=None)] * 2)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_teacher_csv(scripts, folder)
    read = read_teacher_csv(folders)
    assert len(read) == 4
    assert read["latency_s"].isna().all()
    assert read_teacher_csv([]).empty


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scripts.csv").write_text("chunk_text,gemini_podcast_text\na,b\n")
    with pytest.raises(ValueError, match="lacks the column gemini_length"):
        read_teacher_csv([tmp_path])


def test_the_facts_count_statuses_reasons_tokens_and_costs(tmp_path: Path) -> None:
    blocked = replace(OK, text="", status="blocked_output", finish_reason="SAFETY")
    facts = write_teacher_csv(table(OK, replace(OK, text="Sure! " + GOOD), blocked), tmp_path)
    assert facts["status"] == {"ok": 1, "rejected": 1, "blocked_output": 1}
    assert facts["not_ok_reasons"] == {"blocked_output: SAFETY": 1, "rejected: preamble": 1}
    assert facts["cost_usd"] == pytest.approx(0.003)
    assert (facts["input_tokens"], facts["cached_tokens"], facts["output_tokens"]) == (30, 12, 15)
    assert facts["latency_p50_s"] == 0.5


def test_a_sum_with_an_unknown_cost_in_it_is_unknown(tmp_path: Path) -> None:
    facts = write_teacher_csv(table(OK, replace(OK, cost_usd=None)), tmp_path)
    assert facts["cost_usd"] is None
    assert facts["rows_without_cost"] == 1


def test_rows_that_were_never_answered_cost_nothing_and_are_not_unknown(tmp_path: Path) -> None:
    facts = write_teacher_csv(table(OK, TeacherReply("", "not_asked", "BUDGET"), TeacherReply("", "failed", "ERROR")), tmp_path)
    assert facts["cost_usd"] == pytest.approx(0.001)


def test_what_was_not_measured_is_none_in_the_facts(tmp_path: Path) -> None:
    facts = write_teacher_csv(table(TeacherReply("", "empty", "NO_REASON")), tmp_path)
    measured = {name: facts[name] for name in ("words_p50", "latency_p50_s", "latency_p95_s", "cost_usd", "input_tokens")}
    assert set(measured.values()) == {None}
