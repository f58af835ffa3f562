"""Batch mode behind the ledger: the real SDK against the local server, on a real ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.benchmarks.gemini_answers import Answer, error_answer
from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer, ServerConfig
from newsjuice_pipelines.podcast.teaching.batches import BatchConfig, BatchState
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.gemini_batch import GeminiBatches
from newsjuice_pipelines.podcast.teaching.ledger import Ledger, batch_owner, run_owner
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused, TryAgain, request_key
from newsjuice_pipelines.podcast.teaching.teacher_run import ScriptRun, plan_scripts, write_scripts

Chunks = Callable[[int], pd.DataFrame]
Write = Callable[..., ScriptRun]
ASKING = AskingConfig(first_delay_s=0.02, max_delay_s=0.1)


class Killed(BaseException):
    """The process is gone."""


class KilledWhileWaiting(GeminiBatches):
    """Its run is killed when the job is made."""

    async def state(self, job: str) -> Any:
        raise Killed


@pytest.fixture
def write(gemini: GeminiServer, gemini_teacher: GeminiTeacher, ledger: Ledger, tmp_path: Path) -> Write:
    gemini.config = ServerConfig(batch_running_s=0.2)

    def run(chunks: pd.DataFrame, batches: Callable[..., Any] = GeminiBatches, **changes: Any) -> ScriptRun:
        asking = replace(ASKING, max_budget_usd=changes.pop("max_budget_usd", None))
        config = BatchConfig(**{"mode": "batch", "batch_folder": str(tmp_path), "batch_poll_s": 0.05, **changes})
        return write_scripts(chunks, gemini_teacher, ledger, asking, config, lambda folder: batches(gemini_teacher, folder))

    return run


@pytest.fixture
def makers_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a test are one process; take each for killed when it is over."""
    monkeypatch.setattr("newsjuice_pipelines.podcast.teaching.batches.is_dead", lambda owner: True)


def online_requests(server: GeminiServer) -> int:
    return sum(request.path != "batch" for request in server.received)


def test_a_batch_answers_all_rows_at_half_the_price(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    run = write(chunks_of(12))
    assert run.scripts["status"].tolist() == ["ok"] * 12
    assert set(run.scripts["mode"]) == {"batch"}
    assert online_requests(gemini) == 0
    assert run.facts["batch_usd"] == pytest.approx(run.scripts["cost_usd"].sum())


def test_the_next_run_finds_the_answers_in_the_ledger(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    write(chunks_of(5))
    again = write(chunks_of(5), mode="online")
    assert again.facts["from_ledger"] == 5
    assert len(gemini.jobs.jobs) == 1


def test_rows_that_the_job_left_out_are_asked_for_on_line(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.config = ServerConfig(batch_running_s=0.05, batch_missing_every=3, batch_error_every=4)
    run = write(chunks_of(12))
    assert run.scripts["status"].tolist() == ["ok"] * 12
    modes = run.scripts["mode"].value_counts().to_dict()
    assert modes["online"] == online_requests(gemini) == run.facts["batch_unanswered"] > 0


def test_a_job_that_takes_too_long_is_cancelled_and_its_rest_asked_for_on_line(
    gemini: GeminiServer, write: Write, chunks_of: Chunks
) -> None:
    gemini.config = ServerConfig(batch_running_s=60.0)
    run = write(chunks_of(10), batch_wait_h=0.0)
    assert run.scripts["status"].tolist() == ["ok"] * 10
    assert run.scripts["mode"].value_counts().to_dict() == {"batch": 5, "online": 5}


def test_a_failed_job_leaves_its_rows_to_on_line_requests(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.jobs.fail_next = "out of quota"
    assert write(chunks_of(4)).scripts["mode"].tolist() == ["online"] * 4


def test_a_run_that_was_killed_while_its_job_ran_is_continued_by_the_next(
    gemini: GeminiServer, write: Write, ledger: Ledger, chunks_of: Chunks
) -> None:
    with pytest.raises(Killed):
        write(chunks_of(8), KilledWhileWaiting)
    run = write(chunks_of(8), mode="online")
    assert set(run.scripts["mode"]) == {"batch"}
    assert (len(gemini.jobs.jobs), online_requests(gemini)) == (1, 0)
    assert ledger.open_batches("gemini-3.1-flash-lite", "v2") == []


def test_a_job_of_other_rows_is_collected_when_it_is_over_and_not_charged(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, ledger: Ledger, chunks_of: Chunks
) -> None:
    with pytest.raises(Killed):
        write(chunks_of(4), KilledWhileWaiting)
    time.sleep(0.3)
    assert write(chunks_of(8).tail(2), mode="online", max_budget_usd=1.0).facts["batch_most_usd"] == 0
    keys = [request_key(gemini_teacher, text) for text in chunks_of(4)["text"]]
    assert ledger.find(keys).keys() == set(keys)


def test_a_job_of_other_rows_that_still_runs_is_not_waited_for(
    gemini: GeminiServer, write: Write, ledger: Ledger, chunks_of: Chunks
) -> None:
    gemini.config = ServerConfig(batch_running_s=60.0)
    with pytest.raises(Killed):
        write(chunks_of(4), KilledWhileWaiting)
    assert write(chunks_of(8).tail(2), mode="online").scripts["mode"].tolist() == ["online"] * 2
    assert len(ledger.open_batches("gemini-3.1-flash-lite", "v2")) == 1


def test_a_job_that_another_run_is_making_is_left_to_it(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, ledger: Ledger, chunks_of: Chunks
) -> None:
    keys = [request_key(gemini_teacher, text) for text in chunks_of(4)["text"]]
    ledger.record_batch("newsjuice-1", "gemini-3.1-flash-lite", "v2", "folder", run_owner())
    ledger.claim(keys, batch_owner("newsjuice-1"), 60.0, "gemini-3.1-flash-lite", "v2")
    write(chunks_of(6).tail(2), mode="online")
    assert ledger.claims_of(batch_owner("newsjuice-1")) == sorted(keys)


@pytest.mark.parametrize("lost", ["job", "keys"])
def test_a_job_that_cannot_be_read_any_more_leaves_its_rows_to_on_line_requests(
    gemini: GeminiServer, write: Write, chunks_of: Chunks, tmp_path: Path, lost: str
) -> None:
    with pytest.raises(Killed):
        write(chunks_of(4), KilledWhileWaiting)
    if lost == "job":
        gemini.jobs.jobs.clear()
    else:
        next(tmp_path.rglob("keys.json")).unlink()
    assert write(chunks_of(4), mode="online").scripts["mode"].tolist() == ["online"] * 4


def test_a_job_that_does_not_end_when_it_is_cancelled_is_given_up(
    gemini: GeminiServer, write: Write, chunks_of: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeverEnding(GeminiBatches):
        async def state(self, job: str) -> BatchState:
            return BatchState("waiting")

    monkeypatch.setattr("newsjuice_pipelines.podcast.teaching.batches.CANCELLING_S", 0.2)
    gemini.config = ServerConfig(batch_running_s=60.0)
    run = write(chunks_of(4), NeverEnding, batch_wait_h=0.0)
    assert run.scripts["status"].tolist() == ["ok"] * 4


def test_a_service_that_cannot_say_how_a_job_stands_is_asked_again_later(
    gemini: GeminiServer, write: Write, chunks_of: Chunks
) -> None:
    looks = 0

    class Cloudy(GeminiBatches):
        async def state(self, job: str) -> BatchState:
            nonlocal looks
            looks += 1
            if looks < 9:
                raise TryAgain("503 UNAVAILABLE")
            return await super().state(job)

    assert set(write(chunks_of(4), Cloudy).scripts["mode"]) == {"batch"}


def test_a_dry_run_prices_the_batch_and_leaves_out_what_is_under_way(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, ledger: Ledger, chunks_of: Chunks
) -> None:
    with pytest.raises(Killed):
        write(chunks_of(4), KilledWhileWaiting)
    batch = BatchConfig(mode="batch", batch_folder="gs://bucket/x")
    plans = [
        plan_scripts(chunks_of(10), gemini_teacher, ledger, AskingConfig(max_budget_usd=0.01), mode) for mode in (batch, None)
    ]
    assert [(plan.calls, plan.in_batches) for plan in plans] == [(6, 4), (6, 4)]
    assert plans[0].most_usd == pytest.approx((plans[1].most_usd or 0) / 2)
    assert plans[0].within_budget is not None
    assert plans[1].within_budget is not None
    assert 0 < plans[1].within_budget <= plans[0].within_budget <= 6


def test_a_budget_needs_a_price_in_batch_mode_too(
    gemini: GeminiServer, ledger: Ledger, chunks_of: Chunks, tmp_path: Path
) -> None:
    teacher = GeminiTeacher(gemini.client, "gemini-of-tomorrow")
    config = BatchConfig(mode="batch", batch_folder=str(tmp_path))
    asking = replace(ASKING, max_budget_usd=5.0)
    with pytest.raises(ValueError, match="price of gemini-of-tomorrow is not known"):
        write_scripts(chunks_of(3), teacher, ledger, asking, config, lambda folder: GeminiBatches(teacher, folder))
    assert not gemini.jobs.jobs


def test_a_job_whose_name_was_lost_is_found_again_and_not_made_twice(
    gemini: GeminiServer, write: Write, chunks_of: Chunks, makers_are_dead: None
) -> None:
    class KilledBehindSubmit(GeminiBatches):
        async def submit(self, name: str, articles: Any) -> str:
            await super().submit(name, articles)
            raise Killed

    with pytest.raises(Killed):
        write(chunks_of(4), KilledBehindSubmit)
    assert set(write(chunks_of(4)).scripts["mode"]) == {"batch"}
    assert len(gemini.jobs.jobs) == 1


def test_a_job_that_was_never_made_frees_its_rows(
    gemini: GeminiServer, write: Write, chunks_of: Chunks, makers_are_dead: None
) -> None:
    class KilledBeforeSubmit(GeminiBatches):
        async def submit(self, name: str, articles: Any) -> str:
            raise Killed

    with pytest.raises(Killed):
        write(chunks_of(4), KilledBeforeSubmit)
    assert write(chunks_of(4), mode="online").scripts["mode"].tolist() == ["online"] * 4


def test_a_refused_job_frees_its_rows_and_says_why(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.prepare(error_answer(403, "PERMISSION_DENIED"))
    with pytest.raises(TeacherRefused, match="PERMISSION_DENIED"):
        write(chunks_of(4))
    assert write(chunks_of(4)).scripts["status"].tolist() == ["ok"] * 4


def test_trouble_that_may_pass_does_not_make_a_second_job(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.prepare(error_answer(503, "UNAVAILABLE"))
    assert set(write(chunks_of(4)).scripts["mode"]) == {"batch"}
    assert len(gemini.jobs.jobs) == 1


def test_a_budget_bounds_what_goes_into_a_job(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, chunks_of: Chunks
) -> None:
    chunks = chunks_of(40)
    most = max(gemini_teacher.most_usd(text) or 0.0 for text in chunks["text"])
    run = write(chunks, max_budget_usd=3.5 * most)
    assert 3 <= run.facts["batch_answers"] < 10
    assert run.scripts["cost_usd"].sum() <= 3.5 * most
    assert "not_asked" in set(run.scripts["status"])


def test_rows_of_one_job_are_not_claimed_by_another_run(
    gemini: GeminiServer, write: Write, gemini_teacher: GeminiTeacher, ledger: Ledger, chunks_of: Chunks
) -> None:
    class LooksWhileWaiting(GeminiBatches):
        async def state(self, job: str) -> Any:
            free = await asyncio.to_thread(ledger.claim, keys, "other", 60.0, "m", "v1")
            assert not free
            return await super().state(job)

    keys = [request_key(gemini_teacher, text) for text in chunks_of(4)["text"]]
    assert set(write(chunks_of(4), LooksWhileWaiting).scripts["mode"]) == {"batch"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"mode": "fast"}, "mode='fast'"), ({"mode": "batch"}, "batch_folder"), ({"batch_poll_s": 0}, "batch_poll_s=0")],
)
def test_settings_that_cannot_work_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchConfig(**wrong)


def test_an_answer_of_nonsense_on_line_is_tried_again(gemini: GeminiServer, write: Write, chunks_of: Chunks) -> None:
    gemini.prepare(Answer(body={"candidates": 5}), Answer(body=[3]))
    assert write(chunks_of(1), mode="online").scripts[["status", "attempts"]].values.tolist() == [["ok", 3]]
