"""The paid teacher: Gemini on Vertex AI through google-genai. The client is built elsewhere and passed in.

Retries are our own, since the library's ignore the delays that the service asks for.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.prompts import render_prompt
from newsjuice_pipelines.podcast.teacher import Status, TeacherRefused, TeacherReply

if TYPE_CHECKING:
    from google.genai import Client
    from google.genai.types import GenerateContentConfig, GenerateContentResponse

logger = logging.getLogger("newsjuice.podcast")


@dataclass(frozen=True)
class GeminiModel:
    """What is known of a model. A price of None is not known here, and the cost is then not measured."""

    name: str
    retired_on: str | None
    thinking: Mapping[str, Any]
    """How thinking is switched off or to its minimum: `thinking_budget` (2.5) or `thinking_level` (3.x), never both."""
    input_price: float | None = None
    """US dollars per million prompt tokens."""
    output_price: float | None = None
    """US dollars per million tokens of answer and thoughts."""


# As of 2026-11.
GEMINI_MODELS: Mapping[str, GeminiModel] = {
    model.name: model
    for model in (
        GeminiModel("gemini-3.5-flash-lite", None, {"thinking_level": "MINIMAL"}),
        GeminiModel("gemini-3.1-flash-lite", None, {"thinking_level": "MINIMAL"}),
        GeminiModel("gemini-2.5-flash", "2026-10-16", {"thinking_budget": 0}),
    )
}

# The service stopped an answer for its content; what was generated until then is not a script.
BLOCKING_REASONS = frozenset({"SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "MODEL_ARMOR"})

_ADVICE = {
    400: "the request itself is wrong: check the model's settings",
    401: "check the credentials (`gcloud auth application-default login`, or the service account)",
    403: "the account lacks the right to call Vertex AI in this project, or the API is off",
    404: "this model is not served in this location: check NEWSJUICE_GEMINI_MODEL and NEWSJUICE_GCP_LOCATION",
}


@dataclass(frozen=True)
class GeminiConfig:
    """Limits, retries and prices of the Gemini teacher."""

    max_output_tokens: int = 1024
    """Most tokens of an answer, thoughts included."""
    timeout_s: float = 60.0
    """Longest time for one request."""
    attempts: int = 5
    """Most requests for one script; only rate limits, server and transport errors are tried again."""
    first_delay_s: float = 1.0
    """Upper bound of the random wait before the second request; it doubles with each one."""
    max_delay_s: float = 60.0
    """Longest wait before a request. Where the service asks for more, the script is given up for this run."""
    input_price: float | None = None
    """US dollars per million prompt tokens, over the built-in table."""
    output_price: float | None = None
    """US dollars per million output tokens, thoughts included, over the built-in table."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_output_tokens < 1 or self.timeout_s <= 0:
            raise ValueError(
                f"attempts={self.attempts}, max_output_tokens={self.max_output_tokens}, timeout_s={self.timeout_s}: "
                "all must be above 0."
            )


@dataclass
class GeminiTeacher:
    """Asks a Gemini model for scripts, thinking off or at its minimum. Safe to call from several threads."""

    client: Client
    model: str = "gemini-3.5-flash-lite"
    prompt_version: str = "v1"
    config: GeminiConfig = field(default_factory=GeminiConfig)
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random, repr=False)
    _refused: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        known = GEMINI_MODELS.get(self.model)
        if known is not None and known.retired_on is not None:
            serving = ", ".join(name for name, model in GEMINI_MODELS.items() if model.retired_on is None)
            raise TeacherRefused(
                f"{self.model} was retired on {known.retired_on}: set NEWSJUICE_GEMINI_MODEL to one of {serving}."
            )
        render_prompt(self.prompt_version, "")  # an unknown version fails here, before anything is paid

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides an answer beside model and prompt."""
        return {"max_output_tokens": self.config.max_output_tokens, "thinking": dict(self._thinking)}

    def write(self, article: str) -> TeacherReply:
        """One script, or the reason why there is none; `latency_s` is that of the request that was answered.

        Raises:
            TeacherRefused: the service refused for good (400, 401, 403, 404 and the like); no request follows.
        """
        prompt = render_prompt(self.prompt_version, article)
        for attempt in range(1, self.config.attempts + 1):
            if self._refused.is_set():
                raise TeacherRefused(f"{self.model}: an earlier request was refused for good.")
            start = time.perf_counter()
            try:
                response = self.client.models.generate_content(model=self.model, contents=prompt, config=self._request_config())
            except Exception as error:
                delay_s = self._delay_before_retry(error, attempt)
                if delay_s is None:
                    return TeacherReply("", "failed", "ERROR", attempts=attempt, error=_describe(error))
                logger.warning("%s: %s; asking again in %.1f s", self.model, _describe(error), delay_s)
                self.sleep(delay_s)
            else:
                return self._read(response, time.perf_counter() - start, attempt)
        raise AssertionError("the last attempt returns")

    @property
    def _thinking(self) -> Mapping[str, Any]:
        known = GEMINI_MODELS.get(self.model)
        return known.thinking if known is not None else {}

    def _request_config(self) -> GenerateContentConfig:
        from google.genai import types

        return types.GenerateContentConfig(
            max_output_tokens=self.config.max_output_tokens,
            thinking_config=types.ThinkingConfig(**self._thinking) if self._thinking else None,
            http_options=types.HttpOptions(
                timeout=int(self.config.timeout_s * 1000), retry_options=types.HttpRetryOptions(attempts=1)
            ),
        )

    def _delay_before_retry(self, error: Exception, attempt: int) -> float | None:
        """Seconds to wait before the next request: full jitter, after the delay the service asked for; None to give up.

        Permanent errors are raised as `TeacherRefused`, and errors that are neither are raised as they are.
        """
        from google.auth.exceptions import GoogleAuthError
        from google.auth.exceptions import TransportError as AuthTransportError
        from google.genai.errors import APIError, UnknownApiResponseError

        if isinstance(error, APIError):
            if not (error.code in (408, 429) or error.code >= 500):
                raise self._refusal(
                    _describe(error), _ADVICE.get(error.code, "the service does not accept such requests")
                ) from error
        elif isinstance(error, GoogleAuthError) and not isinstance(error, AuthTransportError):
            raise self._refusal(_describe(error), _ADVICE[401]) from error
        elif not isinstance(
            error, (AuthTransportError, OSError, *_transport_errors(), json.JSONDecodeError, UnknownApiResponseError)
        ):
            raise error  # the last two: a proxy's page in place of an answer
        if attempt == self.config.attempts:
            return None
        bound_s = min(self.config.max_delay_s, self.config.first_delay_s * 2 ** (attempt - 1))
        asked_s = _asked_delay_s(error)
        if asked_s > self.config.max_delay_s:
            return None
        return asked_s + self.rng.uniform(0, bound_s)

    def _refusal(self, what: str, advice: str) -> TeacherRefused:
        self._refused.set()
        return TeacherRefused(f"{self.model} refused the request: {what}. What to do: {advice}.")

    def _read(self, response: GenerateContentResponse, latency_s: float, attempts: int) -> TeacherReply:
        usage = response.usage_metadata
        input_tokens = (usage.prompt_token_count or 0) if usage else None
        output_tokens = (usage.candidates_token_count or 0) if usage else None
        thought_tokens = (usage.thoughts_token_count or 0) if usage else None
        text = ""
        status: Status
        if not response.candidates:
            blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
            reason = f"PROMPT_{blocked.name}" if blocked else "NO_CANDIDATE"
            status = "blocked" if blocked else "empty"
        else:
            candidate = response.candidates[0]
            reason = candidate.finish_reason.name if candidate.finish_reason else "NO_REASON"
            parts = (candidate.content.parts if candidate.content else None) or []
            text = _clean("".join(part.text for part in parts if part.text and not part.thought))
            status = "blocked" if reason in BLOCKING_REASONS else _status(text, reason)
        return TeacherReply(
            text="" if status == "blocked" else text,
            status=status,
            finish_reason=reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            thought_tokens=thought_tokens,
            latency_s=latency_s,
            attempts=attempts,
            cost_usd=self._cost_usd(input_tokens, output_tokens, thought_tokens),
        )

    def _cost_usd(self, input_tokens: int | None, output_tokens: int | None, thought_tokens: int | None) -> float | None:
        known = GEMINI_MODELS.get(self.model)
        input_price, output_price = self.config.input_price, self.config.output_price
        if known is not None:
            input_price = known.input_price if input_price is None else input_price
            output_price = known.output_price if output_price is None else output_price
        if input_price is None or output_price is None or input_tokens is None:
            return None
        return (input_tokens * input_price + ((output_tokens or 0) + (thought_tokens or 0)) * output_price) / 1e6


def _clean(text: str) -> str:
    """Without NUL and lone surrogates, which neither PostgreSQL nor UTF-8 files can hold."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8").strip()


def _status(text: str, reason: str) -> Status:
    """An answer that stopped for any reason but its end was cut off."""
    if not text:
        return "empty"
    return "ok" if reason == "STOP" else "truncated"


def _transport_errors() -> tuple[type[Exception], ...]:
    """The transport errors of the HTTP library in use, which google-genai lets through; it is loaded by now."""
    modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(module.TransportError for module in modules)


def _asked_delay_s(error: Exception) -> float:
    """The delay that the service asked for, in `RetryInfo.retryDelay` or `Retry-After`; 0 when it named none."""
    details = getattr(error, "details", None)
    body = details.get("error", details) if isinstance(details, dict) else {}
    entries = body.get("details") if isinstance(body, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and str(entry.get("@type", "")).endswith("google.rpc.RetryInfo"):
            found = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(entry.get("retryDelay", "")))
            if found:
                return float(found.group(1))
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    after = str(headers.get("Retry-After", headers.get("retry-after", "")))
    return float(after) if re.fullmatch(r"\d+", after) else 0.0


def _describe(error: Exception) -> str:
    code, status, message = (getattr(error, name, None) for name in ("code", "status", "message"))
    if code is not None:
        return f"{code} {status or ''} {(message or '')[:300]}".strip()
    return f"{type(error).__name__}: {str(error)[:300]}".rstrip(": ")
