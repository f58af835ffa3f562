"""Which rows belong together, dealing them to the sides of the split, and the proof that nothing is on two sides.

The proof shares nothing with the grouping but the definition of a near-duplicate: it compares all pairs, without an index.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.text.near_duplicates import NearDuplicates, shingles, words
from newsjuice_pipelines.podcast.training.dataset_config import MIN_GROUPS, DatasetConfig, DatasetError

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
_PAIRS_AT_ONCE = 2_000_000  # about 100 MB


@dataclass(frozen=True)
class SplitProof:
    """What two sides of a split share; a clean split shares nothing."""

    articles: list[str]
    """Ids of articles with rows on two sides."""
    pairs: list[tuple[str, str, float]]
    """Near-duplicates on two sides: chunk id on the earlier side, chunk id on the later one, Jaccard similarity."""
    leaked_rows: int
    """Validation and test rows whose article or near-duplicate is in train, and test rows shared with validation."""


def group_rows(rows: Sequence[Mapping[str, Any]], similarity: float) -> list[list[int]]:
    """Indices of `rows` that must stay together: one article, one text, or near-duplicates, all of it passed on.

    Args:
        rows: `article_id` and `chunk_text`.
        similarity: Jaccard similarity of the three-word shingles from which two texts are near-duplicates.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    held = NearDuplicates(similarity)
    first: dict[tuple[str, str], int] = {}
    links: list[tuple[int, int]] = []
    for index, row in enumerate(rows):
        text = " ".join(words(row["chunk_text"]))
        if ("text", text) not in first:
            links += [(index, int(other)) for other in held.near(str(index), text)]
        links += [(index, first.setdefault(same, index)) for same in (("article", row["article_id"]), ("text", text))]
    ends = tuple(zip(*links, strict=True))
    linked = coo_array(([True] * len(links), ends), shape=(len(rows), len(rows)))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(connected_components(linked, directed=False)[1]):
        groups[int(label)].append(index)
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
    keyed = sorted((rank(config.seed, "split", min(ids[index] for index in group)), list(group)) for group in groups)
    targets = _held_out_rows(len(ids), config)
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
            (index for group in parts[name] for index in group), key=lambda index: rank(config.seed, "order", ids[index])
        )
        for name in SPLITS
    }


def split_draws(draws: Sequence[int], config: DatasetConfig) -> dict[str, list[int]]:
    """Defect D6: deal rows out one by one, in the random order in which they were drawn."""
    if len(draws) < MIN_GROUPS:
        raise DatasetError(f"{len(draws)} rows cannot be split: materialise more days of 'teacher_scripts'.")
    targets = _held_out_rows(len(draws), config)
    test, held_out = targets["test"], targets["test"] + targets["validation"]
    return {"train": list(draws[held_out:]), "validation": list(draws[test:held_out]), "test": list(draws[:test])}


def shared_between_sides(frames: Mapping[str, pd.DataFrame], similarity: float) -> SplitProof:
    """All articles and all near-duplicate pairs that are on two sides of a split, by exact comparison of all pairs.

    No such pair and no such article means that no cluster is torn, since a cluster is tied together by nothing else.

    Args:
        frames: the splits by name, with `chunk_id`, `article_id` and `chunk_text`.
        similarity: Jaccard similarity of the three-word shingles from which two texts are near-duplicates.
    """
    sides = [frames[name] for name in SPLITS]
    incidence = _incidence([text for frame in sides for text in frame["chunk_text"]])
    articles = [article for frame in sides for article in frame["article_id"]]
    chunks = [chunk for frame in sides for chunk in frame["chunk_id"]]
    pairs: dict[tuple[str, str], float] = {}
    leaked: set[int] = set()
    shared_articles: set[str] = set()
    start = len(sides[0])
    for frame in sides[1:]:
        stop = start + len(frame)
        earlier_articles = set(articles[:start])
        for row in range(start, stop):
            if articles[row] in earlier_articles:
                leaked.add(row)
                shared_articles.add(articles[row])
        for earlier, later, overlap in _similar_pairs(incidence, start, stop, similarity):
            leaked.add(later)
            pairs[chunks[earlier], chunks[later]] = round(overlap, 4)
        start = stop
    ordered = sorted(((*ends, overlap) for ends, overlap in pairs.items()), key=lambda pair: (-pair[2], pair))
    return SplitProof(sorted(shared_articles), ordered, len(leaked))


def rank(seed: int, purpose: str, name: str) -> int:
    """A place in an order that depends on the seed, the purpose and the name only."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{name}".encode()).digest()[:8])


def _held_out_rows(rows: int, config: DatasetConfig) -> dict[str, int]:
    return {
        "test": max(1, round(rows * config.test_fraction)),
        "validation": max(1, round(rows * config.validation_fraction)),
    }


def _incidence(texts: Sequence[str]) -> Any:
    """Which text has which shingle: a sparse matrix of ones, texts x distinct shingles."""
    import numpy as np
    from scipy.sparse import csr_array

    columns: dict[str, int] = {}
    rows = [{columns.setdefault(shingle, len(columns)) for shingle in shingles(text)} for text in texts]
    starts = np.cumsum([0, *map(len, rows)])
    places = np.fromiter((column for row in rows for column in row), dtype=np.int64, count=starts[-1])
    return csr_array((np.ones(len(places), dtype=np.int32), places, starts), shape=(len(texts), len(columns)))


def _similar_pairs(incidence: Any, start: int, stop: int, similarity: float) -> list[tuple[int, int, float]]:
    """`(earlier, later, Jaccard)` of the rows before `start` and those from `start` to `stop` that reach `similarity`."""
    import numpy as np

    sizes = np.diff(incidence.indptr)
    earlier = incidence[:start].T.tocsr()
    block_rows = max(1, _PAIRS_AT_ONCE // max(1, start))
    found: list[tuple[int, int, float]] = []
    for first in range(start, stop, block_rows):
        shared = (incidence[first : min(first + block_rows, stop)] @ earlier).tocoo()
        overlaps = shared.data / (sizes[first + shared.row] + sizes[shared.col] - shared.data)
        near = overlaps >= similarity
        later_rows, earlier_rows = first + shared.row[near], shared.col[near]
        found += zip(earlier_rows.tolist(), later_rows.tolist(), overlaps[near].tolist(), strict=True)
    return found
