"""The student's training data: teacher scripts as chat messages, split so that no article is on two sides.

What can be set is `dataset_config.py`, fitting a row to its token budget `chat.py`, grouping and dealing out `split.py`.
"""

from __future__ import annotations

import csv
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.training.chat import tokenizer_fingerprint, training_row
from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL, encode_example
from newsjuice_pipelines.podcast.training.dataset_config import DATASET_PRESETS, MIN_GROUPS, DatasetConfig, DatasetError
from newsjuice_pipelines.podcast.training.dataset_figures import LENGTHS_FILE, write_token_lengths
from newsjuice_pipelines.podcast.training.masked_rows import MASKED_ROWS_FILE, masked_rows
from newsjuice_pipelines.podcast.training.split import SPLITS, group_rows, rank, shared_between_sides, split_draws, split_groups
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.reports import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DATASET_COLUMNS",
    "DATASET_PRESETS",
    "DATASET_RECORD",
    "LEFT_OUT_FILE",
    "MIN_GROUPS",
    "SPLITS",
    "DatasetConfig",
    "DatasetError",
    "build_student_dataset",
    "read_dataset_record",
    "read_student_dataset",
    "rows_without_end",
]

logger = logging.getLogger("newsjuice.podcast")

DATASET_COLUMNS = ("chunk_id", "article_id", "chunk_text", "gemini_podcast_text", "prompt", "completion")
DATASET_RECORD = "dataset.json"
LEFT_OUT_FILE = "left_out.csv"

_SCRIPT_COLUMNS = ["chunk_id", "article_id", "chunk_text", "gemini_podcast_text", "status"]
_NAMED_ROWS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A script that is in no split, as `left_out.csv` lists it."""

    chunk_id: str
    article_id: str
    reason: str
    """`status …`, `repeated_chunk_id`, `over_row_limit`, `too_long` or `not_drawn`."""
    tokens: int | None = None
    """Of the whole row before any cut, for `too_long`."""


def build_student_dataset(scripts: pd.DataFrame, tokenizer: Any, config: DatasetConfig, out: Path) -> dict[str, Any]:
    """Write the three splits and what is to be seen of them into `out`; returns counts, token percentiles, leaked rows.

    Beside `train.parquet`, `validation.parquet` and `test.parquet`: `dataset.json` (configuration, and the tokenizer the rows
    were fitted with), `left_out.csv`, `masked_rows.md` and `token_lengths.png`.

    Args:
        scripts: teacher scripts (`TEACHER_COLUMNS`); only rows with status `ok` are used.
        tokenizer: the student's, with a chat template.
        config: limits, fractions and seed.
        out: an existing empty folder.

    Raises:
        DatasetError: no usable row, or fewer than three groups to split.
    """
    import pandas as pd

    left_out: list[LeftOut] = []
    usable = _usable_rows(scripts, config, left_out)
    rows = _fitting_rows(usable, tokenizer, config, left_out)
    if not rows:
        raise DatasetError(
            f"none of the {len(usable):,} scripts fits into max_tokens={config.max_tokens} with its article: raise max_tokens."
        )
    groups = group_rows(rows, config.near_duplicate_similarity)
    parts = {name: [rows[place] for place in places] for name, places in _split(rows, groups, config, left_out).items()}
    frames = {name: pd.DataFrame(part, columns=list(DATASET_COLUMNS)) for name, part in parts.items()}
    counts = {name: len(frame) for name, frame in frames.items()}
    tokens = _token_counts([row for part in parts.values() for row in part])
    for name, frame in frames.items():
        frame.to_parquet(out / f"{name}.parquet", index=False)
    _write_left_out(left_out, out / LEFT_OUT_FILE)
    examples = [(row["ids"], row["labels"]) for row in parts["train"]]
    (out / MASKED_ROWS_FILE).write_text(masked_rows(tokenizer, examples), encoding="utf-8")
    write_token_lengths(tokens, config.max_tokens, out / LENGTHS_FILE)
    record = {"tokenizer": tokenizer_fingerprint(tokenizer), "config": asdict(config), "rows": counts}
    write_json(out / DATASET_RECORD, record)
    logger.info("student dataset: %s, in %d groups", ", ".join(f"{count} {name}" for name, count in counts.items()), len(groups))
    return {
        "rows": counts,
        "groups": len(groups),
        "largest_group": max(map(len, groups)),
        "rows_in": len(scripts),
        "dropped": _counted(left_out),
        "too_long_chunk_ids": [row.chunk_id for row in left_out if row.reason == "too_long"][:_NAMED_ROWS],
        "articles_cut": sum(row["article_cut"] for part in parts.values() for row in part),
        "rows_without_end_token": sum(not _ends(row["labels"], tokenizer) for part in parts.values() for row in part),
        "leaked_rows": shared_between_sides(frames, config.near_duplicate_similarity).leaked_rows,
        "tokens": {name: _percentiles(values) for name, values in tokens.items()},
    }


def read_student_dataset(path: Path) -> dict[str, pd.DataFrame]:
    """The three splits by name, as `build_student_dataset` wrote them into `path`."""
    import pandas as pd

    return {name: pd.read_parquet(path / f"{name}.parquet") for name in SPLITS}


def read_dataset_record(path: Path) -> dict[str, Any]:
    """`tokenizer` (fingerprint), `config` and `rows` of the data set in `path`.

    Raises:
        DatasetError: the folder has no record.
    """
    if not (path / DATASET_RECORD).is_file():
        raise DatasetError(f"the data set in {path} has no {DATASET_RECORD}: materialise 'student_dataset' again.")
    return read_json(path / DATASET_RECORD)


def rows_without_end(frame: pd.DataFrame, tokenizer: Any) -> list[str]:
    """Chunk ids of the rows whose labels do not end with the tokenizer's end token, so that they do not teach to stop."""
    rows = zip(frame["chunk_id"], frame["prompt"], frame["completion"], strict=True)
    return [
        str(chunk_id)
        for chunk_id, prompt, completion in rows
        if not _ends(encode_example(tokenizer, list(prompt), list(completion))[1], tokenizer)
    ]


def _usable_rows(scripts: pd.DataFrame, config: DatasetConfig, left_out: list[LeftOut]) -> list[Row]:
    """The scripts that may be used, each chunk once, lowest ranked articles first."""
    values = scripts[_SCRIPT_COLUMNS].itertuples(index=False, name=None)
    records: list[Row] = [dict(zip(_SCRIPT_COLUMNS, row, strict=True)) for row in values]
    accepted = [row for row in records if row["status"] == "ok" or config.keep_failed_scripts]
    if not accepted:
        counts = dict(Counter(scripts["status"])) or "no rows at all"
        raise DatasetError(
            f"no teacher script has status 'ok' ({counts}): materialise 'teacher_scripts' again and look at its reasons."
        )
    if not config.keep_failed_scripts:
        left_out += [LeftOut(*_ids(row), f"status {row['status']}") for row in records if row["status"] != "ok"]
    # Of one chunk's rows the first by status and text is used, whatever the order of the table.
    accepted.sort(key=lambda row: (row["chunk_id"], row["status"] != "ok", row["chunk_text"], row["gemini_podcast_text"]))
    unique: dict[str, Row] = {}
    for row in accepted:
        if unique.setdefault(row["chunk_id"], row) is not row:
            left_out.append(LeftOut(*_ids(row), "repeated_chunk_id"))
    return sorted(unique.values(), key=lambda row: (rank(config.seed, "row", row["article_id"]), row["chunk_id"]))


def _fitting_rows(usable: Sequence[Row], tokenizer: Any, config: DatasetConfig, left_out: list[LeftOut]) -> list[Row]:
    """Rows with `prompt` and `completion`, until the row limit is reached; random draws choose later."""
    limit = len(usable) if config.random_draws else config.row_limit
    rows: list[Row] = []
    progress = Progress("student dataset", len(usable), "rows")
    for row in usable:
        if len(rows) >= limit:
            left_out.append(LeftOut(*_ids(row), "over_row_limit"))
        else:
            texts = row["chunk_text"], row["gemini_podcast_text"]
            fitted = training_row(*texts, tokenizer, config.max_tokens if config.fit_articles else None, config.prompt_version)
            if fitted is None:
                whole = training_row(*texts, tokenizer, None, config.prompt_version)
                left_out.append(LeftOut(*_ids(row), "too_long", len(whole.ids) if whole else None))
            else:
                rows.append({**row, **vars(fitted)})
        progress.advance()
    return rows


def _split(
    rows: Sequence[Row], groups: Sequence[Sequence[int]], config: DatasetConfig, left_out: list[LeftOut]
) -> dict[str, list[int]]:
    """Places in `rows` by split."""
    if not config.random_draws:
        return split_groups(groups, [row["chunk_id"] for row in rows], config)
    draws = random.Random(config.seed).choices(range(len(rows)), k=min(config.row_limit, len(rows)))
    left_out += [LeftOut(*_ids(rows[place]), "not_drawn") for place in sorted(set(range(len(rows))) - set(draws))]
    return split_draws(draws, config)


def _token_counts(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Tokens of prompt, completion and both, a number for each row."""
    prompt = [row["labels"].count(IGNORED_LABEL) for row in rows]
    total = [len(row["ids"]) for row in rows]
    return {"prompt": prompt, "completion": [whole - part for whole, part in zip(total, prompt, strict=True)], "total": total}


def _ends(labels: Sequence[int], tokenizer: Any) -> bool:
    return bool(labels) and labels[-1] == tokenizer.eos_token_id


def _ids(row: Row) -> tuple[str, str]:
    return row["chunk_id"], row["article_id"]


def _counted(left_out: Sequence[LeftOut]) -> dict[str, Any]:
    counts = Counter(row.reason for row in left_out)
    status = {reason.removeprefix("status "): count for reason, count in sorted(counts.items()) if reason.startswith("status ")}
    reasons = ("repeated_chunk_id", "over_row_limit", "too_long", "not_drawn")
    return {"status": status, **{reason: counts[reason] for reason in reasons}}


def _write_left_out(left_out: Sequence[LeftOut], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(item.name for item in fields(LeftOut))
        writer.writerows(sorted(astuple(row) for row in left_out))


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    """Nearest-rank percentiles."""
    ordered = sorted(values)
    return {f"p{share}": ordered[-(-len(ordered) * share // 100) - 1] for share in (50, 95)} | {"max": ordered[-1]}
