"""The paid teacher: Gemini on Vertex AI through google-genai, one request at a time.

The model's facts are in `gemini_models.py`, the meaning of errors in `gemini_errors.py`, batch jobs in `gemini_batch.py`.
Retries, pace and budget are the caller's.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.request import getproxies

from newsjuice_pipelines.podcast.teaching.gemini_errors import translated
from newsjuice_pipelines.podcast.teaching.gemini_models import (
    GEMINI_MODELS,
    GeminiModel,
    Prices,
    check_price,
    cost_usd,
    gemini_model,
)
from newsjuice_pipelines.podcast.teaching.prompts import render_prompt
from newsjuice_pipelines.podcast.teaching.teacher import Status, TeacherRefused, TeacherReply, TryAgain

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from google.genai import Client
    from google.genai.types import GenerateContentConfigDict, GenerateContentResponse

# The service stopped an answer for its content; what was generated until then is not a script.
BLOCKING_REASONS = frozenset({"SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "MODEL_ARMOR"})

_MESSAGE_TOKENS = 16  # role and turn marks around the prompt
_WORD = re.compile(r" ?\b([A-Za-z]?[a-z]{1,24})\b")


@dataclass(frozen=True)
class GeminiConfig:
    """What the Gemini model is asked for, and prices over those of the built-in table."""

    max_output_tokens: int = 1024
    """Most tokens of an answer, thoughts included."""
    temperature: float | None = None
    """Sampling temperature, 0 to 2. Empty: the model's own. Gemini 3.5 ignores it, so it is refused there."""
    input_price: float | None = None
    """US dollars per million prompt tokens, over the built-in table."""
    cached_price: float | None = None
    """US dollars per million prompt tokens that came from a cache, over the built-in table."""
    output_price: float | None = None
    """US dollars per million output tokens, thoughts included, over the built-in table."""

    def __post_init__(self) -> None:
        if self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens={self.max_output_tokens}: must be at least 1.")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature={self.temperature}: must be 0 to 2, or empty for the model's own.")
        for name in ("input_price", "cached_price", "output_price"):
            check_price(name, getattr(self, name))

    def prices(self, model: GeminiModel) -> Prices:
        """The model's prices with those set here in their place."""
        table = model.prices
        return Prices(
            input=table.input if self.input_price is None else self.input_price,
            cached=table.cached if self.cached_price is None else self.cached_price,
            output=table.output if self.output_price is None else self.output_price,
        )


@dataclass
class GeminiTeacher:
    """Asks a Gemini model for scripts, thinking off or at its minimum. For one event loop at a time.

    Args:
        client_factory: makes a client of google-genai; called at the first request and again after `close`.
        model: name of the model on Vertex AI.
        prompt_version: one of `PROMPT_VERSIONS`.
        config: limits and prices.

    Raises:
        TeacherRefused: the model was retired.
        UnknownPromptVersion: there is no such prompt.
        ValueError: a temperature for a model that ignores it.
    """

    client_factory: Callable[[], Client]
    model: str = "gemini-3.5-flash-lite"
    prompt_version: str = "v2"
    config: GeminiConfig = field(default_factory=GeminiConfig)
    _client: Client | None = field(default=None, init=False, repr=False)
    _session: ClientSession | None = field(default=None, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        facts = gemini_model(self.model)
        if facts.retired_on is not None:
            raise TeacherRefused(
                f"{self.model} was {facts.status}: set NEWSJUICE_GEMINI_MODEL to one of {', '.join(facts.replacements)}."
            )
        if self.config.temperature is not None and "temperature" not in facts.sampling_fields:
            others = [
                name for name, other in GEMINI_MODELS.items() if "temperature" in other.sampling_fields and not other.retired_on
            ]
            raise ValueError(
                f"temperature={self.config.temperature}: {self.model} ignores it. Leave it empty, or use {', '.join(others)}."
            )
        self.facts = facts
        self.prices = self.config.prices(facts)
        render_prompt(self.prompt_version, "")  # an unknown version fails here, before anything is paid
        importlib.import_module("google.genai.types")  # takes a second, in which an event loop would stand still

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides an answer beside model and prompt."""
        settings: dict[str, Any] = {"max_output_tokens": self.config.max_output_tokens, "thinking": dict(self.facts.thinking)}
        if self.config.temperature is not None:
            settings["temperature"] = self.config.temperature
        return settings

    def prompt(self, article: str) -> str:
        """What is sent for an article; always valid UTF-8."""
        return _valid(render_prompt(self.prompt_version, article))

    def most_tokens(self, article: str) -> int:
        """Upper bound of the tokens of one request and its answer: see `most_prompt_tokens`."""
        return most_prompt_tokens(self.prompt(article)) + self.config.max_output_tokens

    def most_usd(self, article: str, *, batch: bool = False) -> float | None:
        """Upper bound of what one request for this article costs, US dollars; None when a price is not known."""
        tokens = most_prompt_tokens(self.prompt(article))
        return cost_usd(self.prices, tokens, output_tokens=self.config.max_output_tokens, batch=batch)

    async def ask(self, article: str, timeout_s: float) -> TeacherReply:
        """One script, or the reason why there is none, by exactly one request.

        Raises:
            TryAgain: rate limit, server or transport error, no answer within `timeout_s`.
            TeacherRefused: credentials, permission, model name, settings.
        """
        prompt = self.prompt(article)
        start = time.perf_counter()
        with translated(self.model):
            client = self.client()
            async with asyncio.timeout(timeout_s):  # the library's own does not cover the fetching of credentials
                try:
                    response = await client.aio.models.generate_content(
                        model=self.model, contents=prompt, config=self._request_config(timeout_s)
                    )
                except (TypeError, AttributeError) as error:  # the library takes JSON of another shape apart unseen
                    raise TryAgain(f"malformed answer: {error}", may_be_billed=True) from error
        if not response.candidates and response.usage_metadata is None and response.prompt_feedback is None:
            raise TryAgain("malformed answer: it has neither candidates nor usage", may_be_billed=True)
        return self.reply(response, latency_s=time.perf_counter() - start)

    def _request_config(self, timeout_s: float) -> GenerateContentConfigDict:
        """Settings of one request; all that makes the library send further ones by itself is off.

        These are retries after a lost connection, the continuation of unfinished answers, and calls of functions. A
        dictionary spares the library a deep copy.
        """
        from google.genai import types

        config: GenerateContentConfigDict = {
            "max_output_tokens": self.config.max_output_tokens,
            "http_options": types.HttpOptions(
                timeout=max(1, round(timeout_s * 1000)), retry_options=types.HttpRetryOptions(attempts=1)
            ),
            "automatic_continuation": False,
            "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
        }
        if self.config.temperature is not None:
            config["temperature"] = self.config.temperature
        if self.facts.thinking:
            config["thinking_config"] = types.ThinkingConfig(**self.facts.thinking)
        return config

    async def close(self) -> None:
        """Close connections; the next request makes a new client."""
        client, session, self._client, self._session, self._loop = self._client, self._session, None, None, None
        if client is not None:
            await client.aio.aclose()
        if session is not None:
            await session.close()

    def client(self) -> Client:
        """The client of the running event loop; connections cannot be taken from one loop to the next."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client, self._loop = self.client_factory(), loop
            self._session = _direct_session(self._client)
        return self._client

    def reply(
        self, response: GenerateContentResponse, *, latency_s: float | None, mode: Literal["online", "batch"] = "online"
    ) -> TeacherReply:
        """An answer of the service, read: text, outcome, tokens and cost."""
        text, status, reason = _outcome(response)
        usage = response.usage_metadata
        if usage is None:
            return TeacherReply(text, status, reason, latency_s=latency_s, mode=mode)
        prompt, cached = usage.prompt_token_count or 0, usage.cached_content_token_count or 0
        output, thoughts = usage.candidates_token_count or 0, usage.thoughts_token_count or 0
        return TeacherReply(
            text,
            status,
            reason,
            input_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            thought_tokens=thoughts,
            latency_s=latency_s,
            cost_usd=cost_usd(self.prices, prompt, cached, output, thoughts, batch=mode == "batch"),
            mode=mode,
        )


@lru_cache(maxsize=1024)
def most_prompt_tokens(prompt: str) -> int:
    """Upper bound of a prompt's tokens, about twice what English prose has.

    No token is less than one byte, so that a byte is counted as one: digits and signs are often tokens of their own, and
    so are the bytes of rare characters. Only a plain word of `n` letters, up to 25, is counted as `n // 2 + 1` together with
    the space before it. In a vocabulary of some 256,000 every pair of letters is an entry, so that hardly a second letter
    can remain alone.
    """
    tokens = len(prompt.encode("utf-8", "replace")) + _MESSAGE_TOKENS
    for word in _WORD.finditer(prompt):
        tokens -= len(word.group(0)) - (len(word.group(1)) // 2 + 1)
    return tokens


def _direct_session(client: Client) -> ClientSession | None:
    """HTTP connections of our own for the client, where neither a proxy nor a client certificate is in use; else None.

    The library's own connections look for proxies and for a password in `~/.netrc` before each request. That is two visits
    to a thread, a tenth of the throughput at 64 requests at once, and a `default` entry there makes every request fail.
    """
    library = client._api_client
    if any(getproxies().get(kind) for kind in ("http", "https", "all")):
        return None
    if not library._use_aiohttp() or library._use_google_auth_async() or library._http_options.aiohttp_client is not None:
        return None
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    library._http_options.aiohttp_client = session
    return session


def _outcome(response: GenerateContentResponse) -> tuple[str, Status, str]:
    """Text, status and finish reason."""
    if not response.candidates:
        blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
        return ("", "blocked_prompt", f"PROMPT_{blocked.name}") if blocked else ("", "empty", "NO_CANDIDATE")
    candidate = response.candidates[0]
    reason = candidate.finish_reason.name if candidate.finish_reason else "NO_REASON"
    if reason in BLOCKING_REASONS:
        return "", "blocked_output", reason
    parts = (candidate.content.parts if candidate.content else None) or []
    text = _valid("".join(part.text for part in parts if part.text and not part.thought)).replace("\x00", "").strip()
    if not text:
        return "", "empty", reason
    return text, "ok" if reason == "STOP" else "truncated", reason


def _valid(text: str) -> str:
    """Without lone surrogates, which neither UTF-8 nor PostgreSQL can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
