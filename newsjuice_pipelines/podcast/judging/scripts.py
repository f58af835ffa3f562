"""Scripts of a model for the rows of the student data set, one CSV; a run that was cut off goes on where it stopped."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from newsjuice_pipelines.podcast.engines import Engine, Request, Result
from newsjuice_pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.scripts")

ScriptColumn = Literal["student_podcast_text", "qwen_podcast_text"]
LENGTH_COLUMN: dict[str, str] = {"student_podcast_text": "student_length", "qwen_podcast_text": "qwen_length"}
SPLITS = ("train", "validation", "test")
SCRIPTS_FILE = "scripts.csv"
PARTIAL_ROWS = "rows.jsonl"


class ScriptsError(ValueError):
    """Scripts cannot be generated from, or read out of, what was given."""


@dataclass(frozen=True)
class GenerationConfig:
    """How scripts are generated. Decoding is always greedy."""

    max_new_tokens: int = 400
    """Tokens after which a script is cut."""
    row_limit: int = 0
    """Most rows of each split; 0 takes all."""
    request_window: int = 64
    """Rows handed to the engine at a time."""


def generate_scripts(
    dataset: Path,
    splits: Sequence[str],
    engine: Engine,
    config: GenerationConfig,
    scratch: Path,
    column: ScriptColumn = "student_podcast_text",
) -> pd.DataFrame:
    """Generate a script for each row of some splits.

    Every finished row is on disk in `scratch` before the next one is waited for; rows found there are not generated
    again. Rows that ended in an error are kept in the table (with an empty script) and tried again by a later run.

    Args:
        dataset: folder of the student data set.
        splits: of `train`, `validation`, `test`.
        engine: runs the model.
        config: limits.
        scratch: keeps finished rows; belongs to one model, data set and configuration.
        column: name of the script's column: the tuned student's or the untuned base's.

    Returns:
        One row a prompt, in the order of the data set: `chunk_id, article_id, split, chunk_text, gemini_podcast_text,
        <column>, gemini_length, <student_length|qwen_length>` (characters), `finish_reason, prompt_tokens, new_tokens,
        ttft_s, latency_s, engine, error`.
    """
    import pandas as pd

    rows = _read_rows(dataset, splits, config.row_limit)
    done = read_partial_rows(scratch / PARTIAL_ROWS)
    todo = [row for row in rows if row["chunk_id"] not in done]
    capabilities = engine.capabilities()
    logger.info("%d scripts to write with %s, %d kept from an earlier run", len(todo), capabilities.engine, len(rows) - len(todo))
    progress = Progress("scripts", len(rows), "scripts", done=len(rows) - len(todo))
    requests = [Request(row["chunk_id"], row["prompt"], config.max_new_tokens) for row in todo]
    with (scratch / PARTIAL_ROWS).open("a", encoding="utf-8") as stream:
        for start in range(0, len(requests), config.request_window):
            for result in engine.generate(requests[start : start + config.request_window]):
                entry = _entry(result, capabilities.engine)
                done[result.request_id] = entry
                if result.finish_reason != "error":
                    stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                progress.advance(note=f"{sum(1 for kept in done.values() if kept['finish_reason'] == 'error')} errors")
    table = []
    for row in rows:
        entry = done[row["chunk_id"]]
        table.append(
            {
                **{name: row[name] for name in ("chunk_id", "article_id", "split", "chunk_text", "gemini_podcast_text")},
                column: entry["text"],
                "gemini_length": len(row["gemini_podcast_text"]),
                LENGTH_COLUMN[column]: len(entry["text"]),
                **{
                    name: entry[name]
                    for name in ("finish_reason", "prompt_tokens", "new_tokens", "ttft_s", "latency_s", "engine", "error")
                },
            }
        )
    return pd.DataFrame(table)


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
    entries = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    return {entry["request_id"]: entry for entry in entries}


def write_scripts_csv(scripts: pd.DataFrame, out: Path) -> Path:
    """Write `scripts` as `out/scripts.csv` in one step: a reader sees the whole file or none."""
    target = out / SCRIPTS_FILE
    temporary = target.with_suffix(".tmp")
    # Every text in quotes: unquoted, a lone carriage return inside an article would end its row.
    scripts.to_csv(temporary, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    os.replace(temporary, target)
    return target


def read_scripts_csv(folder: Path) -> pd.DataFrame:
    """The scripts of an artefact folder. Texts stay texts: an empty script is an empty string, not a missing value."""
    import pandas as pd

    path = folder / SCRIPTS_FILE
    if not path.is_file():
        raise ScriptsError(f"{folder} has no {SCRIPTS_FILE}: materialise the scripts again.")
    numbers = ["gemini_length", "student_length", "qwen_length", "prompt_tokens", "new_tokens", "ttft_s", "latency_s"]
    missing = {name: [""] for name in numbers}
    return pd.read_csv(path, keep_default_na=False, na_values=missing, dtype={"chunk_id": str, "article_id": str})


def scripts_facts(scripts: pd.DataFrame) -> dict[str, Any]:
    """Counts by split and finish reason, new tokens, median and 95th percentile of the latency (None when not measured)."""
    latency = scripts["latency_s"].dropna()
    return {
        "scripts": len(scripts),
        "by_split": {str(name): int(count) for name, count in scripts["split"].value_counts().items()},
        "by_finish_reason": {str(name): int(count) for name, count in scripts["finish_reason"].value_counts().items()},
        "new_tokens": int(scripts["new_tokens"].sum()),
        "latency_p50_s": float(latency.quantile(0.5)) if len(latency) else None,
        "latency_p95_s": float(latency.quantile(0.95)) if len(latency) else None,
        "engine": ", ".join(sorted(set(scripts["engine"]))),
    }


def _read_rows(dataset: Path, splits: Sequence[str], row_limit: int) -> list[dict[str, Any]]:
    import pandas as pd

    unknown = sorted(set(splits) - set(SPLITS))
    if unknown or not splits:
        raise ScriptsError(f"splits {list(splits)} are not splits of the student data set: choose of {', '.join(SPLITS)}.")
    rows: list[dict[str, Any]] = []
    for split in splits:
        table = pd.read_parquet(dataset / f"{split}.parquet")
        taken = table.head(row_limit) if row_limit else table
        for record in taken.to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            rows.append({**row, "split": split, "prompt": list(row["prompt"])})
    repeated = len(rows) - len({row["chunk_id"] for row in rows})
    if repeated:
        raise ScriptsError(f"{repeated} chunk_ids of {', '.join(splits)} are there more than once: make the data set again.")
    if not rows:
        raise ScriptsError(f"the splits {', '.join(splits)} have no rows: make the student data set again.")
    return rows


def _entry(result: Result, engine: str) -> dict[str, Any]:
    entry = {**asdict(result), "new_tokens": result.new_tokens, "engine": engine}
    del entry["tokens"]
    return entry
