"""Scripts of a model for the rows of the student data set, one CSV; a run that was cut off goes on where it stopped."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from newsjuice_pipelines.podcast.engines import Engine, EngineOptions, Request, Result
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt
from newsjuice_pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.scripts")

ScriptColumn = Literal["student_podcast_text", "qwen_podcast_text"]
LENGTH_COLUMN: dict[str, str] = {"student_podcast_text": "student_length", "qwen_podcast_text": "qwen_length"}
SPLITS = ("train", "validation", "test")
SCRIPTS_FILE = "scripts.csv"
PARTIAL_ROWS = "rows.jsonl"
ROW_COLUMNS = ("chunk_id", "article_id", "split")
DATASET_TEXTS = ("chunk_id", "article_id", "chunk_text", "gemini_podcast_text")
# Those of the original experiment's CSV, and the student's length, which it did not have.
ORIGINAL_COLUMNS = (
    *("chunk_text", "gemini_podcast_text", "qwen_podcast_text", "student_podcast_text"),
    *("gemini_length", "qwen_length", "student_length"),
)
MEASURES = ("finish_reason", "prompt_tokens", "new_tokens", "ttft_s", "latency_s", "engine", "error")
NUMBERS = ("gemini_length", "student_length", "qwen_length", "prompt_tokens", "new_tokens", "ttft_s", "latency_s")
PARTIAL_KEYS = frozenset(("request_id", "text", *MEASURES))
NO_ANSWER = "the engine ended without an answer to this row: look at its log, then run again"
# How errors begin that the same model meets again at each run. The first one is given here, the other one by the engines.
NO_ROOM = "no room in the model's context"
UNKNOWN_IDS = "the prompt has ids beyond the model's"
# A quota and a limit on the size of files end a write as a full disk does.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ScriptsError(ValueError):
    """Scripts cannot be generated from, read out of, or written to what was given."""


@dataclass(frozen=True)
class GenerationConfig:
    """How scripts are generated. Decoding is greedy unless a temperature is set; it stops at the end token."""

    max_new_tokens: int = 400
    """Tokens after which a script is cut."""
    row_limit: int = 0
    """Most rows of each split; 0 takes all."""
    temperature: float = 0.0
    """Above 0, tokens are drawn at random; 0 takes the most probable one."""
    repetition_penalty: float = 1.0
    """Divides the scores of tokens that came before; 1 leaves them alone."""
    seed: int = 42
    """Of the random draws; without a temperature it changes nothing."""
    concurrent_requests: int = 0
    """Scripts written at once; 0 is the engine's default."""
    prompt_lookup_tokens: int = 0
    """Tokens guessed ahead from the article and checked in one pass, which keeps the text, but for rounding where weights are
    quantised; 0 switches it off."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ScriptsError(
                f"max_new_tokens is {self.max_new_tokens}: give at least 1; a script of 300 words takes about 400."
            )
        if self.row_limit < 0:
            raise ScriptsError(f"row_limit is {self.row_limit}: give the most rows of a split, or 0 for all.")
        if self.concurrent_requests < 0:
            raise ScriptsError(
                f"concurrent_requests is {self.concurrent_requests}: give at least 1, or 0 for the engine's default."
            )
        self.options()  # checks the rest

    def options(self) -> EngineOptions:
        """What the engine must be opened with, so that it decodes as this configuration says."""
        shared = {item.name for item in fields(EngineOptions)} & {item.name for item in fields(self)}
        values = {name: getattr(self, name) for name in shared}
        return EngineOptions(**{**values, "concurrent_requests": self.concurrent_requests or None})


def generate_scripts(
    dataset: Path,
    splits: Sequence[str],
    engine: Engine,
    config: GenerationConfig,
    scratch: Path,
    column: ScriptColumn = "student_podcast_text",
    *,
    tokenizer: Any,
) -> pd.DataFrame:
    """Generate a script for each row of some splits.

    The engine gets all rows at once, so that a place in its batch never stays empty. Every finished row is on disk in
    `scratch` before the next one is waited for; rows found there are not generated again. Rows that ended in an error are
    kept in the table (with an empty script) and tried again by a later run. A prompt without room in the model's context is
    such a row, and the engine is not asked for it.

    Args:
        dataset: folder of the student data set.
        splits: of `train`, `validation`, `test`.
        engine: runs the model; opened with `config.options()`.
        config: limits.
        scratch: keeps finished rows; belongs to one model, data set and configuration.
        column: name of the script's column: the tuned student's or the untuned base's.
        tokenizer: the model's own, which encodes the prompts as training did.

    Returns:
        One row a prompt, in the order of the data set: `ROW_COLUMNS`, `ORIGINAL_COLUMNS` (lengths in characters; script and
        length of the model that `column` does not name are missing) and `MEASURES`.

    Raises:
        ScriptsError: splits that do not exist, repeat a row or lack a text, before anything is generated; or no room left on
            the disk, when finished rows are kept.
    """
    rows = _read_rows(dataset, splits, config.row_limit)
    done = read_partial_rows(scratch / PARTIAL_ROWS)
    todo = [row for row in rows if row["chunk_id"] not in done]
    can = engine.capabilities()
    name = can.engine
    logger.info("%d scripts to write with %s, %d kept from an earlier run", len(todo), name, len(rows) - len(todo))
    requests = []
    for row in todo:
        request = Request(row["chunk_id"], tuple(encode_prompt(tokenizer, row["prompt"])), config.max_new_tokens)
        refused = _without_room(request, can.context_tokens)
        if refused is None:
            requests.append(request)
        else:
            done[request.request_id] = _entry(refused, name)
    progress = Progress("scripts", len(rows), "scripts", done=len(rows) - len(requests), per_minute=True)
    waiting = {request.request_id: len(request.tokens) for request in requests}
    reasons = Counter(entry["finish_reason"] for entry in done.values())
    answers = engine.generate(requests) if requests else iter(())
    with _partial_file(scratch / PARTIAL_ROWS) as stream, _closing(answers) as results:
        for result in results:
            if waiting.pop(result.request_id, None) is None:
                logger.warning("%s answered %s twice or unasked: the answer is left out", name, result.request_id)
                continue
            entry = done[result.request_id] = _entry(result, name)
            reasons[result.finish_reason] += 1
            if result.finish_reason != "error":
                _append(stream, entry, scratch)
            progress.advance(note=f"{reasons['error']} errors, {reasons['length']} cut off")
    for request_id, prompt_tokens in waiting.items():
        lost = Result(request_id, (), "", "error", prompt_tokens, None, None, NO_ANSWER)
        done[request_id] = _entry(lost, name)
    _warn(rows, done, config.max_new_tokens)
    return _table(rows, done, column)


def reuse_finished_rows(published: pd.DataFrame, scratch: Path, column: ScriptColumn = "student_podcast_text") -> int:
    """Put the finished rows of published scripts into an empty `scratch`, so that only those with an error are tried again.

    Only for scripts of the same model, data set and configuration. A scratch folder that holds rows is left as it is.

    Returns:
        How many rows were put there.
    """
    path = scratch / PARTIAL_ROWS
    if path.exists() and path.stat().st_size:
        return 0
    entries = []
    for row in published[published["finish_reason"] != "error"].astype(object).to_dict("records"):
        known = {name: None if row[name] != row[name] else row[name] for name in MEASURES}
        entries.append({"request_id": row["chunk_id"], "text": row[column], **known, "error": None})
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    with _room(scratch, len(entries)):
        path.write_text(lines, encoding="utf-8")
    return len(entries)


def read_partial_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Finished rows by request id. A last line that a crash tore is cut off the file, so that the next one starts clean."""
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        logger.warning("the last row of %s was torn by a crash and is generated again", path.name)
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    lines = [line for line in whole.split(b"\n") if line]
    rows = [row for row in map(_partial_row, lines) if row is not None]
    entries = {row["request_id"]: row for row in rows}
    damaged = len(lines) - len(rows)
    if damaged:
        logger.warning("%d rows of %s are damaged and are generated again", damaged, path.name)
    return entries


def write_scripts_csv(scripts: pd.DataFrame, out: Path) -> Path:
    """Write `scripts` as `out/scripts.csv` in one step: a reader sees the whole file or none."""
    target = out / SCRIPTS_FILE
    temporary = target.with_suffix(".tmp")
    try:
        with _room(out, len(scripts)):
            # Every text in quotes: unquoted, a lone carriage return inside an article would end its row.
            scripts.to_csv(temporary, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def read_scripts_csv(folder: Path) -> pd.DataFrame:
    """The scripts of an artefact folder. Texts stay texts: an empty script is an empty string, not a missing value.

    The script of a model that did not write this file is missing, as is its length.
    """
    import pandas as pd

    path = folder / SCRIPTS_FILE
    if not path.is_file():
        raise ScriptsError(f"{folder} has no {SCRIPTS_FILE}: materialise the scripts again.")
    texts = dict.fromkeys(set(pd.read_csv(path, nrows=0).columns) - set(NUMBERS), str)
    scripts = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in NUMBERS}, dtype=texts)
    for column, length in LENGTH_COLUMN.items():
        if column in scripts and length in scripts:
            scripts[column] = scripts[column].astype(object).where(scripts[length].notna(), None)
    return scripts


def side_by_side(student: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """One table with the scripts of teacher, base and student, in the order of `student`: `ROW_COLUMNS`, `ORIGINAL_COLUMNS`,
    and the measures of both models (`student_latency_s`, `qwen_latency_s` and so on).

    Raises:
        ScriptsError: a row of `student` has no base script.
    """
    other = base.set_index("chunk_id")
    missing = [key for key in student["chunk_id"] if key not in other.index]
    if missing:
        raise ScriptsError(f"{len(missing)} rows have no base script, such as {missing[0]}: generate both for the same splits.")
    table = student[[*ROW_COLUMNS, *ORIGINAL_COLUMNS]].copy()
    matching = other.loc[student["chunk_id"]]
    for name in ("qwen_podcast_text", "qwen_length"):
        table[name] = matching[name].to_numpy()
    for prefix, source in (("student", student), ("qwen", matching)):
        for name in MEASURES:
            table[f"{prefix}_{name}"] = source[name].to_numpy()
    return table


def scripts_facts(scripts: pd.DataFrame) -> dict[str, Any]:
    """Counts by split and finish reason, new tokens, median and 95th percentile of the latency (None when not measured).

    `retryable_errors` counts the rows whose error may pass by itself: another run is worth its time for these only.
    """
    latency = scripts["latency_s"].dropna()
    errors = scripts.loc[scripts["finish_reason"] == "error", "error"]
    return {
        "scripts": len(scripts),
        "by_split": {str(name): int(count) for name, count in scripts["split"].value_counts().items()},
        "by_finish_reason": {str(name): int(count) for name, count in scripts["finish_reason"].value_counts().items()},
        "retryable_errors": sum(passes_by_itself(str(error)) for error in errors),
        "new_tokens": int(scripts["new_tokens"].sum()),
        "latency_p50_s": float(latency.quantile(0.5)) if len(latency) else None,
        "latency_p95_s": float(latency.quantile(0.95)) if len(latency) else None,
        "engine": ", ".join(sorted(set(scripts["engine"]))),
    }


def passes_by_itself(error: str) -> bool:
    """Whether a row that ended in `error` may get a script from the same model, data set and configuration."""
    return not error.startswith((NO_ROOM, UNKNOWN_IDS))


def _without_room(request: Request, context_tokens: int) -> Result | None:
    """The error result of a prompt that leaves no room for a whole answer; None where there is room."""
    prompt_tokens = len(request.tokens)
    if prompt_tokens + request.max_new_tokens <= context_tokens:
        return None
    error = (
        f"{NO_ROOM}: {prompt_tokens} prompt tokens and {request.max_new_tokens} new ones exceed its {context_tokens} tokens; "
        "shorten the article or ask for fewer new tokens"
    )
    return Result(request.request_id, (), "", "error", prompt_tokens, None, None, error)


def _partial_row(line: bytes) -> dict[str, Any] | None:
    """The finished row that a line holds; None where it holds none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not row.keys() >= PARTIAL_KEYS:
        return None
    return row if all(isinstance(row[name], str) for name in ("request_id", "text", "finish_reason")) else None


def _read_rows(dataset: Path, splits: Sequence[str], row_limit: int) -> list[dict[str, Any]]:
    import pandas as pd

    unknown = sorted(set(splits) - set(SPLITS))
    if unknown or not splits:
        raise ScriptsError(f"splits {list(splits)} are not splits of the student data set: choose of {', '.join(SPLITS)}.")
    rows: list[dict[str, Any]] = []
    for split in splits:
        table = pd.read_parquet(dataset / f"{split}.parquet")
        absent = [name for name in (*DATASET_TEXTS, "prompt") if name not in table]
        if absent:
            raise ScriptsError(f"the split {split} has no column {', '.join(absent)}: make the student data set again.")
        taken = table.head(row_limit) if row_limit else table
        for number, record in enumerate(taken.to_dict("records")):
            row = {str(name): value for name, value in record.items()}
            wrong = _wrong_value(row)
            if wrong:
                raise ScriptsError(f"row {number} of the split {split} {wrong}: make the student data set again.")
            rows.append({**row, "split": split, "prompt": list(row["prompt"])})
    repeated = len(rows) - len({row["chunk_id"] for row in rows})
    if repeated:
        raise ScriptsError(f"{repeated} chunk_ids of {', '.join(splits)} are there more than once: make the data set again.")
    if not rows:
        raise ScriptsError(f"the splits {', '.join(splits)} have no rows: make the student data set again.")
    return rows


def _wrong_value(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row of the data set; None when it can be generated and written."""
    for name in DATASET_TEXTS:
        if not isinstance(row[name], str):
            return f"(chunk_id {row['chunk_id']!r}) has no text in {name}, but {row[name]!r}"
    prompt = row["prompt"]
    messages = list(prompt) if hasattr(prompt, "__iter__") else []
    texts = [message.get(part) for message in messages if isinstance(message, Mapping) for part in ("role", "content")]
    if messages and len(texts) == 2 * len(messages) and all(isinstance(text, str) for text in texts):
        return None
    return f"(chunk_id {row['chunk_id']!r}) has no prompt of messages with a role and a content"


def _table(rows: Sequence[Mapping[str, Any]], done: Mapping[str, Mapping[str, Any]], column: str) -> pd.DataFrame:
    import pandas as pd

    table = []
    for row in rows:
        entry = done[row["chunk_id"]]
        texts = {"chunk_text": row["chunk_text"], "gemini_podcast_text": row["gemini_podcast_text"], column: entry["text"]}
        lengths = {"gemini_length": len(row["gemini_podcast_text"]), LENGTH_COLUMN[column]: len(entry["text"])}
        table.append(
            {
                **{name: row[name] for name in ROW_COLUMNS},
                **{name: {**texts, **lengths}.get(name) for name in ORIGINAL_COLUMNS},
                **{name: entry[name] for name in MEASURES},
            }
        )
    return pd.DataFrame(table)


def _warn(rows: Sequence[Mapping[str, Any]], done: Mapping[str, Mapping[str, Any]], max_new_tokens: int) -> None:
    """Say in the log what a reader of the scripts must know: rows without one, and scripts that never ended."""
    entries = [done[row["chunk_id"]] for row in rows]
    failed = [entry for entry in entries if entry["finish_reason"] == "error"]
    if failed:
        logger.warning("%d of %d rows have no script; the first says: %s", len(failed), len(entries), failed[0]["error"])
    cut = sum(1 for entry in entries if entry["finish_reason"] == "length")
    if cut:
        logger.warning("%d of %d scripts did not end within %d tokens and are cut off", cut, len(entries), max_new_tokens)


def _entry(result: Result, engine: str) -> dict[str, Any]:
    entry = {**asdict(result), "new_tokens": result.new_tokens, "engine": engine}
    del entry["tokens"]
    # Half of a surrogate pair, which a server's JSON can hold, is no text that a file can hold.
    return {**entry, "text": result.text.encode("utf-8", "replace").decode("utf-8")}


@contextmanager
def _partial_file(path: Path) -> Iterator[int]:
    """A file to append rows to, unbuffered: what a full disk refused is not written again by closing it."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _closing(results: Iterator[Result]) -> Iterator[Iterator[Result]]:
    """The results of an engine; leaving them half-way stops the engine's work on the others."""
    try:
        yield results
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()


def _append(file: int, entry: Mapping[str, Any], scratch: Path) -> None:
    """Write one row and wait until it is on disk. A row that finds no room leaves no part of itself."""
    start = os.fstat(file).st_size
    left = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8")
    with _room(scratch, None):
        try:
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, start)
            raise


@contextmanager
def _room(folder: Path, scripts: int | None) -> Iterator[None]:
    """Turns a full disk into an error that says where; `scripts` are the ones that it was about."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        what = "a finished script" if scripts is None else f"{scripts} scripts"
        raise ScriptsError(
            f"no room left in {folder} for {what} ({error.strerror}): free some space and run again; the scripts finished "
            "before are kept."
        ) from error
