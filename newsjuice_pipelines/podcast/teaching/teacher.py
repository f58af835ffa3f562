"""What a teacher is: whoever writes a podcast script for an article, the reply of one request, and the errors of asking.

The teachers are in `extractive.py` (free) and `gemini.py` (paid), asking them for many scripts is `teacher_run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from newsjuice_pipelines.runtime.provenance import fingerprint

Status = Literal["ok", "rejected", "blocked_prompt", "blocked_output", "truncated", "empty", "failed", "not_asked"]
"""What became of a row. A teacher itself gives `ok`, `blocked_prompt`, `blocked_output`, `truncated` and `empty`; `failed` is a
row whose requests all failed, `rejected` a script that the filters refuse, `not_asked` a row that the budget left out."""

STATUSES: tuple[Status, ...] = (
    "ok",
    "rejected",
    "blocked_prompt",
    "blocked_output",
    "truncated",
    "empty",
    "failed",
    "not_asked",
)


class TeacherRefused(RuntimeError):
    """The teacher will not answer any request (credentials, permission, model name): asking again is useless."""


class TeacherUnavailable(RuntimeError):
    """The teacher answers no request at the moment; what it answered before is kept."""


class RowRefused(Exception):
    """One request was refused for good, and it is not said that others would be."""


class TryAgain(Exception):
    """One request failed in a way that may pass: rate limit, server or transport error."""

    def __init__(self, reason: str, *, delay_s: float = 0.0, rate_limited: bool = False, may_be_billed: bool = False) -> None:
        super().__init__(reason)
        self.delay_s = delay_s
        """Seconds that the service asked to wait; 0 when it named none."""
        self.rate_limited = rate_limited
        """Whether the service said that requests come too fast."""
        self.may_be_billed = may_be_billed
        """Whether the service may have done the work: the request was sent, and no answer came back."""


@dataclass(frozen=True)
class TeacherReply:
    """What one request gave. `text` is never an error message: those are in `error`."""

    text: str
    status: Status
    finish_reason: str
    input_tokens: int | None = None
    """Tokens of the prompt, cached ones included."""
    cached_tokens: int | None = None
    """Tokens of the prompt that came from a cache."""
    output_tokens: int | None = None
    """Tokens of the answer, without thoughts."""
    thought_tokens: int | None = None
    latency_s: float | None = None
    """Of the request that was answered; None when no request was made."""
    attempts: int = 1
    cost_usd: float | None = None
    """None when the price is not known."""
    mode: Literal["online", "batch"] = "online"
    error: str | None = None
    judged_by: str | None = None
    """Version of the script filters that judged the text; None before it was judged."""
    problem: str | None = None
    """Why those filters refuse the text; None when they accept it."""


class Teacher(Protocol):
    """Writes a script for an article. Retries, pace, budget and ledger are the caller's."""

    @property
    def model(self) -> str: ...

    @property
    def prompt_version(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything beside model, prompt and article that decides the answer; JSON values."""
        ...

    def most_tokens(self, article: str) -> int:
        """Upper bound of the tokens that one request for this article counts, prompt and answer."""
        ...

    def most_usd(self, article: str, *, batch: bool = False) -> float | None:
        """Upper bound of what one request for this article costs, on line or in a batch, US dollars; None: not known."""
        ...

    async def ask(self, article: str, timeout_s: float) -> TeacherReply:
        """One request.

        Raises:
            TryAgain: it failed, and may succeed later.
            RowRefused: this article is refused for good; others may be answered.
            TeacherRefused: it was refused for good, and every other one would be.
        """
        ...

    async def close(self) -> None:
        """Close connections. Asking again afterwards, also in another event loop, opens new ones."""
        ...


def request_key(teacher: Teacher, article: str) -> str:
    """SHA-256 (hex) of all that decides a teacher's answer: model, prompt version, settings, article."""
    return fingerprint(
        {"model": teacher.model, "prompt": teacher.prompt_version, "settings": dict(teacher.settings), "article": article}
    )
