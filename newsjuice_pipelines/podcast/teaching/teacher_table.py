"""The table of teacher scripts: its columns, its CSV, and what is counted over it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.teaching.script_filters import filters_version, script_problem
from newsjuice_pipelines.podcast.teaching.teacher import STATUSES, Teacher, TeacherReply

if TYPE_CHECKING:
    import pandas as pd

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
    "cached_tokens",
    "mode",
)
SCRIPTS_FILE = "scripts.csv"

_NUMBERS = ("gemini_length", "input_tokens", "cached_tokens", "output_tokens", "thought_tokens", "attempts")
_DECIMALS = ("latency_s", "cost_usd")
_NUL = "\x00"


def judged(reply: TeacherReply, article: str) -> TeacherReply:
    """The reply with what the script filters of today say of its text; as it is when they have judged it before."""
    version = filters_version()
    if reply.status != "ok" or reply.judged_by == version:
        return reply
    return replace(reply, judged_by=version, problem=script_problem(_script(reply), article))


def teacher_table(
    chunks: pd.DataFrame, keys: Sequence[str], replies: Mapping[str, TeacherReply], teacher: Teacher
) -> pd.DataFrame:
    """One row a chunk, in the order of `chunks`; a script that the filters refuse keeps its row, with status `rejected`.

    Args:
        chunks: `chunk_id`, `article_id` and `text`.
        keys: the request key of each row of `chunks`.
        replies: by key, for every key.
        teacher: who was asked.
    """
    import pandas as pd

    rows = []
    for chunk_id, article_id, article, key in zip(chunks["chunk_id"], chunks["article_id"], chunks["text"], keys, strict=True):
        reply = judged(replies[key], article)
        script = _script(reply)
        rows.append(
            {
                "chunk_text": article,
                "gemini_podcast_text": script,
                "gemini_length": len(script),
                "chunk_id": chunk_id,
                "article_id": article_id,
                "status": reply.status if reply.problem is None else "rejected",
                "finish_reason": reply.problem or reply.finish_reason,
                "model": teacher.model,
                "prompt_version": teacher.prompt_version,
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "thought_tokens": reply.thought_tokens,
                "latency_s": reply.latency_s,
                "attempts": reply.attempts,
                "cost_usd": reply.cost_usd,
                "cached_tokens": reply.cached_tokens,
                "mode": reply.mode,
            }
        )
    return _typed(pd.DataFrame(rows, columns=list(TEACHER_COLUMNS)))


def write_teacher_csv(scripts: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Write `scripts.csv` into `out`; returns what `summarize_scripts` counts."""
    scripts.to_csv(out / SCRIPTS_FILE, index=False, columns=list(TEACHER_COLUMNS), lineterminator="\n")
    return summarize_scripts(scripts)


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


def summarize_scripts(scripts: pd.DataFrame) -> dict[str, Any]:
    """Counts by status and reason, words, tokens, latency (seconds) and cost (US dollars) of teacher scripts.

    `cost_usd` is the cost of the rows, whichever run paid for them; None when it is not known for any row that was answered.
    """
    accepted = scripts[scripts["status"] == "ok"]
    words = [len(text.split()) for text in accepted["gemini_podcast_text"]]
    counted = Counter(scripts["status"])
    answered = scripts[~scripts["status"].isin(["failed", "not_asked"])]
    latency, cost = scripts["latency_s"].dropna(), answered["cost_usd"].dropna()
    reasons = Counter(scripts.loc[scripts["status"] != "ok", ["status", "finish_reason"]].itertuples(index=False, name=None))
    return {
        "rows": len(scripts),
        "ok": len(accepted),
        "status": {status: counted[status] for status in STATUSES if counted[status]},
        "not_ok_reasons": {f"{status}: {reason}": count for (status, reason), count in sorted(reasons.items())},
        "words_p50": float(statistics.median(words)) if words else None,
        "words_max": max(words, default=None),
        "input_tokens": _total(scripts["input_tokens"]),
        "cached_tokens": _total(scripts["cached_tokens"]),
        "output_tokens": _total(scripts["output_tokens"]),
        "thought_tokens": _total(scripts["thought_tokens"]),
        "latency_p50_s": float(latency.quantile(0.5)) if len(latency) else None,
        "latency_p95_s": float(latency.quantile(0.95)) if len(latency) else None,
        "cost_usd": float(cost.sum()) if len(cost) == len(answered) else None,
        "rows_without_cost": len(answered) - len(cost),
    }


def _script(reply: TeacherReply) -> str:
    return reply.text.strip().replace(_NUL, "")


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same column types whether a value is there or not."""
    types = dict.fromkeys(_NUMBERS, "Int64") | dict.fromkeys(_DECIMALS, "float64")
    return frame.astype({name: types.get(name, "str") for name in TEACHER_COLUMNS})


def _total(column: pd.Series[int]) -> int | None:
    present: Sequence[int] = column.dropna().tolist()
    return sum(present) if present else None
