"""The HTTP side of an OpenAI-compatible server: connecting, listing models, reading a stream, telling errors apart.

What the answers mean for a request is `openai_server.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from newsjuice_pipelines.podcast.engines import EngineError

CONNECT_S = 10.0
# Between two pieces of an answer: a busy server lets requests wait in its queue.
SILENCE_S = 600.0
SHOWN_CHARACTERS = 300


class ServerError(Exception):
    """A server refused a request or broke it off; `passing` when the same request may succeed a moment later."""

    def __init__(
        self, text: str, *, status: int | None = None, passing: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.passing, self.retry_after_s = status, passing, retry_after_s


@dataclass(frozen=True)
class Problem:
    """Why a request was not answered, in words without secrets."""

    text: str
    passing: bool
    retry_after_s: float | None = None


def http_client(url: str | None, api_key: str | None, connections: int) -> tuple[Any, str]:
    """A client for the server at `url` and the address to show for it.

    Raises:
        EngineError: the URL is missing, is not http(s), or carries a secret.
    """
    import httpx

    if not url:
        raise EngineError("the vllm engine needs the address of a server: set server_url, such as http://127.0.0.1:8000/v1.")
    parts = urlsplit(url.strip())
    if parts.username or parts.password or parts.query or parts.fragment:
        raise EngineError("server_url holds a user, a password or a query: give the plain address, and the key as the API key.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineError(f"server_url is {url!r}: it must be an http or https address, such as http://127.0.0.1:8000/v1.")
    api_key = (api_key or "").strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise EngineError("the server's API key has characters that no header may hold: set NEWSJUICE_SERVER_API_KEY anew.")
    address = url.strip().rstrip("/")
    client = httpx.Client(
        base_url=f"{address}/",
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
    )
    return client, address


def served_models(client: Any, address: str) -> dict[str, int | None]:
    """The models that the server at `address` offers, with the context in tokens of those that tell it (as vLLM does).

    Raises:
        EngineError: no server answers there, it refuses the key, or it is none of this kind.
    """
    import httpx

    try:
        response = client.get("models", timeout=CONNECT_S)
    except httpx.TransportError as error:
        raise EngineError(
            f"no server answers at {address} ({type(error).__name__}: {error}): start it, or correct server_url."
        ) from error
    if response.status_code in (401, 403):
        raise EngineError(
            f"{address} refuses the API key, or wants one (HTTP {response.status_code}): set NEWSJUICE_SERVER_API_KEY."
        )
    try:
        response.raise_for_status()
        models = {str(entry["id"]): entry.get("max_model_len") for entry in response.json()["data"]}
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{address}/models gives no list of models (HTTP {response.status_code}): check that it is the address of an "
            "OpenAI-compatible server, which mostly ends in /v1, and that its model is loaded."
        ) from error
    return {name: length if isinstance(length, int) else None for name, length in models.items()}


def completion_events(client: Any, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of a streamed completion, piece by piece.

    Raises:
        ServerError: the server refuses, or sends an error or something unreadable in the middle.
        httpx.TransportError: the connection fails.
    """
    with client.stream("POST", "completions", json=body) as response:
        if response.status_code != 200:
            response.read()
            status = response.status_code
            raise ServerError(
                f"HTTP {status}: {_message(response.text)}",
                status=status,
                passing=status == 429 or status >= 500,
                retry_after_s=_seconds(response.headers.get("Retry-After")),
            )
        for data in _server_sent(response.iter_bytes()):
            event = _event(data)
            if "error" in event:
                raise ServerError(f"the server broke off: {_message(data)}", passing=True)
            yield from event["choices"][:1]  # none in the last event of some servers, which counts tokens


def problem_of(error: Exception, client: Any) -> Problem:
    """What to report for an error of a request, with the client's key removed from the server's words."""
    import httpx

    text, passing, retry_after_s = f"{type(error).__name__}: {error}", False, None
    if isinstance(error, ServerError):
        text, passing, retry_after_s = str(error), error.passing, error.retry_after_s
    elif isinstance(error, httpx.TransportError):
        text, passing = f"the connection failed ({text})", True
    key = client.headers.get("Authorization", "").removeprefix("Bearer ")
    return Problem(text.replace(key, "***") if key else text, passing, retry_after_s)


def _server_sent(pieces: Iterator[bytes]) -> Iterator[str]:
    """The data of server-sent events. Lines end at line feeds only: in a JSON text U+2028 and the like are no line ends."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.decode(errors="replace").strip().removeprefix("data:").strip() if line.startswith(b"data:") else ""
            if data == "[DONE]":
                return
            if data:
                yield data


def _event(data: str) -> dict[str, Any]:
    """A piece of the stream, checked: it comes from outside."""
    try:
        event: dict[str, Any] = json.loads(data)
        event["choices"] = choices = event.get("choices") or []
        sound = all(
            isinstance(choice.get("text") or "", str) and all(isinstance(token, int) for token in choice.get("token_ids") or [])
            for choice in choices
        )
    except (ValueError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ServerError(f"the server sent something unreadable: {data[:80]!r}")
    return event


def _message(text: str) -> str:
    """The server's own words in an error body, short and on one line."""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass  # not JSON: the text itself
    return " ".join(text.split())[:SHOWN_CHARACTERS]


def _seconds(value: str | None) -> float | None:
    """Seconds of a Retry-After header; None when it holds a date or nothing."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
