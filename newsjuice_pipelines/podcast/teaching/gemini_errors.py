"""What the errors of google-genai mean: ask again, or stop. Every exception that the library lets through is told apart here."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

from newsjuice_pipelines.podcast.teaching.teacher import RowRefused, TeacherRefused, TryAgain

_ADVICE = {
    400: "the request itself is wrong: check the model's settings",
    401: "check the credentials (`gcloud auth application-default login`, or the service account)",
    403: "the account lacks the right to call Vertex AI in this project, or the API is off",
    404: "this model is not served in this location: check NEWSJUICE_GEMINI_MODEL and NEWSJUICE_GCP_LOCATION",
}
_SECRET = re.compile(r"(?i)(\bbearer\s+|\bya29\.|[?&]key=|\btoken=)[^\s\"'&,)]+")
_MOST_CHARACTERS = 300


@contextmanager
def translated(model: str) -> Iterator[None]:
    """Raises what the library raises inside as `TryAgain`, `RowRefused` or `TeacherRefused`; our own defects stay as they are."""
    try:
        yield
    except Exception as error:
        known = translate(error, model)
        if known is None:
            raise
        raise known from None  # the library's message may quote what was sent, credentials included


def translate(error: Exception, model: str) -> TryAgain | RowRefused | TeacherRefused | None:
    """What an exception of google-genai, google-auth or the HTTP library means; None when it is none of theirs."""
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.genai.errors import APIError

    if isinstance(error, APIError):
        return _of_status(error, model)
    if isinstance(error, GoogleAuthError):
        if isinstance(error, TransportError) or error.retryable:
            return TryAgain(describe(error))
        return _refusal(describe(error), _ADVICE[401], model)
    if isinstance(error, _wrong_address()):
        return _refusal(describe(error), "check the address of the API", model)
    if isinstance(error, _never_connected()):
        return TryAgain(describe(error))
    if isinstance(error, _lost_in_transport()):
        return TryAgain(describe(error) if str(error) else "no answer in time", may_be_billed=True)
    if isinstance(error, _malformed()):
        return TryAgain(f"malformed answer: {describe(error)}", may_be_billed=True)
    return None


def describe(error: Exception) -> str:
    """One line: code, status and message of the service, or the exception; without tokens and keys."""
    code, status, message = (getattr(error, name, None) for name in ("code", "status", "message"))
    of_service = f"{code} {status or ''} {message or ''}"
    text = of_service if isinstance(code, int) else f"{type(error).__name__}: {error}".rstrip(": ")
    return _SECRET.sub(r"\1…", " ".join(text.split()))[:_MOST_CHARACTERS]


def asked_delay_s(error: Exception) -> float:
    """Seconds that the service asked to wait, in `RetryInfo.retryDelay` or `Retry-After` (seconds or a date); else 0."""
    details = getattr(error, "details", None)
    body = details.get("error", details) if isinstance(details, dict) else {}
    entries = body.get("details") if isinstance(body, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and str(entry.get("@type", "")).endswith("google.rpc.RetryInfo"):
            found = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(entry.get("retryDelay", "")))
            if found:
                return float(found.group(1))
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return _retry_after_s(str(headers.get("Retry-After", "")).strip())


def _retry_after_s(value: str) -> float:
    if re.fullmatch(r"\d+", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:  # no header, or one that is no date
        return 0.0


def _of_status(error: Any, model: str) -> TryAgain | RowRefused | TeacherRefused:
    code = int(error.code)
    if code in (400, 413):  # of this request; whether of every one, the next ones show
        return RowRefused(f"{model} refused the request: {describe(error)}. What to do: {_ADVICE[400]}.")
    if code in (408, 429) or code >= 500:
        # After 408 and 504 the service had the request and ran out of time: it may have done the work.
        return TryAgain(describe(error), delay_s=asked_delay_s(error), rate_limited=code == 429, may_be_billed=code in (408, 504))
    return _refusal(describe(error), _ADVICE.get(code, "the service does not accept such requests"), model)


def _refusal(what: str, advice: str, model: str) -> TeacherRefused:
    return TeacherRefused(f"{model} refused the request: {what}. What to do: {advice}.")


def _loaded(module: str, *names: str) -> tuple[type[Exception], ...]:
    """Exceptions of an HTTP library; the one in use is loaded by now, and the others need not be installed."""
    loaded = sys.modules.get(module)
    return tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))


def _wrong_address() -> tuple[type[Exception], ...]:
    return (
        *_loaded("aiohttp", "InvalidURL"),
        *_loaded("httpx", "InvalidURL", "UnsupportedProtocol"),
        *_loaded("httpx2", "InvalidURL", "UnsupportedProtocol"),
    )


def _never_connected() -> tuple[type[Exception], ...]:
    """Nothing was sent, so nothing is billed."""
    return (
        ConnectionRefusedError,
        *_loaded("aiohttp", "ClientConnectorError", "ConnectionTimeoutError"),
        *_loaded("httpx", "ConnectError", "ConnectTimeout", "PoolTimeout"),
        *_loaded("httpx2", "ConnectError", "ConnectTimeout", "PoolTimeout"),
    )


def _lost_in_transport() -> tuple[type[Exception], ...]:
    """The request may have arrived, and no whole answer came back. A `TimeoutError` has no text of its own."""
    return (
        OSError,
        *_loaded("aiohttp", "ClientError"),
        *_loaded("httpx", "TransportError"),
        *_loaded("httpx2", "TransportError"),
    )


def _malformed() -> tuple[type[Exception], ...]:
    """An answer that is not the service's: a proxy's page, or JSON of another shape."""
    from google.genai.errors import UnknownApiResponseError
    from pydantic import ValidationError

    return (json.JSONDecodeError, UnicodeDecodeError, UnknownApiResponseError, ValidationError)
