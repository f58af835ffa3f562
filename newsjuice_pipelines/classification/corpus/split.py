"""Splitting rows into train, validation, calibration and test. What leaks between the parts is measured in `overlap.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.clusters import find_clusters, label_disagreement
from newsjuice_pipelines.classification.corpus.division import LEFT_OUT, PARTS, random_parts, rank_of, temporal_parts
from newsjuice_pipelines.classification.corpus.shingles import letters_digest, letters_of
from newsjuice_pipelines.classification.corpus.split_config import SplitConfig, SplitError
from newsjuice_pipelines.classification.corpus.taxonomy import Taxonomy
from newsjuice_pipelines.runtime.reports import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PARTS",
    "PART_COLUMNS",
    "Split",
    "SplitConfig",
    "SplitError",
    "balanced_split",
    "group_key",
    "rank_of",
    "read_classes",
    "read_parents",
    "read_part",
    "read_split_facts",
    "write_split",
]

SPLIT = "split.json"
PART_COLUMNS = ("row_id", "text", "category", "label", "label_id", "group", "date")
HELD_OUT = PARTS[1:]


@dataclass(frozen=True)
class Split:
    """The four parts with `PART_COLUMNS`, the class names in the order of their ids, their parents, and what was counted."""

    parts: Mapping[str, pd.DataFrame]
    classes: tuple[str, ...]
    parents: tuple[str, ...]
    facts: Mapping[str, Any]


def group_key(text: str) -> str:
    """What texts share that differ in case, spacing, punctuation or width only. Texts without any letter keep themselves."""
    return letters_digest(letters_of(text)).hex()


def balanced_split(rows: pd.DataFrame, taxonomy: Taxonomy, config: SplitConfig) -> Split:
    """Draw up to `per_class` rows of every class and divide them; the same for any order of `rows`.

    Groups come from all rows with a class, drawn or not, so that both presets hold out the same rows. A class with one row
    only trains.

    Args:
        rows: columns `row_id`, `text`, `category`, and `date` (ISO, or empty) where there are dates; `section_counts` of
            texts that came with several sections, which bound the accuracy that can be reached.
        taxonomy: which class each `category` belongs to.
        config: what is drawn, and how it is divided.

    Raises:
        SplitError: fewer than two classes have rows, a part would be empty, or too few rows have a date.
    """
    known, facts = _labelled(rows, taxonomy)
    if config.order == "temporal":
        known, dateless = _dated(known)
        facts |= dateless
    if known["label"].nunique() < 2:
        raise SplitError(_why_too_few_classes(known, rows, taxonomy, facts, config))
    known["group"], cluster_facts = _groups(known, config)
    drawn = _draw(known, config)
    drawn["part"] = (temporal_parts if config.order == "temporal" else random_parts)(drawn, config)
    trained = set(drawn["label"][drawn["part"] == "train"])
    untrained = sorted(set(known["label"]) - trained)  # their rows all share groups with held-out rows of other classes
    in_order = drawn["part"] != LEFT_OUT
    divided = drawn[in_order & drawn["label"].isin(trained)]
    facts |= {"untrained_classes": untrained, "left_out_for_their_group": int((~in_order).sum())}
    if config.preset == "full":
        more, left_out = _all_others(known[known["label"].isin(trained)], drawn, config)
        facts["left_out_for_their_group"] += left_out.pop("for_their_group")
        facts |= left_out
        divided = _concat([divided, more])
    classes = tuple(sorted(trained))
    parts = {part: _part_frame(divided[divided["part"] == part], classes) for part in PARTS}
    empty = [part for part in PARTS if parts[part].empty]
    if empty:
        raise SplitError(_why_a_part_is_empty(empty[0], drawn, config, facts))
    facts |= _split_facts(parts, classes, taxonomy, known, config)
    facts["clusters"] = cluster_facts | _disagreement(known, taxonomy)
    return Split(parts, classes, tuple(taxonomy.parents[name] for name in classes), facts)


def write_split(split: Split, out: Path) -> dict[str, Any]:
    """Write one Parquet file a part and `split.json` (class order, parents and facts) to `out`."""
    for part, frame in split.parts.items():
        frame.to_parquet(out / f"{part}.parquet", index=False)
    facts = dict(split.facts)
    write_json(out / SPLIT, {"classes": list(split.classes), "parents": list(split.parents), **facts})
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


def read_split_facts(split_dir: Path) -> dict[str, Any]:
    """Classes, parents and everything that was counted when the split was made.

    Raises:
        SplitError: the folder holds no split.
    """
    path = split_dir / SPLIT
    if not path.is_file():
        raise SplitError(f"{split_dir} has no {SPLIT}: materialise the asset 'balanced_split' again.")
    try:
        return read_json(path)
    except json.JSONDecodeError:
        raise SplitError(f"{path} is no JSON: materialise the asset 'balanced_split' again.") from None


def read_classes(split_dir: Path) -> tuple[str, ...]:
    """Class names of a written split, in the order of their ids."""
    return tuple(read_split_facts(split_dir)["classes"])


def read_parents(split_dir: Path) -> tuple[str, ...]:
    """The parent of every class of a written split, in the order of `read_classes`."""
    facts = read_split_facts(split_dir)
    return tuple(facts.get("parents", facts["classes"]))


def _labelled(rows: pd.DataFrame, taxonomy: Taxonomy) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows with a class, sorted so that the order of `rows` plays no part, and the sections that the taxonomy does not know."""
    label_of = {category: taxonomy.class_of(category) for category in rows["category"].unique()}
    unknown = Counter({category: 0 for category, label in label_of.items() if label is None})
    unknown.update(rows["category"][rows["category"].isin(list(unknown))])
    known = rows[~rows["category"].isin(list(unknown))]
    known = known.assign(
        label=known["category"].map({category: label for category, label in label_of.items() if label is not None}),
        **{name: known[name] if name in known.columns else "" for name in ("date", "section_counts")},
    )
    columns = ["row_id", "text", "category", "label", "date", "section_counts"]
    ordered = known[columns].sort_values(["row_id", "category", "date"], ignore_index=True)
    return ordered, {"unknown_categories": dict(sorted(unknown.items())), "unknown_rows": unknown.total()}


def _dated(known: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows with a date, and what is lost with the others."""
    dated = known[known["date"] != ""].reset_index(drop=True)
    lost = sorted(set(known["label"]) - set(dated["label"]))
    return dated, {"rows_without_date": len(known) - len(dated), "classes_without_dates": lost}


def _groups(known: pd.DataFrame, config: SplitConfig) -> tuple[pd.Series, dict[str, Any]]:
    """The group of every row, named after its smallest row id or its letters, and how the groups were found."""
    import numpy as np
    import pandas as pd

    if config.grouping == "none":
        return known["row_id"].str[:16], {"grouping": "none"}
    if config.grouping == "exact":
        return known["text"].map(group_key).astype("str"), {"grouping": "exact"}
    clusters = find_clusters(list(known["text"]))
    _, firsts, places = np.unique(clusters.numbers, return_index=True, return_inverse=True)
    smallest = known["row_id"].str[:16].to_numpy()[firsts[places]]  # the rows are in the order of their ids
    return pd.Series(smallest, index=known.index, dtype="str"), {"grouping": "clusters", **clusters.facts}


def _disagreement(known: pd.DataFrame, taxonomy: Taxonomy) -> dict[str, Any]:
    """How far texts that read the same differ in their class; one that came with several sections counts for each time."""
    import numpy as np

    numbers, labels, texts = known["group"].factorize()[0], known["label"].to_numpy(), known["text"].to_numpy()
    once = (known["section_counts"] == "").to_numpy()
    rows = [(number, label, text, 1) for number, label, text in zip(numbers[once], labels[once], texts[once], strict=True)]
    for number, text, sections in zip(numbers[~once], texts[~once], known["section_counts"][~once], strict=True):
        times: Counter[str] = Counter()
        for section, count in json.loads(sections).items():
            label = taxonomy.class_of(section)
            if label is not None:
                times[label] += count
        rows += [(number, label, text, count) for label, count in sorted(times.items())]
    clusters, classes, writings, counts = zip(*rows, strict=True)
    return label_disagreement(np.array(clusters), classes, writings, counts)


def _draw(known: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """The lowest-ranked `per_class` rows of every class."""
    ranked = known.assign(rank=[rank_of(row_id, config.seed) for row_id in known["row_id"]])
    ranked = ranked.sort_values(["label", "rank"], kind="stable").drop(columns="rank")
    if config.per_class:
        ranked = ranked[ranked.groupby("label").cumcount() < config.per_class]
    return ranked.copy()


def _all_others(known: pd.DataFrame, drawn: pd.DataFrame, config: SplitConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    """Every row that was not drawn and may train, and how many may not.

    One may not when it is in a held-out group or, by date, no earlier than the first held-out row of its class.
    """
    others = known[~known.index.isin(drawn.index)]
    held_out = drawn[drawn["part"].isin(HELD_OUT)]
    apart = others[~others["group"].isin(set(held_out["group"]))]
    left_out = {"for_their_group": len(others) - len(apart)}
    if config.order == "temporal":
        future = held_out.groupby("label")["date"].min()
        past = apart[apart["date"] < apart["label"].map(future).fillna("9999")]
        left_out["left_out_as_too_late"] = len(apart) - len(past)
        apart = past
    return apart.assign(part="train"), left_out


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(frames)


def _part_frame(rows: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """Rows of a part, sorted by id, with the class's number."""
    label_ids = {label: number for number, label in enumerate(classes)}
    numbered = rows.assign(label_id=rows["label"].map(label_ids).astype("int64"))
    return numbered.sort_values(["row_id", "category", "date"], ignore_index=True)[list(PART_COLUMNS)]


def _split_facts(
    parts: Mapping[str, pd.DataFrame], classes: tuple[str, ...], taxonomy: Taxonomy, known: pd.DataFrame, config: SplitConfig
) -> dict[str, Any]:
    """Everything countable about a split."""
    counts = {part: frame["label"].value_counts() for part, frame in parts.items()}
    per_class = {label: {part: int(counts[part].get(label, 0)) for part in PARTS} for label in classes}
    available = {str(label): int(count) for label, count in known["label"].value_counts().sort_index().items()}
    sizes = _concat(list(parts.values()))["group"].value_counts()
    dates = {part: sorted(frame["date"][frame["date"] != ""].agg(["min", "max"])) for part, frame in parts.items()}
    row_count = sum(map(len, parts.values()))
    return {
        "taxonomy": taxonomy.version,
        "config": asdict(config),
        "class_count": len(classes),
        "parent_count": len({taxonomy.parents[label] for label in classes}),
        "row_count": row_count,
        "rows_per_part": {part: len(parts[part]) for part in PARTS},
        "rows_per_class": per_class,
        "available_rows": available,
        "undrawn_rows": len(known) - row_count,
        "short_classes": {label: count for label, count in available.items() if count < config.per_class},
        "classes_missing_from": {part: [label for label in classes if not per_class[label][part]] for part in HELD_OUT},
        "empty_classes": sorted(set(taxonomy.classes) - set(available)),
        "duplicate_groups": int((sizes > 1).sum()),
        "rows_in_duplicate_groups": int(sizes[sizes > 1].sum()),
        "dates_per_part": {part: days if all(isinstance(day, str) for day in days) else None for part, days in dates.items()},
    }


def _why_too_few_classes(
    known: pd.DataFrame, rows: pd.DataFrame, taxonomy: Taxonomy, facts: Mapping[str, Any], config: SplitConfig
) -> str:
    if config.order == "temporal" and facts["rows_without_date"]:
        return (
            f"order='temporal' needs dates: only {len(known)} of {len(known) + facts['rows_without_date']} rows have one, in "
            f"{known['label'].nunique()} class(es). Give a file with dates, or use order='random'."
        )
    return (
        f"Only {known['label'].nunique()} class of the taxonomy {taxonomy.version} has rows ({len(rows)} rows read, unknown "
        f"sections: {dict(list(facts['unknown_categories'].items())[:5])}). A classifier needs two: check the file and the "
        "taxonomy."
    )


def _why_a_part_is_empty(part: str, drawn: pd.DataFrame, config: SplitConfig, facts: Mapping[str, Any]) -> str:
    groups = drawn["group"].nunique()
    message = f"The part {part} would be empty: {len(drawn)} rows over {drawn['label'].nunique()} classes are too few to divide. "
    if groups < len(drawn) / 2:
        return message + (
            f"They are only {groups} different texts, up to near-duplicates, and a near-duplicate stays on one side. "
            "Give rows that differ more."
        )
    if config.order == "temporal":
        days = drawn["date"].nunique()
        return message + (
            f"They have {days} different dates ({facts['rows_without_date']} rows without one are left out), and a day is not "
            "divided. Give more rows with dates, or use order='random'."
        )
    return message + "Give more rows a class."
