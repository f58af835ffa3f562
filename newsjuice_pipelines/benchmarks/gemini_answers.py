"""What the local Gemini server answers: prepared answers, errors as the service writes them, and the usual script."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from newsjuice_pipelines.podcast.text.sentences import ends_complete, split_sentences

_ARTICLE = re.compile(r"<article>\n(.*)\n</article>", re.DOTALL)
_SCORE = -0.5  # Vertex AI writes it in batches, and the types of google-genai do not know it
_MOST_WORDS = 110
_MOST_CHARACTERS = 4000
_STANDARD_USAGE = {"promptTokenCount": 400, "candidatesTokenCount": 150, "thoughtsTokenCount": 10, "totalTokenCount": 560}


@dataclass(frozen=True)
class Answer:
    """What one request is answered with. Fields are JSON values, so that `POST /prepare` takes a list of them."""

    status: int = 200
    """HTTP status."""
    body: Any = None
    """JSON value, or a string that is sent as it is. None: the usual script."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers beside `Content-Type`."""
    latency_s: float | None = None
    """Seconds until the answer; None for the server's own."""
    lost: Literal["no", "unanswered", "halfway", "silent"] = "no"
    """Where the connection is lost: without an answer, in the middle of it, or never, while no answer comes."""


def script_answer(
    text: str | None = "A script.",
    finish_reason: str = "STOP",
    usage: dict[str, int] | None = None,
    latency_s: float | None = None,
) -> Answer:
    """A candidate with this text and finish reason; None for one without any text."""
    content: dict[str, Any] = {"role": "model"} | ({} if text is None else {"parts": [{"text": text}]})
    candidate = {"content": content, "finishReason": finish_reason, "score": _SCORE}
    return Answer(body={"candidates": [candidate], "usageMetadata": usage or _STANDARD_USAGE}, latency_s=latency_s)


def blocked_prompt_answer(reason: str = "PROHIBITED_CONTENT") -> Answer:
    """The prompt was blocked: no candidate."""
    return Answer(
        body={"promptFeedback": {"blockReason": reason}, "usageMetadata": {"promptTokenCount": 400, "totalTokenCount": 400}}
    )


def error_answer(code: int, status: str, *, retry_delay: str | None = None, retry_after: str | None = None) -> Answer:
    """An error as the service writes it, with a delay in `RetryInfo` (`"7s"`) or in the header `Retry-After`, or without."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_delay}] if retry_delay else []
    body = {"error": {"code": code, "status": status, "message": f"message of {status}", "details": details}}
    return Answer(code, body, headers={"Retry-After": retry_after} if retry_after else {})


def malformed_answer(text: str = "<html>please wait</html>", status: int = 200) -> Answer:
    """A proxy's page in place of an answer."""
    return Answer(status, text)


def lost_answer(where: Literal["unanswered", "halfway", "silent"]) -> Answer:
    """No whole answer: the connection is closed before it or in its middle, or nothing ever comes."""
    return Answer(lost=where)


def usual_answer(prompt: str) -> dict[str, Any]:
    """A plausible script of the article in the prompt, always the same, with token counts at four characters a token."""
    found = _ARTICLE.search(prompt)
    text = _script_of(found.group(1) if found else "")
    usage = {"promptTokenCount": len(prompt) // 4, "candidatesTokenCount": len(text) // 4}
    usage["totalTokenCount"] = sum(usage.values())
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "score": _SCORE}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "local"}


def _script_of(article: str) -> str:
    """Whole sentences from the article's beginning, up to `_MOST_WORDS`, in a spoken frame."""
    told: list[str] = []
    words = 0
    for sentence in split_sentences(article[:_MOST_CHARACTERS]):
        spoken = " ".join(sentence.split())
        words += len(spoken.split())
        if words > _MOST_WORDS:
            break
        if ends_complete(spoken):
            told.append(spoken)
    return " ".join(["Welcome to NewsJuice. Here is a story worth a minute of your time.", *told, "That is the story for now."])


def prompt_of(body: Any) -> str:
    """The text of a request's contents."""
    contents = body.get("contents") or []
    return "".join(part.get("text", "") for content in contents for part in content.get("parts", []))
