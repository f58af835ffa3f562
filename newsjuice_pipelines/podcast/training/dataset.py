"""The student's training data: teacher scripts as chat messages, split so that no article is on two sides.

Rows that belong together (one article, one text, or nearly one text) form a group, and whole groups are dealt out.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.training.chat import Message, token_count, training_messages
from newsjuice_pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.podcast")

DATASET_COLUMNS = ("chunk_id", "article_id", "chunk_text", "gemini_podcast_text", "prompt", "completion")
SPLITS = ("train", "validation", "test")
MIN_GROUPS = 3  # one for each split

_SHINGLE_WORDS = 5
_SHARED_SHINGLES = 0.5  # of the shorter text: above it two texts are taken for versions of one
_COMMON_SHINGLE_ROWS = 20  # a passage in more rows than this is boilerplate (a footer, a byline), no sign of a copy


class DatasetError(ValueError):
    """The teacher's scripts do not make a data set."""


@dataclass(frozen=True)
class DatasetConfig:
    """How teacher scripts become training rows."""

    max_tokens: int = 1024
    """Tokens of prompt and script together; the article is cut to fit, the script never."""
    validation_fraction: float = 0.1
    """Part of the rows that chooses the checkpoint."""
    test_fraction: float = 0.1
    """Part of the rows that is kept for the final evaluation; the rest is for training."""
    row_limit: int = 2000
    """Most rows used, all splits together; the lowest ranked articles by hash are taken."""
    seed: int = 42
    """Decides the order of the rows and the split."""

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) <= 0 or sum(fractions) > 0.5:
            raise DatasetError(
                f"validation_fraction={fractions[0]} and test_fraction={fractions[1]} do not work: both must be above 0 and "
                "together at most 0.5."
            )
        if self.max_tokens < 1 or self.row_limit < MIN_GROUPS:
            raise DatasetError(
                f"max_tokens={self.max_tokens}, row_limit={self.row_limit} do not work: at least 1 token and {MIN_GROUPS} rows."
            )


@dataclass
class _Rows:
    """Usable rows, and what happened to the others."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=lambda: {"prompt": [], "completion": [], "total": []})
    too_long: list[str] = field(default_factory=list)
    over_row_limit: int = 0
    articles_cut: int = 0


def build_student_dataset(scripts: pd.DataFrame, tokenizer: Any, config: DatasetConfig, out: Path) -> dict[str, Any]:
    """Write `train.parquet`, `validation.parquet` and `test.parquet` into `out`; returns counts and token percentiles.

    Args:
        scripts: teacher scripts (`TEACHER_COLUMNS`); only rows with status `ok` are used.
        tokenizer: the student's, with a chat template.
        config: limits, fractions and seed.
        out: an existing empty folder.

    Raises:
        DatasetError: no usable row, or fewer than three groups to split.
    """
    import pandas as pd

    accepted = scripts[scripts["status"] == "ok"]
    if accepted.empty:
        counts = dict(Counter(scripts["status"])) or "no rows at all"
        raise DatasetError(
            f"no teacher script has status 'ok' ({counts}): materialise 'teacher_scripts' again and look at its reasons."
        )
    unique = accepted.sort_values("chunk_id", kind="stable").drop_duplicates("chunk_id")
    kept = _fit_rows(unique, tokenizer, config)
    if not kept.rows:
        raise DatasetError(
            f"none of the {len(unique):,} scripts fits into max_tokens={config.max_tokens} with its article: raise max_tokens."
        )
    groups = group_rows(kept.rows)
    parts = split_groups(groups, [row["chunk_id"] for row in kept.rows], config)
    for name in SPLITS:
        frame = pd.DataFrame([kept.rows[index] for index in parts[name]], columns=list(DATASET_COLUMNS))
        frame.to_parquet(out / f"{name}.parquet", index=False)
    rows = {name: len(parts[name]) for name in SPLITS}
    counted = ", ".join(f"{count} {name}" for name, count in rows.items())
    logger.info("student dataset: %s rows in %d groups", counted, len(groups))
    return {
        "rows": rows,
        "groups": len(groups),
        "rows_in": len(scripts),
        "dropped": {
            "status": {str(status): count for status, count in sorted(Counter(scripts["status"]).items()) if status != "ok"},
            "repeated_chunk_id": len(accepted) - len(unique),
            "over_row_limit": kept.over_row_limit,
            "too_long": len(kept.too_long),
        },
        "too_long_chunk_ids": kept.too_long,
        "articles_cut": kept.articles_cut,
        "tokens": {name: _percentiles(values) for name, values in kept.tokens.items()},
    }


def read_student_dataset(path: Path) -> dict[str, pd.DataFrame]:
    """The three splits by name, as `build_student_dataset` wrote them into `path`."""
    import pandas as pd

    return {name: pd.read_parquet(path / f"{name}.parquet") for name in SPLITS}


def group_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of `rows` that must stay together: same article, same text, or texts that share half of their passages."""
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(members: Iterable[int]) -> None:
        first, *others = members
        for other in others:
            parent[root(other)] = root(first)

    same: dict[tuple[str, str], list[int]] = defaultdict(list)
    words = [re.findall(r"\w+", row["chunk_text"].casefold()) for row in rows]
    for index, row in enumerate(rows):
        same["article", row["article_id"]].append(index)
        same["text", " ".join(words[index])].append(index)
    for members in same.values():
        join(members)
    for pair in _near_duplicates(words):
        join(pair)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(rows)):
        groups[root(index)].append(index)
    return list(groups.values())


def split_groups(groups: Sequence[Sequence[int]], ids: Sequence[str], config: DatasetConfig) -> dict[str, list[int]]:
    """Deal whole groups into train, validation and test by a hash of their ids; each split gets at least one group.

    The result depends on the set of ids and the seed alone, not on the order of the rows.
    """
    if len(groups) < MIN_GROUPS:
        raise DatasetError(
            f"the {len(ids):,} usable scripts come from only {len(groups)} independent article(s), and a split needs at least "
            f"{MIN_GROUPS}: materialise more days of 'teacher_scripts', or raise the sample size."
        )
    keyed = sorted((_rank(config.seed, "split", min(ids[index] for index in group)), list(group)) for group in groups)
    targets = {
        "test": max(1, round(len(ids) * config.test_fraction)),
        "validation": max(1, round(len(ids) * config.validation_fraction)),
    }
    parts: dict[str, list[list[int]]] = {name: [] for name in SPLITS}
    for _, group in keyed:
        fitting = (name for name, target in targets.items() if sum(map(len, parts[name])) + len(group) <= target)
        parts[next(fitting, "train")].append(group)
    for name in SPLITS:
        if not parts[name]:  # groups too large for this split, or too few: the smallest spare one serves
            donor = max(parts.values(), key=len)
            smallest = min(donor, key=len)
            donor.remove(smallest)
            parts[name].append(smallest)
    return {
        name: sorted(
            (index for group in parts[name] for index in group), key=lambda index: _rank(config.seed, "order", ids[index])
        )
        for name in SPLITS
    }


def _fit_rows(scripts: pd.DataFrame, tokenizer: Any, config: DatasetConfig) -> _Rows:
    """Rows as chat messages, lowest ranked articles first, until the row limit is reached."""
    kept = _Rows()
    columns = ["chunk_id", "article_id", "chunk_text", "gemini_podcast_text"]
    records: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in scripts[columns].itertuples(index=False)]
    records.sort(key=lambda row: (_rank(config.seed, "row", row["article_id"]), row["chunk_id"]))
    progress = Progress("student dataset", len(records), "rows")
    for row in records:
        if len(kept.rows) >= config.row_limit:
            kept.over_row_limit += 1
        else:
            messages = training_messages(row["chunk_text"], row["gemini_podcast_text"], tokenizer, config.max_tokens)
            if messages is None:
                kept.too_long.append(row["chunk_id"])
            else:
                _keep(kept, row, *messages, tokenizer)
        progress.advance()
    return kept


def _keep(kept: _Rows, row: Mapping[str, Any], prompt: list[Message], completion: list[Message], tokenizer: Any) -> None:
    kept.rows.append({**row, "prompt": prompt, "completion": completion})
    kept.articles_cut += len(prompt[-1]["content"].split()) < len(row["chunk_text"].split())
    prompt_tokens = token_count(prompt, tokenizer, for_generation=True)
    total = token_count([*prompt, *completion], tokenizer)
    for name, value in (("prompt", prompt_tokens), ("completion", total - prompt_tokens), ("total", total)):
        kept.tokens[name].append(value)


def _near_duplicates(words: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Pairs of texts that share at least half of the shorter one's five-word passages; boilerplate does not count."""
    where: dict[int, list[int]] = defaultdict(list)
    sizes: list[int] = []
    for index, text in enumerate(words):
        shingles = {hash(tuple(text[start : start + _SHINGLE_WORDS])) for start in range(len(text) - _SHINGLE_WORDS + 1)}
        sizes.append(len(shingles))
        for shingle in shingles:
            where[shingle].append(index)
    shared: Counter[tuple[int, int]] = Counter()
    for members in where.values():
        if 1 < len(members) <= _COMMON_SHINGLE_ROWS:
            shared.update((first, second) for place, first in enumerate(members) for second in members[place + 1 :])
    return [pair for pair, count in shared.items() if count >= _SHARED_SHINGLES * min(sizes[pair[0]], sizes[pair[1]])]


def _rank(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{name}".encode()).digest()[:8])


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    """Nearest-rank percentiles."""
    ordered = sorted(values)
    return {f"p{share}": ordered[-(-len(ordered) * share // 100) - 1] for share in (50, 95)} | {"max": ordered[-1]}
