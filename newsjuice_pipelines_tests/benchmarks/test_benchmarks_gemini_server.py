"""The local Gemini server: what tests and measurements rely on when they count its requests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks.gemini_answers import error_answer, lost_answer
from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer, ServerConfig, local_client, prompt_sha256
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.teacher import TryAgain


def ask_together(url: str, articles: list[str], timeout_s: float = 5.0) -> list[Any]:
    """Replies and errors, in the order of the articles."""

    async def whole() -> list[Any]:
        teacher = GeminiTeacher(lambda: local_client(url))
        answers = await asyncio.gather(*(teacher.ask(article, timeout_s) for article in articles), return_exceptions=True)
        await teacher.close()
        return answers

    return asyncio.run(whole())


def test_each_prompt_has_its_own_counts() -> None:
    with GeminiServer() as server:
        server.prepare(error_answer(503, "UNAVAILABLE"), lost_answer("unanswered"))
        for _ in range(3):
            ask_together(server.url, ["Rain fell."])
        ask_together(server.url, ["Snow fell."])
        stats = server.stats()
        rain, snow = (prompt_sha256(GeminiTeacher(server.client).prompt(article)) for article in ("Rain fell.", "Snow fell."))
    assert stats["prompts"] == {
        rain: {"requests": 3, "worked": 2, "answered": 1},
        snow: {"requests": 1, "worked": 1, "answered": 1},
    }
    assert (stats["requests"], stats["worked"], stats["answered"]) == (4, 3, 2)


def test_a_client_that_gives_up_is_no_longer_under_way() -> None:
    with GeminiServer() as server:
        server.prepare(lost_answer("silent"))
        ask_together(server.url, ["Rain fell."], timeout_s=0.5)
        ask_together(server.url, ["Rain fell."])
        assert server.stats()["in_flight"] == 0
        assert server.stats()["answered"] == 1


def test_more_at_once_than_allowed_are_told_to_wait() -> None:
    with GeminiServer(ServerConfig(latency_s=0.3, most_at_once=3, retry_delay_s=2.5)) as server:
        answers = ask_together(server.url, [f"Article {number}." for number in range(10)])
        assert server.stats()["statuses"] == {"200": 3, "429": 7}
    refused = [answer for answer in answers if isinstance(answer, TryAgain)]
    assert {(failure.delay_s, failure.rate_limited) for failure in refused} == {(2.5, True)}


def test_more_a_minute_than_allowed_are_told_when_the_next_is_free() -> None:
    with GeminiServer(ServerConfig(requests_per_minute=4)) as server:
        answers = ask_together(server.url, [f"Article {number}." for number in range(6)])
    delays = [answer.delay_s for answer in answers if isinstance(answer, TryAgain)]
    assert len(delays) == 2
    assert all(50 < delay <= 60 for delay in delays)


def test_it_runs_in_a_process_of_its_own_and_takes_answers_over_http() -> None:
    command = [sys.executable, "-m", "newsjuice_pipelines.benchmarks.gemini_server", "--port", "0", "--unavailable-every", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            prepared = json.dumps([asdict(error_answer(429, "RESOURCE_EXHAUSTED", retry_after="8"))]).encode()
            urllib.request.urlopen(urllib.request.Request(f"{url}/prepare", prepared), timeout=5).close()
            answers = [ask_together(url, ["Rain fell."])[0] for _ in range(3)]
            with urllib.request.urlopen(f"{url}/stats", timeout=5) as answer:
                stats = json.load(answer)
        finally:
            process.terminate()
    assert answers[0].delay_s == 8.0
    assert answers[1].status == "ok"
    assert str(answers[2]).startswith("503")
    assert stats["statuses"] == {"429": 1, "200": 1, "503": 1}


@pytest.mark.parametrize("article", ["The bridge reopened on Monday. It had been closed since March.", ""])
def test_the_usual_answer_is_a_script_of_the_article(article: str) -> None:
    with GeminiServer() as server:
        reply, again = (ask_together(server.url, [article])[0] for _ in range(2))
    assert article in reply.text
    assert (reply.status, reply.text) == ("ok", again.text)
