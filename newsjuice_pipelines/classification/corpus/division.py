"""Which part every drawn row goes to: whole groups by seed, or whole days by date.

Which rows are drawn, and what is counted, is `split.py`'s business.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING

from newsjuice_pipelines.classification.corpus.split_config import SplitConfig, quotas

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "validation", "calibration", "test")
HELD_OUT = ("test", "calibration", "validation")  # in the order in which they are filled
LEFT_OUT = ""


def rank_of(row_id: str, seed: int) -> bytes:
    """A row's place in the seeded draw; depends on nothing but its id and the seed."""
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()


def random_parts(drawn: pd.DataFrame, config: SplitConfig) -> pd.Series:
    """The part of every row. Each class is divided on its own, whole groups at a time, in the order of their ranks.

    Groups with rows of several classes come first, each to a part drawn by the shares, so that the test part does not
    collect them. The other groups then fill what is left, so that a class has its share exactly unless its groups are too
    large for it.
    """
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(drawn["group"], drawn["label"], strict=True):
        members[group][label] += 1
    left = {label: quotas(int(count), config) for label, count in drawn["label"].value_counts().items()}
    part_of: dict[str, str] = {}
    for group in sorted(members, key=lambda group: (len(members[group]) == 1, rank_of(group, config.seed + 1))):
        counts = members[group]
        wanted = HELD_OUT if len(counts) == 1 else (_drawn_part(group, config),)
        part = next((part for part in wanted if all(left[name].get(part, 0) >= counts[name] for name in counts)), "train")
        part_of[group] = part
        if part != "train":
            for name, count in counts.items():
                left[name][part] -= count
    return drawn["group"].map(part_of)


def _drawn_part(group: str, config: SplitConfig) -> str:
    """A part drawn for the group, with the shares of the configuration."""
    place = int.from_bytes(rank_of(group, config.seed + 2)[:6]) / 2**48
    side = 1 - config.test_fraction
    shares = (config.test_fraction, side * config.calibration_fraction, side * config.validation_fraction)
    return next((part for part, end in zip(HELD_OUT, accumulate(shares), strict=True) if place < end), "train")


def temporal_parts(drawn: pd.DataFrame, config: SplitConfig) -> pd.Series:
    """The part of every row: in each class train lies before validation, calibration and test, in this order, day by day.

    A day is never divided. A group whose rows fall into several parts keeps those in the earliest one; the others are left
    out (`LEFT_OUT`), since they would repeat what was trained on.
    """
    import pandas as pd

    parts = pd.Series(LEFT_OUT, index=drawn.index, dtype="str")
    for _, rows in drawn.groupby("label", sort=True):
        shares = quotas(len(rows), config)
        train = len(rows) - sum(shares.values())
        ends, end = {}, 0
        for part, share in (("train", train), ("validation", shares["validation"]), ("calibration", shares["calibration"])):
            end += share
            ends[part] = end
        per_day = rows.groupby("date", sort=True).size()
        before = per_day.cumsum() - per_day
        day_part = before.map(lambda count, ends=ends: next((part for part, end in ends.items() if count < end), "test"))
        parts.loc[rows.index] = rows["date"].map(day_part)
    number = parts.map({part: place for place, part in enumerate(PARTS)})
    earliest = number.groupby(drawn["group"]).transform("min")
    return parts.where(number == earliest, LEFT_OUT)
