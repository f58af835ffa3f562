from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from newsjuice_pipelines.podcast.gemini import GEMINI_MODELS, GeminiConfig, GeminiTeacher
from newsjuice_pipelines.podcast.prompts import UnknownPromptVersion
from newsjuice_pipelines.podcast.teacher import TeacherRefused, TeacherReply

USAGE = {"promptTokenCount": 400, "candidatesTokenCount": 150, "thoughtsTokenCount": 10, "totalTokenCount": 560}


def answer(text: str | None = "A script.", reason: str = "STOP") -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": text}]} if text is not None else {"role": "model"}
    return {"candidates": [{"content": content, "finishReason": reason}], "usageMetadata": USAGE}


def error(code: int, status: str, delay: str | None = None) -> tuple[int, dict[str, Any]]:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}] if delay else []
    return code, {"error": {"code": code, "status": status, "message": f"message of {status}", "details": details}}


@dataclass
class LocalService:
    """Speaks the service's protocol: plays the prepared answers in order, the last one for ever."""

    answers: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def service() -> Iterator[LocalService]:
    local = LocalService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            local.requests.append((self.path, body))
            prepared = local.answers.pop(0) if len(local.answers) > 1 else local.answers[0]
            if prepared == "hang up":
                self.close_connection = True
                self.connection.close()
                return
            code, content = prepared if isinstance(prepared, tuple) else (200, prepared)
            raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **local.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    local.url = f"http://127.0.0.1:{server.server_port}"
    yield local
    server.shutdown()
    server.server_close()


@dataclass
class Setup:
    """A teacher on the local service, and the waits it made instead of sleeping."""

    service: LocalService
    waits: list[float] = field(default_factory=list)

    def teacher(self, model: str = "gemini-3.5-flash-lite", **config: Any) -> GeminiTeacher:
        from google import genai
        from google.genai.types import HttpOptions
        from google.oauth2.credentials import Credentials

        client = genai.Client(
            vertexai=True,
            project="P",
            location="L",
            credentials=Credentials("token"),
            http_options=HttpOptions(base_url=self.service.url),
        )
        return GeminiTeacher(client, model, config=GeminiConfig(**config), sleep=self.waits.append, rng=random.Random(0))

    def write(self, *answers: Any, **config: Any) -> TeacherReply:
        self.service.answers = list(answers)
        return self.teacher(**config).write("Rain fell on Tuesday.")


@pytest.fixture
def setup(service: LocalService) -> Setup:
    return Setup(service)


def test_an_answer_becomes_a_reply_with_its_counts(setup: Setup) -> None:
    reply = setup.write(answer("  A script.\n"))
    assert (reply.text, reply.status, reply.finish_reason, reply.attempts) == ("A script.", "ok", "STOP", 1)
    assert (reply.input_tokens, reply.output_tokens, reply.thought_tokens) == (400, 150, 10)
    assert reply.latency_s is not None
    assert reply.latency_s > 0


def test_the_request_fences_the_article_and_keeps_thinking_minimal(setup: Setup) -> None:
    setup.write(answer())
    path, body = setup.service.requests[0]
    assert path == "/v1beta1/projects/P/locations/L/publishers/google/models/gemini-3.5-flash-lite:generateContent"
    assert "<article>\nRain fell on Tuesday.\n</article>" in body["contents"][0]["parts"][0]["text"]
    assert body["generationConfig"]["maxOutputTokens"] == 1024
    assert list(body["generationConfig"]["thinkingConfig"].values()) == ["MINIMAL"]


def test_the_delay_the_service_asks_for_is_waited(setup: Setup) -> None:
    reply = setup.write(error(429, "RESOURCE_EXHAUSTED", "7s"), answer())
    assert (reply.status, reply.attempts) == ("ok", 2)
    assert len(setup.waits) == 1
    assert 7 <= setup.waits[0] <= 8


def test_a_retry_after_header_is_waited(setup: Setup) -> None:
    setup.service.headers = {"Retry-After": "3"}
    assert setup.write(error(503, "UNAVAILABLE"), answer()).status == "ok"
    assert 3 <= setup.waits[0] <= 4


def test_a_delay_beyond_the_limit_gives_the_script_up(setup: Setup) -> None:
    reply = setup.write(error(429, "RESOURCE_EXHAUSTED", "3600s"))
    assert (reply.status, reply.attempts, setup.waits) == ("failed", 1, [])


def test_waits_grow_by_full_jitter_up_to_the_limit(setup: Setup) -> None:
    setup.write(error(500, "INTERNAL"), attempts=8, max_delay_s=10.0)
    assert len(setup.waits) == 7
    assert all(0 <= wait <= min(10, 2**number) for number, wait in enumerate(setup.waits))
    assert len(set(setup.waits)) == 7


def test_attempts_are_limited_and_the_error_is_no_text(setup: Setup) -> None:
    reply = setup.write(error(503, "UNAVAILABLE"), attempts=3)
    assert (reply.status, reply.text, reply.attempts, len(setup.service.requests)) == ("failed", "", 3, 3)
    assert reply.error == "503 UNAVAILABLE message of UNAVAILABLE"


def test_a_lost_connection_is_tried_again(setup: Setup) -> None:
    reply = setup.write("hang up", answer())
    assert (reply.status, reply.attempts) == ("ok", 2)


def test_a_service_that_cannot_be_reached_is_a_failed_reply(setup: Setup) -> None:
    setup.service.url = "http://127.0.0.1:9"
    reply = setup.teacher(attempts=2).write("text")
    assert (reply.status, reply.attempts) == ("failed", 2)
    assert reply.error


def test_a_page_of_a_proxy_instead_of_an_answer_is_tried_again(setup: Setup) -> None:
    reply = setup.write((200, "<html>please wait</html>"), (502, "<html>bad gateway</html>"), answer())
    assert (reply.status, reply.attempts) == ("ok", 3)


def test_characters_that_no_file_can_hold_are_replaced(setup: Setup) -> None:
    assert setup.write(answer("A \x00scr\ud800ipt.")).text == "A scr?ipt."


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        (400, "INVALID_ARGUMENT", "settings"),
        (401, "UNAUTHENTICATED", "credentials"),
        (403, "PERMISSION_DENIED", "right to call Vertex AI"),
        (404, "NOT_FOUND", "NEWSJUICE_GEMINI_MODEL"),
    ],
)
def test_a_permanent_error_is_raised_after_exactly_one_call(setup: Setup, code: int, status: str, advice: str) -> None:
    with pytest.raises(TeacherRefused, match=f"{status}.*{advice}"):
        setup.write(error(code, status))
    assert len(setup.service.requests) == 1


def test_after_a_permanent_error_nothing_more_is_sent(setup: Setup) -> None:
    setup.service.answers = [error(403, "PERMISSION_DENIED")]
    teacher = setup.teacher()
    for _ in range(3):
        with pytest.raises(TeacherRefused):
            teacher.write("text")
    assert len(setup.service.requests) == 1


def test_a_blocked_prompt_is_told_apart(setup: Setup) -> None:
    reply = setup.write({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 400}})
    assert (reply.status, reply.finish_reason, reply.text) == ("blocked", "PROMPT_PROHIBITED_CONTENT", "")


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "MODEL_ARMOR"])
def test_a_blocked_answer_loses_the_text_it_had(setup: Setup, reason: str) -> None:
    reply = setup.write(answer("half a scr", reason))
    assert (reply.status, reply.finish_reason, reply.text) == ("blocked", reason, "")


def test_an_answer_at_the_token_limit_is_truncated(setup: Setup) -> None:
    reply = setup.write(answer("A scr", "MAX_TOKENS"))
    assert (reply.status, reply.finish_reason) == ("truncated", "MAX_TOKENS")


def test_a_limit_used_up_by_thoughts_is_empty_and_still_billed(setup: Setup) -> None:
    reply = setup.write(answer(None, "MAX_TOKENS"), input_price=1.0, output_price=10.0)
    assert (reply.status, reply.finish_reason) == ("empty", "MAX_TOKENS")
    assert reply.cost_usd == pytest.approx((400 * 1 + 160 * 10) / 1e6)


def test_an_answer_without_candidates_is_empty(setup: Setup) -> None:
    reply = setup.write({"usageMetadata": USAGE})
    assert (reply.status, reply.finish_reason) == ("empty", "NO_CANDIDATE")


def test_thoughts_are_not_part_of_the_script(setup: Setup) -> None:
    spoken = answer()
    spoken["candidates"][0]["content"]["parts"].insert(0, {"text": "Let me think.", "thought": True})
    assert setup.write(spoken).text == "A script."


def test_an_unknown_price_is_not_a_cost_of_zero(setup: Setup) -> None:
    assert setup.write(answer()).cost_usd is None


def test_prices_and_retries_do_not_change_the_ledger_key(setup: Setup) -> None:
    assert setup.teacher(input_price=1.0, output_price=2.0, attempts=2).settings == setup.teacher().settings
    assert setup.teacher(max_output_tokens=5).settings != setup.teacher().settings


def test_a_retired_model_is_refused_before_anything_is_sent(setup: Setup) -> None:
    with pytest.raises(TeacherRefused, match=r"retired on 2026-10-16.*gemini-3.5-flash-lite"):
        setup.teacher("gemini-2.5-flash")


def test_an_unknown_model_is_asked_without_a_thinking_control(setup: Setup) -> None:
    setup.service.answers = [answer()]
    assert setup.teacher("gemini-x").write("text").status == "ok"
    assert "thinkingConfig" not in setup.service.requests[0][1]["generationConfig"]


def test_an_unknown_prompt_version_is_refused_before_anything_is_sent(setup: Setup) -> None:
    with pytest.raises(UnknownPromptVersion):
        GeminiTeacher(setup.teacher().client, prompt_version="v0")


def test_no_model_is_sent_a_budget_and_a_level_together() -> None:
    assert all(len(model.thinking) == 1 for model in GEMINI_MODELS.values())


def test_a_defect_of_our_own_is_not_taken_for_a_failed_request(setup: Setup) -> None:
    teacher = setup.teacher()
    teacher.client = object()  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        teacher.write("text")
