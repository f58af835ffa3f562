"""Batch jobs through the real google-genai library, against the local server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks.gemini_answers import Answer, blocked_prompt_answer, error_answer, lost_answer, script_answer
from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer, ServerConfig, local_client
from newsjuice_pipelines.podcast.teaching import gemini_batch
from newsjuice_pipelines.podcast.teaching.batches import BatchState
from newsjuice_pipelines.podcast.teaching.gemini import GeminiConfig, GeminiTeacher
from newsjuice_pipelines.podcast.teaching.gemini_batch import GeminiBatches
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused, TeacherReply, TryAgain

ARTICLES = {f"key {number}": f"Storm number {number} crossed the coast on Tuesday." for number in range(20)}
QUICK = ServerConfig(batch_running_s=0.05)


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    with GeminiServer(QUICK) as running:
        yield running


def run(server: GeminiServer, folder: Path, work: Callable[[GeminiBatches], Awaitable[Any]], **config: Any) -> Any:
    """What `work` gives, with a teacher on the server that is closed afterwards."""

    async def whole() -> Any:
        batches = GeminiBatches(GeminiTeacher(server.client, config=GeminiConfig(**config)), str(folder), timeout_s=5.0)
        try:
            return await work(batches)
        finally:
            await batches.teacher.close()

    return asyncio.run(whole())


async def ended(batches: GeminiBatches, job: str) -> BatchState:
    while (state := await batches.state(job)).state == "waiting":
        await asyncio.sleep(0.02)
    return state


def replies_of(server: GeminiServer, folder: Path, articles: dict[str, str] = ARTICLES) -> dict[str, TeacherReply]:
    async def work(batches: GeminiBatches) -> dict[str, TeacherReply]:
        job = await batches.submit("job-1", articles)
        assert (await ended(batches, job)).state == "done"
        return await batches.replies("job-1", job)

    return run(server, folder, work)  # type: ignore[no-any-return]


def test_shuffled_output_finds_its_articles(server: GeminiServer, tmp_path: Path) -> None:
    replies = replies_of(server, tmp_path)
    assert replies.keys() == ARTICLES.keys()
    assert all(article in replies[key].text for key, article in ARTICLES.items())
    output = next(tmp_path.rglob("predictions.jsonl")).read_text(encoding="utf-8").splitlines()
    assert not all(article in line for article, line in zip(ARTICLES.values(), output, strict=True)), "output was not shuffled"


def test_a_reply_of_a_batch_costs_half_and_has_no_latency(server: GeminiServer, tmp_path: Path) -> None:
    server.always(script_answer())
    batch = replies_of(server, tmp_path)["key 0"]
    online = run(server, tmp_path, lambda batches: batches.teacher.ask(ARTICLES["key 0"], 5.0))
    assert batch.cost_usd == pytest.approx(online.cost_usd / 2)
    assert (batch.mode, batch.latency_s, batch.attempts) == ("batch", None, 1)
    assert (batch.text, batch.input_tokens, batch.thought_tokens) == (online.text, 400, 10)


def test_a_line_of_the_input_is_the_request_that_is_sent_on_line(server: GeminiServer, tmp_path: Path) -> None:
    async def both(batches: GeminiBatches) -> dict[str, Any]:
        await batches.teacher.ask(ARTICLES["key 0"], 5.0)
        request: dict[str, Any] = json.loads(batches.request_line(ARTICLES["key 0"]))["request"]
        return request

    line = run(server, tmp_path, both, max_output_tokens=77)
    sent = server.received[0].body  # the library spells some fields in the second way that the service takes
    assert line == json.loads(json.dumps(sent).replace("thinking_level", "thinkingLevel"))


def test_rows_that_are_missing_or_failed_are_absent(tmp_path: Path) -> None:
    config = ServerConfig(batch_running_s=0.05, batch_missing_every=7, batch_error_every=5)
    with GeminiServer(config) as server:
        replies = replies_of(server, tmp_path)
    lost = {f"key {number - 1}" for number in range(1, 21) if number % 7 == 0 or number % 5 == 0}
    assert replies.keys() == ARTICLES.keys() - lost
    assert all(reply.status == "ok" for reply in replies.values())


def test_blocked_and_cut_rows_keep_their_reason(server: GeminiServer, tmp_path: Path) -> None:
    answers = {1: blocked_prompt_answer("BLOCKLIST"), 2: script_answer("half", "SAFETY"), 3: script_answer("half", "MAX_TOKENS")}
    server.rule = lambda number, prompt: answers.get(number)
    replies = replies_of(server, tmp_path)
    assert (replies["key 0"].status, replies["key 0"].finish_reason) == ("blocked_prompt", "PROMPT_BLOCKLIST")
    assert (replies["key 1"].status, replies["key 1"].finish_reason) == ("blocked_output", "SAFETY")
    assert (replies["key 2"].status, replies["key 2"].text) == ("truncated", "half")
    assert replies["key 3"].status == "ok"


def test_articles_with_the_same_text_get_a_reply_each(server: GeminiServer, tmp_path: Path) -> None:
    twice = {"a": "The same storm.", "b": " The same storm. ", "c": "Another storm."}
    assert replies_of(server, tmp_path, twice).keys() == twice.keys()
    assert len(server.received) == 3


def test_rows_that_nobody_asked_for_and_broken_lines_are_left_out(server: GeminiServer, tmp_path: Path) -> None:
    async def work(batches: GeminiBatches) -> dict[str, TeacherReply]:
        job = await batches.submit("job-1", ARTICLES)
        await ended(batches, job)
        output = next(tmp_path.rglob("predictions.jsonl"))
        lines = output.read_text(encoding="utf-8").splitlines()
        foreign = json.loads(lines[0])
        foreign["request"]["contents"][0]["parts"][0]["text"] = "Somebody else's question."
        junk = [json.dumps(foreign), '{"status": "", "request": {"contents": 5}, "response": {}}', "[]", '{"cut of']
        output.write_text("\n".join([*lines[:2], *junk]), encoding="utf-8")
        return await batches.replies("job-1", job)

    assert len(run(server, tmp_path, work)) == 2


@pytest.mark.parametrize("response", [{"candidates": 5}, {"candidates": ["x"]}, {"usageMetadata": {"promptTokenCount": 4}}])
def test_a_response_that_is_none_is_left_out(server: GeminiServer, tmp_path: Path, response: dict[str, Any]) -> None:
    server.rule = lambda number, prompt: Answer(body=response) if number == 1 else None
    assert replies_of(server, tmp_path).keys() == ARTICLES.keys() - {"key 0"}


def test_a_failed_job_says_why_and_has_no_replies(server: GeminiServer, tmp_path: Path) -> None:
    server.jobs.fail_next = "the input is not readable"

    async def work(batches: GeminiBatches) -> tuple[BatchState, dict[str, TeacherReply]]:
        job = await batches.submit("job-1", ARTICLES)
        return await ended(batches, job), await batches.replies("job-1", job)

    state, replies = run(server, tmp_path, work)
    assert (state, replies) == (BatchState("failed", "the input is not readable"), {})


def test_a_cancelled_job_gives_what_was_finished(tmp_path: Path) -> None:
    async def work(batches: GeminiBatches) -> tuple[BatchState, dict[str, TeacherReply]]:
        job = await batches.submit("job-1", ARTICLES)
        assert await batches.state(job) == BatchState("waiting")
        await batches.cancel(job)
        return await batches.state(job), await batches.replies("job-1", job)

    with GeminiServer(ServerConfig(batch_running_s=60.0)) as server:
        state, replies = run(server, tmp_path, work)
    assert state.state == "cancelled"
    assert len(replies) == 10


@pytest.mark.parametrize(("name", "state"), [("JOB_STATE_PARTIALLY_SUCCEEDED", "done"), ("JOB_STATE_EXPIRED", "done")])
def test_a_job_that_ended_with_missing_rows_is_done(server: GeminiServer, tmp_path: Path, name: str, state: str) -> None:
    async def work(batches: GeminiBatches) -> BatchState:
        job = await batches.submit("job-1", ARTICLES)
        await ended(batches, job)
        server.jobs.jobs[job.rsplit("/", 1)[1]].resource["state"] = name
        return await batches.state(job)

    assert run(server, tmp_path, work).state == state


def test_a_job_is_found_by_its_name_after_a_crash(server: GeminiServer, tmp_path: Path) -> None:
    async def work(batches: GeminiBatches) -> tuple[str, str | None, str | None]:
        await batches.submit("job-1", ARTICLES)
        job = await batches.submit("job-2", ARTICLES)
        return job, await batches.find("job-2"), await batches.find("job-3")

    job, found, missing = run(server, tmp_path, work)
    assert found == job
    assert missing is None


def test_a_rate_limit_at_the_creation_is_tried_again(server: GeminiServer, tmp_path: Path) -> None:
    server.prepare(error_answer(429, "RESOURCE_EXHAUSTED", retry_delay="9s"))
    with pytest.raises(TryAgain) as caught:
        run(server, tmp_path, lambda batches: batches.submit("job-1", ARTICLES))
    assert (caught.value.delay_s, caught.value.rate_limited) == (9.0, True)
    assert not server.jobs.jobs


def test_a_missing_right_at_the_creation_is_refused(server: GeminiServer, tmp_path: Path) -> None:
    server.prepare(error_answer(403, "PERMISSION_DENIED"))
    with pytest.raises(TeacherRefused, match="right to call Vertex AI"):
        run(server, tmp_path, lambda batches: batches.submit("job-1", ARTICLES))


def test_a_creation_without_an_answer_may_have_made_the_job(server: GeminiServer, tmp_path: Path) -> None:
    server.prepare(lost_answer("unanswered"))

    async def work(batches: GeminiBatches) -> str | None:
        with pytest.raises(TryAgain) as caught:
            await batches.submit("job-1", ARTICLES)
        assert caught.value.may_be_billed
        return await batches.find("job-1")

    assert run(server, tmp_path, work) == "projects/P/locations/L/batchPredictionJobs/1000"
    assert len(server.jobs.jobs) == 1


def test_a_job_that_the_service_does_not_know_any_more_has_failed(server: GeminiServer, tmp_path: Path) -> None:
    async def work(batches: GeminiBatches) -> tuple[BatchState, dict[str, TeacherReply]]:
        job = "projects/P/locations/L/batchPredictionJobs/7"
        return await batches.state(job), await batches.replies("job-1", job)

    state, replies = run(server, tmp_path, work)
    assert (state.state, replies) == ("failed", {})
    assert "does not know this job" in (state.error or "")


def test_a_local_folder_is_refused_on_the_real_service_before_anything_is_written(tmp_path: Path) -> None:
    teacher = GeminiTeacher(lambda: local_client("https://aiplatform.googleapis.com"))
    with pytest.raises(TeacherRefused, match="gs://bucket/prefix"):
        asyncio.run(GeminiBatches(teacher, str(tmp_path)).submit("job-1", ARTICLES))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_and_named(server: GeminiServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TeacherRefused, match=r"file.*may be written"):
        run(server, tmp_path / "file", lambda batches: batches.submit("job-1", ARTICLES))
    assert not server.jobs.jobs


def test_too_many_requests_are_refused_with_what_to_do(
    server: GeminiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemini_batch, "MAX_REQUESTS", 19)
    with pytest.raises(ValueError, match=r"20 requests.*at most 19.*Split"):
        run(server, tmp_path, lambda batches: batches.submit("job-1", ARTICLES))


def test_an_input_that_is_too_large_is_refused_and_removed(
    server: GeminiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemini_batch, "MAX_INPUT_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"larger than the 10,000 bytes.*split"):
        run(server, tmp_path, lambda batches: batches.submit("job-1", ARTICLES))
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not server.jobs.jobs


@pytest.mark.parametrize("name", ["", "../up", 'a"b', "x" * 129])
def test_a_name_that_is_no_plain_one_is_refused(server: GeminiServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="job name"):
        run(server, tmp_path, lambda batches: batches.submit(name, ARTICLES))


def test_no_articles_make_no_job(server: GeminiServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        run(server, tmp_path, lambda batches: batches.submit("job-1", {}))
