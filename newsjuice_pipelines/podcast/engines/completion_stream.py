"""The HTTP side of an OpenAI-compatible server: connecting, listing models, reading a stream, telling errors apart.

What the answers mean for a request is `openai_server.py`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Connections:
    """The open connections of a client, which another thread can break off: a read waits for `SILENCE_S` otherwise."""

    _sockets: weakref.WeakSet[socket.socket] = field(default_factory=weakref.WeakSet)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def break_off(self) -> None:
        """End whatever is being read or written."""
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):  # closed already
                    socket.socket.shutdown(one, socket.SHUT_RDWR)  # of the connection below, when it is encrypted

    def watch(self, stopped: threading.Event | None = None) -> dict[str, Any]:
        """The extensions of a request, which note its connection, and end it when `stopped` is set before it is read."""

        def trace(event: str, info: dict[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                with self._lock:
                    self._sockets.add(info["return_value"].get_extra_info("socket"))
            elif event.endswith("receive_response_headers.started") and stopped is not None and stopped.is_set():
                self.break_off()

        return {"trace": trace}


def http_client(url: str | None, api_key: str | None, connections: int) -> tuple[Any, str]:
    """A client for the server at `url` and the address to show for it.

    Raises:
        EngineError: the URL is missing, is none, is not http(s), or carries a secret.
    """
    import httpx

    if not url:
        raise EngineError("the vllm engine needs the address of a server: set server_url, such as http://127.0.0.1:8000/v1.")
    if set("@?#") & set(url):  # not only where they are in place: it is not shown then
        raise EngineError("server_url holds a user, a password or a query: give the plain address, and the key as the API key.")
    api_key = (api_key or "").strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise EngineError("the server's API key has characters that no header may hold: set NEWSJUICE_SERVER_API_KEY anew.")
    address = url.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx.URL(address)
    except (ValueError, httpx.InvalidURL):
        sound = False
    if not sound:
        raise EngineError(f"server_url is {url!r}: it must be an http or https address, such as http://127.0.0.1:8000/v1.")
    client = httpx.Client(
        base_url=f"{address}/",
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
    )
    return client, address


def served_models(client: Any, address: str, connections: Connections) -> dict[str, int | None]:
    """The models that the server at `address` offers, with the context in tokens of those that tell it (as vLLM does).

    Raises:
        EngineError: no server answers there, it refuses the key, or it is none of this kind.
    """
    import httpx

    try:
        response = client.get("models", timeout=CONNECT_S, extensions=connections.watch())
    except (httpx.TransportError, UnicodeError) as error:  # the latter from a host name that none can be
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


def completion_events(client: Any, body: dict[str, Any], extensions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of a streamed completion, piece by piece.

    Raises:
        ServerError: the server refuses, or sends an error or something unreadable in the middle.
        httpx.TransportError: the connection fails.
    """
    with client.stream("POST", "completions", json=body, extensions=extensions) as response:
        if response.status_code != 200:
            response.read()
            status = response.status_code
            raise ServerError(
                f"HTTP {status}: {_message(response.text, client)}",
                status=status,
                passing=status == 429 or status >= 500,
                retry_after_s=_seconds(response.headers.get("Retry-After")),
            )
        for data in _server_sent(response.iter_bytes()):
            event = _event(data, client)
            if "error" in event:
                raise ServerError(f"the server broke off: {_message(data, client)}", passing=True)
            yield from event["choices"][:1]  # none in the last event of some servers, which counts tokens


def problem_of(error: Exception, client: Any) -> Problem:
    """What to report for an error of a request, with the client's key removed from the server's words."""
    import httpx

    text, passing, retry_after_s = f"{type(error).__name__}: {error}", False, None
    if isinstance(error, ServerError):
        text, passing, retry_after_s = str(error), error.passing, error.retry_after_s
    elif isinstance(error, httpx.TransportError):
        text, passing = f"the connection failed ({text})", True
    return Problem(without_key(text, client), passing, retry_after_s)


def without_key(text: str, client: Any) -> str:
    """A text of the server without the client's key. To be taken out before the text is cut, which may leave half of a key."""
    key = client.headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(key, "***") if key else text


def well_formed(text: str) -> str:
    """The text with U+FFFD for halves of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def _event(data: str, client: Any) -> dict[str, Any]:
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
        raise ServerError(f"the server sent something unreadable: {without_key(data, client)[:80]!r}")
    return event


def _message(text: str, client: Any) -> str:
    """The server's own words in an error body, short and on one line."""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass  # not JSON: the text itself
    return " ".join(without_key(well_formed(text), client).split())[:SHOWN_CHARACTERS]


def _seconds(value: str | None) -> float | None:
    """Seconds of a Retry-After header; None when it holds a date or nothing."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
