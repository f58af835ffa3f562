"""Teachers and what they are asked for: a podcast script for each chunk, with the facts of each request.

Here: the reply type, the free extractive teacher, the filter for unfit scripts, and the run over many chunks. The paid
teacher is in `gemini.py`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import statistics
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from newsjuice_pipelines.podcast.sentences import ends_complete, split_sentences
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.provenance import fingerprint

if TYPE_CHECKING:
    import pandas as pd

    from newsjuice_pipelines.podcast.ledger import Ledger

logger = logging.getLogger("newsjuice.podcast")

TEACHER_COLUMNS = (
    "chunk_text",
    "gemini_podcast_text",
    "gemini_length",
    "chunk_id",
    "article_id",
    "status",
    "finish_reason",
    "model",
    "prompt_version",
    "input_tokens",
    "output_tokens",
    "thought_tokens",
    "latency_s",
    "attempts",
    "cost_usd",
)
SCRIPTS_FILE = "scripts.csv"
MAX_SCRIPT_WORDS = 300
MIN_SCRIPT_WORDS = 20  # below it the reply is a remark, not a script

Status = Literal["ok", "blocked", "truncated", "empty", "failed", "rejected"]

_NUMBERS = ("gemini_length", "input_tokens", "output_tokens", "thought_tokens", "attempts")
_DECIMALS = ("latency_s", "cost_usd")
_FAILURES_IN_A_ROW = 10

_PREAMBLE = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay)\b[^.!?\n]{0,40}!|"
    r"(?:(?:sure|certainly|of course|absolutely|okay)\b[,.:]?\s+)?"
    r"(?:here(?:'s|’s| is| are)|below is|i(?:'ve|’ve| have) (?:written|prepared|created))\b[^.!?\n]{0,60}"
    r"\b(?:script|transcript|draft|rewrite)\b|"
    r"(?:podcast |episode )?(?:script|transcript|title)\s*:)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:i(?:'m|’m| am) (?:sorry|unable|not able)|i can(?:not|'t|’t) (?:help|write|create|provide|assist)|as an ai\b)",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"\*\*|__|```|<\|[^|]*\|>|</?[a-z][^<>]*>|^[^\S\n]*#{1,6}\s|^[^\S\n]*[-*•]\s|https?://|"
    r"\[[^\]]{0,80}\]|[(*][^()*]{0,40}\b(?:music|jingle|sound effect|pause|sfx|applause|intro|outro)\b[^()*]{0,40}[)*]|"
    r"^[^\S\n]*(?:host|narrator|speaker|announcer|anchor)(?: \w+)?[^\S\n]*:",
    re.IGNORECASE | re.MULTILINE,
)


class TeacherRefused(RuntimeError):
    """The teacher will not answer any request (credentials, permission, model name): asking again is useless."""


class TeacherUnavailable(RuntimeError):
    """The teacher answers no request at the moment; what it answered before is kept."""


@dataclass(frozen=True)
class TeacherReply:
    """What one request gave. `text` is never an error message: those are in `error`."""

    text: str
    status: Status
    finish_reason: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    thought_tokens: int | None = None
    latency_s: float | None = None  # of the request that was answered; None when no request was made
    attempts: int = 1
    cost_usd: float | None = None  # None when the price is not known
    error: str | None = None


class Teacher(Protocol):
    """Writes a script for an article. `settings` holds everything beside model and prompt that decides the answer."""

    @property
    def model(self) -> str: ...

    @property
    def prompt_version(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def write(self, article: str) -> TeacherReply:
        """Write one script; safe to call from several threads. A permanent error raises `TeacherRefused`."""
        ...


_OPENINGS = (
    "Welcome to NewsJuice. Here is a story worth a minute of your time.",
    "Hello, and thanks for listening to NewsJuice. This is what we are following today.",
    "You are listening to NewsJuice, and this is the story.",
    "Good to have you with us on NewsJuice. Let us get straight to the news.",
)
_CLOSINGS = (
    "That is the story for now. Thanks for listening to NewsJuice.",
    "We will keep an eye on it. Until next time, this was NewsJuice.",
    "And that is what we know so far. Thank you for joining us on NewsJuice.",
    "That was your news in brief. Join us again soon on NewsJuice.",
)


@dataclass(frozen=True)
class ExtractiveTeacher:
    """An article's lead sentences, word for word, in a spoken frame. Free and deterministic; no model is asked."""

    body_words: int = 110
    """Most words taken from the article; the frame adds about 25."""

    @property
    def model(self) -> str:
        return "extractive"

    @property
    def prompt_version(self) -> str:
        return "frame-1"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"body_words": self.body_words}

    def write(self, article: str) -> TeacherReply:
        """Opening line, complete lead sentences up to `body_words`, closing line; the lines vary by a hash of the article."""
        body: list[str] = []
        words = 0
        for sentence in split_sentences(article):
            spoken = " ".join(sentence.split())
            length = len(spoken.split())
            if not ends_complete(spoken) or _MARKUP.search(spoken) or length > self.body_words:
                continue  # headings, captions, cut ends, links
            if words + length > self.body_words:
                break
            body.append(spoken)
            words += length
        if not body:
            return TeacherReply("", "empty", "NO_COMPLETE_SENTENCE", cost_usd=0.0)
        digest = hashlib.sha256(article.encode()).digest()
        opening, closing = _OPENINGS[digest[0] % len(_OPENINGS)], _CLOSINGS[digest[1] % len(_CLOSINGS)]
        return TeacherReply(" ".join([opening, *body, closing]), "ok", "STOP", cost_usd=0.0)


def script_problem(text: str) -> str | None:
    """Why `text` is not a script fit for training, or None: length, preamble, refusal, markup, cut end."""
    words = len(text.split())
    if words > MAX_SCRIPT_WORDS:
        return "too_long"
    if _REFUSAL.match(text):
        return "refusal"
    if words < MIN_SCRIPT_WORDS:
        return "too_short"
    if _PREAMBLE.match(text):
        return "preamble"
    if _MARKUP.search(text):
        return "markup"
    return None if ends_complete(text) else "incomplete_sentence"


def request_key(teacher: Teacher, article: str) -> str:
    """SHA-256 (hex) of all that decides a teacher's answer: model, prompt version, settings, article."""
    return fingerprint(
        {"model": teacher.model, "prompt": teacher.prompt_version, "settings": dict(teacher.settings), "article": article}
    )


def write_scripts(chunks: pd.DataFrame, teacher: Teacher, ledger: Ledger | None, max_workers: int) -> pd.DataFrame:
    """A script for each chunk, in the order of `chunks`; rows with a status other than `ok` are for counting only.

    An answer found in the ledger is not asked for again, and a new one is in the ledger before it is used. Chunks with the
    same text are asked once.

    Args:
        chunks: `chunk_id`, `article_id` and `text`.
        teacher: who writes.
        ledger: where answers are kept; None keeps none.
        max_workers: requests at once.

    Raises:
        TeacherRefused: a permanent error; nothing more was asked.
        TeacherUnavailable: ten requests in a row failed, or all of them.
    """
    import pandas as pd

    keys = [request_key(teacher, text) for text in chunks["text"]]
    articles = dict(zip(keys, chunks["text"], strict=True))
    replies = ledger.get_many(articles.keys()) if ledger else {}
    if replies:
        logger.info("teacher: %d of %d answers are in the ledger", len(replies), len(articles))
    missing = {key: article for key, article in articles.items() if key not in replies}
    replies |= _ask_all(missing, teacher, ledger, max_workers)
    rows = [
        _row(chunk_id, article_id, text, replies[key], teacher)
        for chunk_id, article_id, text, key in zip(chunks["chunk_id"], chunks["article_id"], chunks["text"], keys, strict=True)
    ]
    return _typed(pd.DataFrame(rows, columns=list(TEACHER_COLUMNS)))


def write_teacher_csv(scripts: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Write `scripts.csv` into `out`; returns what `summarize_scripts` counts."""
    scripts.to_csv(out / SCRIPTS_FILE, index=False, columns=list(TEACHER_COLUMNS), lineterminator="\n")
    return summarize_scripts(scripts)


def summarize_scripts(scripts: pd.DataFrame) -> dict[str, Any]:
    """Counts by status and reason, words, tokens, latency and cost of teacher scripts."""
    accepted = scripts[scripts["status"] == "ok"]
    words = [len(text.split()) for text in accepted["gemini_podcast_text"]]
    latency, cost = scripts["latency_s"].dropna(), scripts["cost_usd"].dropna()
    return {
        "rows": len(scripts),
        "ok": len(accepted),
        "status": {str(status): count for status, count in sorted(Counter(scripts["status"]).items())},
        "not_ok_reasons": {
            str(reason): count
            for reason, count in sorted(Counter(scripts.loc[scripts["status"] != "ok", "finish_reason"]).items())
        },
        "words_p50": float(statistics.median(words)) if words else None,
        "words_max": max(words, default=None),
        "input_tokens": _total(scripts["input_tokens"]),
        "output_tokens": _total(scripts["output_tokens"]),
        "thought_tokens": _total(scripts["thought_tokens"]),
        "latency_p50_s": float(latency.quantile(0.5)) if len(latency) else None,
        "latency_p95_s": float(latency.quantile(0.95)) if len(latency) else None,
        "cost_usd": float(cost.sum()) if len(cost) else None,
        "rows_without_cost": len(scripts) - len(cost),
    }


def read_teacher_csv(paths: Iterable[Path]) -> pd.DataFrame:
    """The scripts of several partitions (folders or files) as one table, texts exactly as they were written.

    Raises:
        ValueError: a file lacks a column.
    """
    import pandas as pd

    numeric = [*_NUMBERS, *_DECIMALS]
    frames = []
    for path in paths:
        file = path / SCRIPTS_FILE if path.is_dir() else path
        with file.open(encoding="utf-8", newline="") as stream:
            frame = pd.read_csv(stream, dtype="str", keep_default_na=False, na_values={name: [""] for name in numeric})
        missing = [column for column in TEACHER_COLUMNS if column not in frame]
        if missing:
            raise ValueError(f"{file} lacks the column {', '.join(missing)}: materialise 'teacher_scripts' again.")
        frames.append(_typed(frame[list(TEACHER_COLUMNS)]))
    if not frames:
        return _typed(pd.DataFrame(columns=list(TEACHER_COLUMNS)))
    return pd.concat(frames, ignore_index=True)


def _ask_all(articles: Mapping[str, str], teacher: Teacher, ledger: Ledger | None, max_workers: int) -> dict[str, TeacherReply]:
    replies: dict[str, TeacherReply] = {}
    requests = _Requests(teacher, ledger, failure_limit=min(_FAILURES_IN_A_ROW, len(articles)))
    progress = Progress(f"teacher {teacher.model}", len(articles), "scripts")
    with ThreadPoolExecutor(max_workers, thread_name_prefix="teacher") as pool:
        futures = {pool.submit(requests.ask, key, article): key for key, article in articles.items()}
        try:
            for future in as_completed(futures):
                reply = replies[futures[future]] = future.result()
                progress.advance(note="" if reply.status == "ok" else f"{reply.status}: {reply.error or reply.finish_reason}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return replies


@dataclass
class _Requests:
    """The requests of one run, from several threads. The first error that ends the run ends the requests that wait, too."""

    teacher: Teacher
    ledger: Ledger | None
    failure_limit: int
    _failures_in_a_row: int = 0
    _cause: BaseException | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, key: str, article: str) -> TeacherReply:
        if self._cause is not None:
            raise self._cause
        try:
            reply = self.teacher.write(article)
            if self.ledger:
                self.ledger.put(key, self.teacher.model, self.teacher.prompt_version, reply)
            self._count(reply)
        except BaseException as error:
            self._cause = self._cause or error
            raise
        return reply

    def _count(self, reply: TeacherReply) -> None:
        with self._lock:
            self._failures_in_a_row = self._failures_in_a_row + 1 if reply.status == "failed" else 0
            if self._failures_in_a_row >= self.failure_limit:
                raise TeacherUnavailable(
                    f"{self.teacher.model}: {self._failures_in_a_row} requests in a row failed, the last with: {reply.error}. "
                    "Run again later; answers received so far are kept and not paid again."
                )


def _row(chunk_id: str, article_id: str, article: str, reply: TeacherReply, teacher: Teacher) -> dict[str, Any]:
    status, reason, script = reply.status, reply.finish_reason, ""
    if status == "ok":
        script = reply.text.strip()
        problem = script_problem(script)
        if problem is not None:
            status, reason = "rejected", problem
    return {
        "chunk_text": article,
        "gemini_podcast_text": script,
        "gemini_length": len(script),
        "chunk_id": chunk_id,
        "article_id": article_id,
        "status": status,
        "finish_reason": reason,
        "model": teacher.model,
        "prompt_version": teacher.prompt_version,
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
        "thought_tokens": reply.thought_tokens,
        "latency_s": reply.latency_s,
        "attempts": reply.attempts,
        "cost_usd": reply.cost_usd,
    }


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same column types whether a value is there or not."""
    types = dict.fromkeys(_NUMBERS, "Int64") | dict.fromkeys(_DECIMALS, "float64")
    return frame.astype({name: types.get(name, "str") for name in TEACHER_COLUMNS})


def _total(column: pd.Series[int]) -> int | None:
    present: Sequence[int] = column.dropna().tolist()
    return sum(present) if present else None
