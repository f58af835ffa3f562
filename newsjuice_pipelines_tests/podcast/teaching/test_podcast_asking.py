"""Asking the paid teacher for many scripts: the real SDK against a local server, on a real ledger."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

import pandas as pd
import pytest

from newsjuice_pipelines.benchmarks.gemini_answers import (
    Answer,
    blocked_prompt_answer,
    error_answer,
    lost_answer,
    malformed_answer,
    script_answer,
)
from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer, ServerConfig
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.ledger import Ledger
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused, TeacherUnavailable
from newsjuice_pipelines.podcast.teaching.teacher_run import ScriptRun, plan_scripts, write_scripts

Chunks = Callable[[int], pd.DataFrame]
QUICK = AskingConfig(max_concurrency=8, start_concurrency=4, first_delay_s=0.02, max_delay_s=0.1, request_timeout_s=5)


def asking(**changes: float | None) -> AskingConfig:
    return AskingConfig(**{**vars(QUICK), **changes})  # type: ignore[arg-type]


@pytest.fixture
def write(gemini_teacher: GeminiTeacher, ledger: Ledger) -> Callable[..., ScriptRun]:
    """Ask the paid teacher for scripts of chunks."""

    def run(chunks: pd.DataFrame, **changes: float | None) -> ScriptRun:
        return write_scripts(chunks, gemini_teacher, ledger, asking(**changes))

    return run


Write = Callable[..., ScriptRun]


def worked(server: GeminiServer) -> list[int]:
    """How often the server did the work of each prompt that it ever saw."""
    return [entry["worked"] for entry in server.stats()["prompts"].values()]


def test_every_chunk_gets_its_script_in_the_order_of_the_chunks(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    chunks = chunks_of(30)
    run = write(chunks)
    assert run.scripts["chunk_id"].tolist() == chunks["chunk_id"].tolist()
    assert run.scripts["status"].tolist() == ["ok"] * 30
    assert worked(gemini) == [1] * 30
    number = [text.split("number ")[1].split(".")[0] for text in run.scripts["gemini_podcast_text"]]
    assert number == [str(position) for position in range(30)], "each script is that of its own article"


def test_a_second_run_asks_for_nothing(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    first = write(chunks_of(5))
    second = write(chunks_of(5))
    assert len(gemini.received) == 5
    pd.testing.assert_frame_equal(first.scripts, second.scripts)
    assert second.facts["from_ledger"] == 5


def test_equal_texts_are_asked_for_once(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    chunks = chunks_of(3)
    chunks["text"] = chunks.loc[0, "text"]
    assert write(chunks).scripts["status"].tolist() == ["ok"] * 3
    assert len(gemini.received) == 1


def test_requests_run_at_once_and_never_more_than_allowed(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.config = ServerConfig(latency_s=0.1)
    run = write(chunks_of(40))
    assert gemini.peak_in_flight == run.facts["peak_concurrency"] == 8


def test_bursts_of_rate_limits_are_waited_out_and_slow_the_run_down(
    gemini: GeminiServer, write: Write, chunks_of: Chunks
) -> None:
    gemini.config = ServerConfig(latency_s=0.02, most_at_once=3, retry_delay_s=0.05)
    run = write(chunks_of(60), max_concurrency=32, start_concurrency=16, attempts=30)
    assert run.scripts["status"].tolist() == ["ok"] * 60
    assert run.facts["rate_limited"] > 0
    assert worked(gemini) == [1] * 60
    late = [request for request in gemini.received[-20:] if request.status == 429]
    assert len(late) < 10, "by then the run has found its pace"


def test_the_delay_that_the_service_asks_for_is_kept(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.prepare(error_answer(429, "RESOURCE_EXHAUSTED", retry_delay="0.7s"), error_answer(503, "UNAVAILABLE", retry_after="1"))
    assert write(chunks_of(1)).scripts["status"].tolist() == ["ok"]
    first, second, third = (request.arrived_at for request in gemini.received)
    assert 0.7 <= second - first < 1.5
    assert 1.0 <= third - second < 2.0


@pytest.mark.parametrize(
    "trouble",
    [
        error_answer(408, "CANCELLED"),
        error_answer(429, "RESOURCE_EXHAUSTED"),
        error_answer(500, "INTERNAL"),
        error_answer(503, "UNAVAILABLE"),
        malformed_answer(),
        lost_answer("unanswered"),
        lost_answer("halfway"),
    ],
    ids=["408", "429", "500", "503", "malformed", "dropped", "halfway"],
)
def test_trouble_that_may_pass_is_tried_again(gemini: GeminiServer, write: Write, chunks_of: Chunks, trouble: Answer) -> None:
    gemini.prepare(trouble, trouble)
    run = write(chunks_of(1))
    assert run.scripts[["status", "attempts"]].values.tolist() == [["ok", 3]]
    assert run.facts["retries"] == 2


def test_a_request_that_hangs_is_ended_by_its_timeout(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.prepare(lost_answer("silent"))
    started = time.monotonic()
    assert write(chunks_of(1), request_timeout_s=0.5).scripts["attempts"].tolist() == [2]
    assert time.monotonic() - started < 4


def test_a_row_that_keeps_failing_is_a_failed_row_and_is_asked_again_by_the_next_run(
    gemini: GeminiServer, write: Write, chunks_of: Chunks
) -> None:
    gemini.rule = lambda _, prompt: error_answer(503, "UNAVAILABLE") if "Report number 3." in prompt else None
    run = write(chunks_of(6), attempts=3)
    assert run.scripts["status"].tolist() == ["ok", "ok", "ok", "failed", "ok", "ok"]
    assert run.scripts.loc[3, "gemini_podcast_text"] == ""
    assert run.scripts.loc[3, "attempts"] == 3
    gemini.rule = None
    assert write(chunks_of(6)).scripts["status"].tolist() == ["ok"] * 6


def test_a_row_is_given_up_at_its_deadline(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.rule = lambda _, prompt: error_answer(503, "UNAVAILABLE", retry_delay="3600s") if "number 0." in prompt else None
    started = time.monotonic()
    run = write(chunks_of(3), row_deadline_s=5.0)
    assert run.scripts["status"].tolist() == ["failed", "ok", "ok"]
    assert time.monotonic() - started < 5


def test_a_service_that_is_down_ends_the_run_with_what_to_do(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.always(error_answer(503, "UNAVAILABLE"))
    with pytest.raises(TeacherUnavailable, match=r"10 scripts in a row failed.*503.*Run again later"):
        write(chunks_of(200), attempts=2)
    assert len(gemini.received) < 60


@pytest.mark.parametrize(("code", "status"), [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (404, "NOT_FOUND")])
def test_a_refusal_ends_the_run_at_once_without_a_retry_storm(
    gemini: GeminiServer, write: Write, chunks_of: Chunks, code: int, status: str
) -> None:
    gemini.always(error_answer(code, status))
    with pytest.raises(TeacherRefused, match=status):
        write(chunks_of(200))
    assert len(gemini.received) <= QUICK.start_concurrency


def test_requests_that_are_all_wrong_end_the_run_after_a_few(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.always(error_answer(400, "INVALID_ARGUMENT"))
    with pytest.raises(TeacherRefused, match=r"INVALID_ARGUMENT.*settings"):
        write(chunks_of(200))
    assert len(gemini.received) <= 3 * QUICK.start_concurrency


def test_one_row_that_the_service_calls_wrong_is_a_failed_row(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.rule = lambda _, prompt: error_answer(400, "INVALID_ARGUMENT") if "Report number 3." in prompt else None
    run = write(chunks_of(20))
    assert run.scripts["status"].value_counts().to_dict() == {"ok": 19, "failed": 1}
    assert len(gemini.received) == 20, "a request that is wrong is not sent again"


def test_a_run_over_one_bad_row_that_is_left_still_gives_the_table(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.rule = lambda _, prompt: error_answer(503, "UNAVAILABLE") if "Report number 3." in prompt else None
    for _ in range(2):
        run = write(chunks_of(6), attempts=2)
        assert run.scripts["status"].value_counts().to_dict() == {"ok": 5, "failed": 1}


def test_rate_limits_do_not_use_up_the_tries_of_a_row(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.rule = lambda number, _: error_answer(429, "RESOURCE_EXHAUSTED") if number <= 60 else None
    run = write(chunks_of(12), attempts=2, max_delay_s=0.05)
    assert run.scripts["status"].tolist() == ["ok"] * 12
    assert run.facts["rate_limited"] == 60


def test_a_delay_that_the_service_asks_for_holds_all_rows_back(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.rule = lambda number, _: error_answer(429, "RESOURCE_EXHAUSTED", retry_delay="0.8s") if number == 1 else None
    write(chunks_of(40))
    first = gemini.received[0].arrived_at
    during = [request for request in gemini.received if 0.3 < request.arrived_at - first < 0.7]
    assert not during


def test_an_answer_that_does_not_say_what_it_took_counts_in_full(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, chunks_of: Chunks
) -> None:
    chunks = chunks_of(20)
    most = max(gemini_teacher.most_usd(text) or 0.0 for text in chunks["text"])
    content = {"role": "model", "parts": [{"text": "A script."}]}
    gemini.always(Answer(body={"candidates": [{"content": content, "finishReason": "STOP"}]}))
    run = write(chunks, max_budget_usd=3.5 * most)
    assert run.facts["budget_reached"]
    assert len(gemini.received) == 3


def test_wrong_credentials_are_a_refusal(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.config = ServerConfig(token="another token")
    with pytest.raises(TeacherRefused, match="credentials"):
        write(chunks_of(200))
    assert len(gemini.received) <= QUICK.start_concurrency


def test_answers_under_way_when_the_run_is_refused_are_kept(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.config = ServerConfig(latency_s=0.3)
    gemini.rule = lambda number, _: error_answer(403, "PERMISSION_DENIED") if number == 4 else None
    with pytest.raises(TeacherRefused):
        write(chunks_of(20))
    gemini.rule = None
    write(chunks_of(20))
    assert worked(gemini) == [1] * 20


def test_outcomes_are_told_apart(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    outcomes = [
        blocked_prompt_answer(),
        script_answer(None, "SAFETY"),
        script_answer("half a", "RECITATION"),
        script_answer("A script that was cut", "MAX_TOKENS"),
        script_answer(None, "MAX_TOKENS"),
        script_answer("Here is your podcast script: " + "word " * 40 + "end."),
    ]
    gemini.rule = lambda _, prompt: outcomes[int(prompt.split("Report number ")[1].split(".")[0])]
    scripts = write(chunks_of(6)).scripts
    assert scripts["status"].tolist() == [
        "blocked_prompt",
        "blocked_output",
        "blocked_output",
        "truncated",
        "empty",
        "rejected",
    ]
    assert scripts["finish_reason"].tolist() == [
        "PROMPT_PROHIBITED_CONTENT",
        "SAFETY",
        "RECITATION",
        "MAX_TOKENS",
        "MAX_TOKENS",
        "preamble",
    ]
    assert (scripts["cost_usd"] > 0).all(), "all of them are billed"


def test_the_budget_is_never_passed_and_what_is_done_stays_done(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, chunks_of: Chunks
) -> None:
    chunks = chunks_of(40)
    most = max(gemini_teacher.most_usd(text) or 0.0 for text in chunks["text"])
    run = write(chunks, max_budget_usd=6 * most)
    statuses = run.scripts["status"].value_counts().to_dict()
    assert run.facts["budget_reached"]
    assert run.scripts["cost_usd"].sum() <= 6 * most
    assert statuses["ok"] > 6, "answers cost less than feared, so that more of them fit"
    assert statuses["ok"] + statuses["not_asked"] == 40
    assert write(chunks).scripts["status"].tolist() == ["ok"] * 40
    assert worked(gemini) == [1] * 40


def test_a_budget_of_nothing_asks_for_nothing(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    assert set(write(chunks_of(3), max_budget_usd=0.0).scripts["status"]) == {"not_asked"}
    assert not gemini.received


def test_a_lost_answer_counts_against_the_budget(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.prepare(lost_answer("unanswered"))
    run = write(chunks_of(1), max_budget_usd=1.0)
    assert run.facts["unanswered_usd"] > run.facts["spent_usd"] > 0


def test_a_budget_needs_a_price(gemini: GeminiServer, ledger: Ledger, chunks_of: Chunks) -> None:
    teacher = GeminiTeacher(gemini.client, "gemini-of-tomorrow")
    with pytest.raises(ValueError, match=r"price of gemini-of-tomorrow is not known.*input_price"):
        write_scripts(chunks_of(3), teacher, ledger, asking(max_budget_usd=5.0))
    assert not gemini.received


def test_an_unknown_price_is_not_a_cost_of_zero(gemini: GeminiServer, ledger: Ledger, chunks_of: Chunks) -> None:
    run = write_scripts(chunks_of(3), GeminiTeacher(gemini.client, "gemini-of-tomorrow"), ledger, QUICK)
    assert run.facts["spent_usd"] is None
    assert run.scripts["cost_usd"].isna().all()
    assert "unknown" in plan_scripts(chunks_of(5), GeminiTeacher(gemini.client, "gemini-of-tomorrow"), ledger).sentence()


def test_a_forecast_is_made_after_twenty_answers(write: Write, chunks_of: Chunks, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="newsjuice.podcast"):
        run = write(chunks_of(50))
    forecast = run.facts["forecast"]
    assert 20 <= forecast["after_answers"] < 50
    assert forecast["scripts"] == 50
    assert forecast["cost_usd"] == pytest.approx(run.facts["spent_usd"], rel=0.3)
    assert "forecast after" in caplog.text


def test_a_dry_run_counts_calls_and_money_and_asks_for_nothing(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, ledger: Ledger, chunks_of: Chunks
) -> None:
    run = write(chunks_of(4))
    plan = plan_scripts(chunks_of(10), gemini_teacher, ledger)
    assert (plan.rows, plan.in_ledger, plan.calls) == (10, 4, 6)
    assert len(gemini.received) == 4
    assert plan.expected_usd == pytest.approx(run.facts["spent_usd"] / 4 * 6)
    assert plan.most_usd is not None
    assert plan.most_usd > plan.expected_usd > 0
    actual = write(chunks_of(10)).facts["spent_usd"]
    assert actual <= plan.most_usd


def test_requests_a_minute_are_spread_evenly(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    write(chunks_of(13), requests_per_minute=600)
    arrived = [request.arrived_at for request in gemini.received]
    assert arrived[-1] - arrived[0] >= 12 * 0.1 / 2  # one of them may be late by as much as the test machine likes


def test_tokens_a_minute_hold_requests_back(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, chunks_of: Chunks
) -> None:
    chunks = chunks_of(6)
    most = min(gemini_teacher.most_tokens(text) for text in chunks["text"])
    gemini.config = ServerConfig(latency_s=3.0)  # while answers are out, their tokens count in full
    write(chunks, tokens_per_minute=120 * most)
    arrived = [request.arrived_at for request in gemini.received]
    assert arrived[-1] - arrived[0] >= 5 * 0.5 / 2


def test_faults_of_every_kind_at_once_lose_nothing_and_pay_nothing_twice(
    gemini: GeminiServer, write: Write, chunks_of: Chunks
) -> None:
    rng = random.Random(7)
    faults = [
        error_answer(429, "RESOURCE_EXHAUSTED", retry_delay="0.02s"),
        error_answer(429, "RESOURCE_EXHAUSTED"),
        error_answer(503, "UNAVAILABLE"),
        malformed_answer(status=502),
    ]
    gemini.rule = lambda *_: rng.choice(faults) if rng.random() < 0.3 else None
    run = write(chunks_of(150), max_concurrency=16, attempts=12)
    assert run.scripts["status"].tolist() == ["ok"] * 150
    assert worked(gemini) == [1] * 150
    assert run.facts["requests"] == len(gemini.received)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"lease_s": 0}, "lease_s=0"),
        ({"max_budget_usd": -1}, "max_budget_usd=-1"),
        ({"requests_per_minute": -5}, "requests_per_minute=-5"),
        ({"row_deadline_s": float("nan")}, "row_deadline_s=nan"),
    ],
)
def test_settings_that_cannot_work_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asking(**wrong)
