"""What must hold for a split on disk, as pure functions: counts a class, nothing on two sides, schema.

Each returns one sentence a problem; what a problem stops is its caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.schemas import part_schema, schema_problems
from newsjuice_pipelines.classification.corpus.split import PARTS, read_part, read_split_facts
from newsjuice_pipelines.classification.corpus.split_config import SplitConfig, quotas

if TYPE_CHECKING:
    import pandas as pd

# Large groups cannot always be divided by the row: so far a class may miss its share, in rows and as a share of it.
SLACK_ROWS = 2
SLACK_SHARE = 0.05
NAMES_SHOWN = 5


def split_problems(split_dir: Path) -> dict[str, list[str]]:
    """All problems of a written split, by `counts`, `sides` and `schema`; three empty lists when it is as promised.

    Raises:
        SplitError: the folder holds no whole split.
    """
    facts = read_split_facts(split_dir)
    parts = {part: read_part(split_dir, part) for part in PARTS}
    schema = [
        f"{part}: {problem}" for part, frame in parts.items() for problem in schema_problems(frame, part_schema(facts["classes"]))
    ]
    if schema:  # the other questions need the columns
        return {"schema": schema, "sides": [], "counts": []}
    return {"schema": [], "sides": side_problems(parts), "counts": count_problems(parts, facts)}


def side_problems(parts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Texts, rows and groups of duplicates that are in more than one part."""
    import pandas as pd

    rows = pd.concat([frame.assign(part=part) for part, frame in parts.items()], ignore_index=True)
    problems = []
    for column, what in (("row_id", "rows"), ("text", "texts"), ("group", "groups of near-duplicates")):
        shared = rows.groupby(column)["part"].nunique() > 1
        if shared.any():
            problems.append(f"{int(shared.sum())} {what} are in more than one part.")
    return problems


def count_problems(parts: Mapping[str, pd.DataFrame], facts: Mapping[str, Any]) -> list[str]:
    """Whether every class has the rows that the configuration in `facts` promises, and no part is empty.

    `balanced`: drawn rows are the smaller of `per_class` and what there is, and the held-out parts have their shares of
    them. `full`: the same held-out parts, and at least as many training rows. By date: order in time, and rows in every part.
    """
    config = SplitConfig(**facts["config"])
    problems = [f"The part {part} has no rows." for part in PARTS if parts[part].empty]
    if config.order == "temporal":
        return problems + _time_problems(parts)
    counts = {part: frame["label"].value_counts() for part, frame in parts.items()}
    for label in facts["classes"]:
        found = {part: int(counts[part].get(label, 0)) for part in PARTS}
        available = facts["available_rows"][label]
        drawn = min(config.per_class or available, available)
        if config.preset == "balanced" and sum(found.values()) != drawn:
            problems.append(f"{label} has {sum(found.values())} rows; {drawn} were to be drawn.")
        if config.preset == "full" and not drawn <= sum(found.values()) <= available:
            problems.append(f"{label} has {sum(found.values())} rows; at least {drawn} and at most {available} were to be.")
        for part, promised in quotas(drawn, config).items():
            slack = max(SLACK_ROWS, SLACK_SHARE * promised)
            if not promised - slack <= found[part] <= promised:
                problems.append(f"{label} has {found[part]} rows in {part}; {promised} were promised.")
    return problems


def _time_problems(parts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Classes whose parts do not follow each other in time."""
    mixed: set[str] = set()
    latest: dict[str, str] = {}
    for part in PARTS:
        days = parts[part].groupby("label")["date"].agg(["min", "max"])
        for label, first, last in days.itertuples():
            if label in latest and first <= latest[label]:
                mixed.add(str(label))
            latest[str(label)] = max(latest.get(label, ""), last)
    if not mixed:
        return []
    names = ", ".join(sorted(mixed)[:NAMES_SHOWN])
    return [f"In {len(mixed)} classes a later part holds rows that are not later than an earlier part's: {names}."]
