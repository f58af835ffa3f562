"""Splitting rows into train, validation, calibration and test. What leaks between the parts is measured in `overlap.py`."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.taxonomy import Taxonomy
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "validation", "calibration", "test")
SPLIT = "split.json"
PART_COLUMNS = ("row_id", "text", "category", "label", "label_id", "group")


class SplitError(ValueError):
    """The rows cannot be split as asked, or a split on disk is not whole."""


@dataclass(frozen=True)
class SplitConfig:
    """How many rows of a class are drawn and how they are divided."""

    per_class: int = 1000
    """Most rows a class, drawn by seed; 0 takes every row."""
    test_fraction: float = 0.2
    """Share of a class's drawn rows held out as the test part; 0.2 is the original's 80/20."""
    validation_fraction: float = 0.1
    """Share of the training side that selects the checkpoint."""
    calibration_fraction: float = 0.1
    """Share of the training side that fits temperature and thresholds."""
    group_duplicates: bool = True
    """Keep texts that differ only in case, spacing or punctuation on one side; off reproduces the original's leak."""
    seed: int = 42
    """Seed of the draw and of the division."""

    def __post_init__(self) -> None:
        if self.per_class < 0:
            raise SplitError(f"per_class is {self.per_class}; it must be 0 (every row) or more.")
        for name in ("test_fraction", "validation_fraction", "calibration_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise SplitError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.validation_fraction + self.calibration_fraction >= 1:
            raise SplitError("validation_fraction and calibration_fraction together leave no training rows; lower them.")


@dataclass(frozen=True)
class Split:
    """The four parts with `PART_COLUMNS`, the class names in the order of their ids, and what was counted."""

    parts: Mapping[str, pd.DataFrame]
    classes: tuple[str, ...]
    facts: Mapping[str, Any]


def group_key(text: str) -> str:
    """What near-identical texts share: letters and digits only, in lower case. Texts without any keep themselves."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(character for character in folded if character.isalnum())
    return hashlib.sha1((letters or text).encode(), usedforsecurity=False).hexdigest()[:16]


def balanced_split(rows: pd.DataFrame, taxonomy: Taxonomy, config: SplitConfig) -> Split:
    """Draw up to `per_class` rows of every class and divide them; the same for any order of `rows`.

    Each class is divided on its own (stratified), whole duplicate groups at a time. A class with one row only trains.

    Raises:
        SplitError: fewer than two classes have rows, or a part would be empty.
    """
    known, unknown = _labelled(rows, taxonomy)
    drawn, available = _draw(known, config)
    if len(available) < 2:
        raise SplitError(
            f"Only {len(available)} class of the taxonomy {taxonomy.version} has rows ({len(rows)} rows read, unknown sections: "
            f"{dict(list(unknown.items())[:5])}). A classifier needs two: check the file and the taxonomy."
        )
    part_of_group = _divide(drawn, config)
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for row in drawn:
        parts[part_of_group[row["group"]]].append(row)
    classes = tuple(sorted({row["label"] for row in parts["train"]}))
    untrained = sorted(set(available) - set(classes))
    if untrained:  # their rows all share groups with rows of other classes that are held out
        for part in PARTS:
            parts[part] = [row for row in parts[part] if row["label"] not in untrained]
    empty = [part for part in PARTS if not parts[part]]
    if empty:
        raise SplitError(
            f"The part {empty[0]} would be empty: {len(drawn)} rows over {len(available)} classes are too few to divide. "
            "Give more rows a class."
        )
    facts = _split_facts(parts, classes, taxonomy, available, config)
    facts |= {"unknown_categories": unknown, "unknown_rows": sum(unknown.values()), "untrained_classes": untrained}
    return Split({part: _part_frame(parts[part], classes) for part in PARTS}, classes, facts)


def write_split(split: Split, out: Path) -> dict[str, Any]:
    """Write one Parquet file a part and `split.json` (class order and facts) to `out`."""
    for part, frame in split.parts.items():
        frame.to_parquet(out / f"{part}.parquet", index=False)
    facts = dict(split.facts)
    write_json(out / SPLIT, {"classes": list(split.classes), **facts})
    return facts


def read_part(split_dir: Path, part: str) -> pd.DataFrame:
    """One part of a written split.

    Raises:
        SplitError: the part is unknown or was not written.
    """
    import pandas as pd

    path = split_dir / f"{part}.parquet"
    if part not in PARTS or not path.is_file():
        raise SplitError(f"{split_dir} holds no part {part!r}: materialise the asset 'balanced_split' again.")
    return pd.read_parquet(path)


def read_classes(split_dir: Path) -> tuple[str, ...]:
    """Class names of a written split, in the order of their ids."""
    path = split_dir / SPLIT
    if not path.is_file():
        raise SplitError(f"{split_dir} has no {SPLIT}: materialise the asset 'balanced_split' again.")
    return tuple(json.loads(path.read_text(encoding="utf-8"))["classes"])


def count_shared(split_dir: Path) -> dict[str, int]:
    """How many texts, and how many groups of duplicates, occur in more than one part."""
    import pandas as pd

    rows = pd.concat([read_part(split_dir, part).assign(part=part) for part in PARTS], ignore_index=True)
    return {column: int((rows.groupby(column)["part"].nunique() > 1).sum()) for column in ("text", "group")}


def rank_of(row_id: str, seed: int) -> bytes:
    """A row's place in the seeded draw; depends on nothing but its id and the seed."""
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()


def _labelled(rows: pd.DataFrame, taxonomy: Taxonomy) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows with a class, and the counted sections that the taxonomy does not know."""
    label_of = {category: taxonomy.class_of(category) for category in rows["category"].unique()}
    unknown: Counter[str] = Counter()
    known = []
    for row_id, text, category in zip(rows["row_id"], rows["text"], rows["category"], strict=True):
        label = label_of[category]
        if label is None:
            unknown[category] += 1
        else:
            known.append({"row_id": row_id, "text": text, "category": category, "label": label})
    return known, dict(sorted(unknown.items()))


def _draw(rows: Iterable[dict[str, Any]], config: SplitConfig) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The lowest-ranked `per_class` rows of every class with their group, and the available rows of every class."""
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_class[row["label"]].append(row)
    drawn = []
    for label in sorted(by_class):
        ranked = sorted(by_class[label], key=lambda row: rank_of(row["row_id"], config.seed))
        drawn += ranked[: config.per_class or None]
    for row in drawn:
        row["group"] = group_key(row["text"]) if config.group_duplicates else row["row_id"]
    return drawn, {label: len(by_class[label]) for label in sorted(by_class)}


def _quotas(count: int, config: SplitConfig) -> dict[str, int]:
    """Rows of a class in each held-out part: rounded shares, at least one where the class can spare it."""
    test = max(1, round(count * config.test_fraction)) if count >= 2 else 0
    side = count - test
    validation = max(1, round(side * config.validation_fraction)) if side >= 2 else 0
    calibration = max(1, round(side * config.calibration_fraction)) if side - validation >= 2 else 0
    return {"test": test, "calibration": calibration, "validation": validation}


def _divide(drawn: list[dict[str, Any]], config: SplitConfig) -> dict[str, str]:
    """Group → part. Classes take turns by name; a group that an earlier class placed counts against a later one's quota."""
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for row in drawn:
        members[row["label"]][row["group"]] += 1
    part_of: dict[str, str] = {}
    for label in sorted(members):
        left = _quotas(members[label].total(), config)
        for group, count in members[label].items():
            if part_of.get(group, "train") != "train":
                left[part_of[group]] -= count
        ranked = sorted(members[label], key=lambda group: rank_of(group, config.seed + 1))
        for group in ranked:
            if group in part_of:
                continue
            count = members[label][group]
            part_of[group] = next((part for part, free in left.items() if free >= count), "train")
            if part_of[group] != "train":
                left[part_of[group]] -= count
    return part_of


def _part_frame(rows: list[dict[str, Any]], classes: tuple[str, ...]) -> pd.DataFrame:
    """Rows of a part, sorted by id, with the class's number."""
    import pandas as pd

    label_ids = {label: number for number, label in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: row["row_id"])
    return pd.DataFrame([{**row, "label_id": label_ids[row["label"]]} for row in ordered], columns=list(PART_COLUMNS))


def _split_facts(
    parts: Mapping[str, list[dict[str, Any]]],
    classes: tuple[str, ...],
    taxonomy: Taxonomy,
    available: Mapping[str, int],
    config: SplitConfig,
) -> dict[str, Any]:
    """Everything countable about a split."""
    per_class = {label: dict.fromkeys(PARTS, 0) for label in classes}
    for part in PARTS:
        for row in parts[part]:
            per_class[row["label"]][part] += 1
    groups = Counter(row["group"] for part in PARTS for row in parts[part])
    return {
        "taxonomy": taxonomy.version,
        "config": asdict(config),
        "class_count": len(classes),
        "row_count": sum(len(rows) for rows in parts.values()),
        "rows_per_part": {part: len(parts[part]) for part in PARTS},
        "rows_per_class": per_class,
        "available_rows": dict(available),
        "undrawn_rows": sum(max(0, count - config.per_class) for count in available.values()) if config.per_class else 0,
        "short_classes": {label: count for label, count in available.items() if count < config.per_class},
        "classes_missing_from": {part: [label for label in classes if not per_class[label][part]] for part in PARTS[1:]},
        "empty_classes": sorted(set(taxonomy.classes) - set(available)),
        "duplicate_groups": sum(1 for count in groups.values() if count > 1),
        "rows_in_duplicate_groups": sum(count for count in groups.values() if count > 1),
    }
