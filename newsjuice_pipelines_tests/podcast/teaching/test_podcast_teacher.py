from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.sentences import ends_complete, split_sentences
from newsjuice_pipelines.podcast.teacher import (
    TEACHER_COLUMNS,
    ExtractiveTeacher,
    TeacherRefused,
    TeacherReply,
    TeacherUnavailable,
    read_teacher_csv,
    request_key,
    script_problem,
    write_scripts,
    write_teacher_csv,
)

GOOD = "Welcome to the programme. " + "The swifts are nesting in the tower again this year. " * 5 + "Thanks for listening."
OK = TeacherReply(GOOD, "ok", "STOP", input_tokens=10, output_tokens=5, thought_tokens=0, latency_s=0.5, cost_usd=0.001)


@dataclass
class ScriptedTeacher:
    """Answers as a function of the article, and remembers what it was asked."""

    answer: Callable[[str], TeacherReply] = lambda _: OK
    model: str = "scripted"
    prompt_version: str = "v1"
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def write(self, article: str) -> TeacherReply:
        self.asked.append(article)
        return self.answer(article)


@dataclass
class MemoryLedger:
    """The ledger's two calls on a dictionary; the real one has its own tests."""

    kept: dict[str, TeacherReply] = field(default_factory=dict)

    def get_many(self, keys: Collection[str]) -> dict[str, TeacherReply]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def put(self, key: str, model: str, prompt_version: str, reply: TeacherReply) -> None:
        if reply.status != "failed":
            self.kept[key] = reply


def chunks(*texts: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"chunk_id": [f"a{n}:0" for n in range(len(texts))], "article_id": [f"a{n}" for n in range(len(texts))], "text": texts}
    )


def test_extractive_scripts_of_the_demo_corpus_are_all_fit(demo_articles: list[dict[str, Any]]) -> None:
    for article in demo_articles:
        reply = ExtractiveTeacher().write(article["content"])
        assert reply.status == "ok"
        assert script_problem(reply.text) is None
        assert 60 <= len(reply.text.split()) <= 150


def test_an_extractive_script_is_the_lead_of_its_article_in_a_frame(demo_articles: list[dict[str, Any]]) -> None:
    content = demo_articles[0]["content"]
    script = ExtractiveTeacher().write(content).text
    lead = " ".join(split_sentences(content)[0].split())
    assert "NewsJuice" in script[: script.index(lead)]
    assert ends_complete(script)


def test_the_extractive_teacher_answers_the_same_every_time(demo_articles: list[dict[str, Any]]) -> None:
    content = demo_articles[3]["content"]
    assert ExtractiveTeacher().write(content) == ExtractiveTeacher().write(content)


def test_the_frame_varies_over_articles(demo_articles: list[dict[str, Any]]) -> None:
    openings = {ExtractiveTeacher().write(article["content"]).text[:40] for article in demo_articles}
    assert len(openings) == 4


def test_an_article_without_a_sentence_gives_an_empty_reply_not_a_frame() -> None:
    reply = ExtractiveTeacher().write("HEADLINE WORDS ONLY\n\nand a fragment")
    assert (reply.status, reply.text) == ("empty", "")


def test_headings_and_cut_ends_stay_out_of_an_extractive_script() -> None:
    script = ExtractiveTeacher().write("THE HEADING\n\nRain fell on Monday. It stopped on Tues").text
    assert "Rain fell on Monday." in script
    assert "HEADING" not in script
    assert "Tues" not in script


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (GOOD, None),
        ("word " * 300 + "end.", "too_long"),
        ("Too short to speak.", "too_short"),
        (GOOD[:-1] + ", and", "incomplete_sentence"),
        ("Here is your podcast script:\n\n" + GOOD, "preamble"),
        ("Sure! " + GOOD, "preamble"),
        ("Certainly, here's a 200-word script. " + GOOD, "preamble"),
        ("Podcast script: " + GOOD, "preamble"),
        ("I'm sorry, but I cannot help with that request. " + GOOD, "refusal"),
        ("**Host:** " + GOOD, "markup"),
        ("Host: " + GOOD, "markup"),
        ("[Intro music] " + GOOD, "markup"),
        ("(upbeat music fades) " + GOOD, "markup"),
        ("# Title\n" + GOOD, "markup"),
        (GOOD + "\n- a list item.", "markup"),
        (GOOD + "<|im_end|>", "markup"),
        ("Here is a story worth hearing. " + GOOD, None),
        ("Of course, nobody expected rain. " + GOOD, None),
        ("The mayor (a former nurse) spoke. " + GOOD, None),
    ],
)
def test_the_filter_tells_a_script_from_other_text(script: str, problem: str | None) -> None:
    assert script_problem(script) == problem


def test_scripts_come_in_the_order_of_the_chunks_whoever_finishes_first() -> None:
    def answer(article: str) -> TeacherReply:
        time.sleep(0.05 if article == "first" else 0)
        return replace(OK, text=f"{GOOD} This was {article}.")

    scripts = write_scripts(chunks("first", "second", "third"), ScriptedTeacher(answer), None, 3)
    assert scripts["chunk_text"].tolist() == ["first", "second", "third"]
    assert [text.split()[-1] for text in scripts["gemini_podcast_text"]] == ["first.", "second.", "third."]
    assert tuple(scripts.columns) == TEACHER_COLUMNS


def test_requests_run_at_once() -> None:
    barrier = threading.Barrier(4, timeout=10)

    def answer(_: str) -> TeacherReply:
        barrier.wait()
        return OK

    assert len(write_scripts(chunks("a", "b", "c", "d"), ScriptedTeacher(answer), None, 4)) == 4


def test_equal_texts_are_asked_once() -> None:
    teacher = ScriptedTeacher()
    scripts = write_scripts(chunks("same", "same", "other"), teacher, None, 2)
    assert sorted(teacher.asked) == ["other", "same"]
    assert scripts["status"].tolist() == ["ok", "ok", "ok"]


def test_a_second_run_asks_for_nothing_again() -> None:
    ledger, teacher = MemoryLedger(), ScriptedTeacher()
    first = write_scripts(chunks("a", "b"), teacher, ledger, 2)  # type: ignore[arg-type]
    second = write_scripts(chunks("a", "b"), teacher, ledger, 2)  # type: ignore[arg-type]
    assert len(teacher.asked) == 2
    pd.testing.assert_frame_equal(first, second)


def test_after_a_crash_only_the_missing_answers_are_asked_for() -> None:
    def refuse_the_third(article: str) -> TeacherReply:
        if article == "c":
            raise TeacherRefused("no more")
        return OK

    ledger = MemoryLedger()
    with pytest.raises(TeacherRefused):
        write_scripts(chunks("a", "b", "c"), ScriptedTeacher(refuse_the_third), ledger, 1)  # type: ignore[arg-type]
    teacher = ScriptedTeacher()
    write_scripts(chunks("a", "b", "c"), teacher, ledger, 1)  # type: ignore[arg-type]
    assert teacher.asked == ["c"]


def test_a_permanent_error_stops_the_requests_that_wait() -> None:
    def refuse(_: str) -> TeacherReply:
        raise TeacherRefused("401")

    teacher = ScriptedTeacher(refuse)
    with pytest.raises(TeacherRefused):
        write_scripts(chunks(*map(str, range(500))), teacher, None, 2)
    assert len(teacher.asked) < 500


def test_failures_in_a_row_stop_the_run() -> None:
    teacher = ScriptedTeacher(lambda _: TeacherReply("", "failed", "ERROR", error="503 UNAVAILABLE"))
    with pytest.raises(TeacherUnavailable, match=r"10 requests in a row failed.*503 UNAVAILABLE"):
        write_scripts(chunks(*map(str, range(500))), teacher, None, 2)
    assert len(teacher.asked) < 500


def test_a_single_failure_is_a_row_without_text() -> None:
    failed = TeacherReply("", "failed", "ERROR", error="503 UNAVAILABLE", attempts=5)
    scripts = write_scripts(chunks("a", "b"), ScriptedTeacher(lambda text: failed if text == "a" else OK), None, 1)
    assert scripts["status"].tolist() == ["failed", "ok"]
    assert scripts.loc[0, "gemini_podcast_text"] == ""


@pytest.mark.parametrize("status", ["blocked", "truncated", "empty"])
def test_text_of_an_answer_without_a_whole_script_is_not_passed_on(status: Any) -> None:
    scripts = write_scripts(chunks("a", "b"), ScriptedTeacher(lambda _: replace(OK, status=status, finish_reason="WHY")), None, 1)
    assert scripts["gemini_podcast_text"].tolist() == ["", ""]
    assert scripts["finish_reason"].tolist() == ["WHY", "WHY"]


def test_an_unfit_script_is_rejected_with_its_reason() -> None:
    scripts = write_scripts(chunks("a", "b"), ScriptedTeacher(lambda _: replace(OK, text="Sure! " + GOOD)), None, 1)
    assert scripts["status"].tolist() == ["rejected", "rejected"]
    assert scripts["finish_reason"].tolist() == ["preamble", "preamble"]


@pytest.mark.parametrize("change", [{"model": "m2"}, {"prompt_version": "v2"}, {"settings": {"max_output_tokens": 9}}])
def test_whatever_decides_the_answer_is_in_the_key(change: dict[str, Any]) -> None:
    assert request_key(ScriptedTeacher(), "text") != request_key(ScriptedTeacher(**change), "text")
    assert request_key(ScriptedTeacher(), "text") != request_key(ScriptedTeacher(), "texts")


def test_texts_survive_the_csv_file_letter_by_letter(tmp_path: Path) -> None:
    odd = ['=1+1, "quoted"', "NA", "null", "line\none\r\ntwo", " blanks ", "Ünïcode “x” 😀", ""]
    scripts = write_scripts(chunks(*odd), ScriptedTeacher(), None, 1)
    write_teacher_csv(scripts, tmp_path)
    pd.testing.assert_frame_equal(read_teacher_csv([tmp_path]), scripts)


def test_partitions_are_read_as_one_table(tmp_path: Path) -> None:
    scripts = write_scripts(chunks("a", "b"), ScriptedTeacher(lambda _: replace(OK, latency_s=None, cost_usd=None)), None, 1)
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


def test_the_facts_count_statuses_and_add_up_costs(tmp_path: Path) -> None:
    replies = {"a": OK, "b": replace(OK, text="Sure! " + GOOD), "c": TeacherReply("", "blocked", "SAFETY")}
    scripts = write_scripts(chunks("a", "b", "c"), ScriptedTeacher(lambda text: replies[text]), None, 1)
    facts = write_teacher_csv(scripts, tmp_path)
    assert facts["status"] == {"blocked": 1, "ok": 1, "rejected": 1}
    assert facts["not_ok_reasons"] == {"SAFETY": 1, "preamble": 1}
    assert facts["cost_usd"] == pytest.approx(0.002)
    assert facts["rows_without_cost"] == 1
    assert facts["latency_p50_s"] == 0.5


def test_what_was_not_measured_is_none_in_the_facts(tmp_path: Path) -> None:
    scripts = write_scripts(chunks("a"), ScriptedTeacher(lambda _: TeacherReply("", "empty", "NO_REASON")), None, 1)
    facts = write_teacher_csv(scripts, tmp_path)
    measured = {name: facts[name] for name in ("words_p50", "latency_p50_s", "latency_p95_s", "cost_usd", "input_tokens")}
    assert set(measured.values()) == {None}
