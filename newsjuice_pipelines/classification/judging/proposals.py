"""Taxonomy proposals: sections that were renamed, sections that overlap for other reasons, and labels that name a format.

Reads an audit and dates, proposes; a person decides. The curve over the number of classes is `class_curve.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.classification.corpus.taxonomy import Taxonomy
from newsjuice_pipelines.classification.judging.label_problems import Audited, merged

if TYPE_CHECKING:
    import numpy as np

RENAMED, SAME_TIME, YEARS_UNKNOWN = "renamed", "at the same time", "years not known"

OVERLAP = 0.2
"""From here on two sections overlap: confused at 20 % of the rate at which labels drawn by lot between the two would be. On real
headlines the sections known to be renamed lie at 0.22 to 0.51, 99 % of all pairs below 0.19. The limit was put between the two on
that very sample: on other texts, or by a better model than the linear one, which lowers all of them, it may lie elsewhere."""
TIMES_APART = 0.15
"""At most this share of two sections' rows in common quarters is a renaming: the month of the change is shared by both."""
MIN_DATED_ROWS = 50
"""Fewer dated rows than this say nothing about a section's years."""
MIN_DATED_SHARE = 0.5
"""A section with fewer dated rows may have its other years among the undated ones."""
MIN_SECTION_ROWS = 50
"""Sections with fewer rows are not judged: their confusions are a handful of rows."""
FORMAT_SPREAD = 0.5
"""A format label's misread rows go to as many sections as an even spread over half of the others would reach."""
FORMAT_SIZE = 0.5
"""Topics with fewer than half the median topic's rows are found badly because they are rare, and are not flagged."""
FORMAT_F1 = 0.65
"""A format label is found at most at 65 % of the median topic's F1. Chosen on a sample of real headlines, like the other limits
on formats: the report shows by how much every section is inside or outside of them."""
NAMED_MEMBERS = 3
SEPARATOR = " / "


@dataclass(frozen=True)
class Proposal:
    """What an audit proposes: `groups` are the classes of the new taxonomy, each a tuple of sections in alphabetical order;
    `pairs` the overlapping pairs with their kind; `formats` the measures of every section, `flagged` the format labels.
    """

    groups: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    parents: Mapping[str, str]
    pairs: Sequence[Mapping[str, Any]]
    formats: Sequence[Mapping[str, Any]]
    flagged: tuple[str, ...]


def chance_overlap(joint: np.ndarray) -> np.ndarray:
    """How far two classes are one: 0 when never confused, 1 when labels between the two are drawn by lot, whatever their sizes.

    With shares r and s of the two classes, labels drawn by lot put rs / (r + s) of all rows into each of the two cells off the
    diagonal; the geometric mean of the joint's cells is divided by that. So a rare class that a model takes for a common one
    does not overlap with it: confusion must go both ways. The diagonal is 1.
    """
    import numpy as np

    sizes = np.maximum(joint.sum(axis=1), 1e-12)
    by_lot = np.outer(sizes, sizes) / (sizes[:, None] + sizes[None, :])
    overlap = np.clip(np.sqrt(joint * joint.T) / by_lot, 0.0, 1.0)
    np.fill_diagonal(overlap, 1.0)
    return np.asarray(overlap)


def propose(audited: Audited, merge: str = "renamed", parent_count: int = 8) -> Proposal:
    """Classes, parents and flags from the audit of the sections.

    Args:
        audited: the audit by `category`; its rows need `date` (ISO text or empty).
        merge: "renamed" joins sections that overlap and whose years do not; "overlapping" joins all that overlap. Format labels
            are never joined.
        parent_count: how many parents the classes are brought under at most.
    """
    import numpy as np

    overlap = chance_overlap(audited.joint)
    quarters = [_quarters(audited, number) for number in range(len(audited.names))]
    sizes = np.bincount(audited.given, minlength=len(audited.names))
    pairs: list[dict[str, Any]] = []
    joined = np.zeros_like(overlap)
    for one in range(len(audited.names)):
        for other in range(one + 1, len(audited.names)):
            if min(sizes[one], sizes[other]) < MIN_SECTION_ROWS:
                continue
            kind, shared = _kind(quarters[one], quarters[other], int(sizes[one]), int(sizes[other]))
            if merge == "overlapping" or kind == RENAMED:
                joined[one, other] = joined[other, one] = overlap[one, other]
            if overlap[one, other] >= OVERLAP:
                pairs.append(
                    {
                        "sections": [audited.names[one], audited.names[other]],
                        "overlap": round(float(overlap[one, other]), 4),
                        "kind": kind,
                        "shared_time": None if shared is None else round(shared, 4),
                        "years": [_years(quarters[one]), _years(quarters[other])],
                    }
                )
    formats = format_measures(_topics(audited, overlap))
    flagged = tuple(sorted(section for entry in formats if entry["format"] for section in entry["sections"]))
    for number, name in enumerate(audited.names):
        if name in flagged:  # it borders on every topic, and belongs to none
            joined[number, :] = joined[:, number] = 0.0
    pairs.sort(key=lambda pair: (-pair["overlap"], pair["sections"]))
    groups = group_sections(audited.names, joined, OVERLAP)
    names = tuple(_name(group, audited, quarters) for group in groups)
    enough = float(np.median(sizes)) >= MIN_SECTION_ROWS  # else the confusions are noise, and so would the parents be
    parents = _parents(audited, groups, names, parent_count) if enough else {}
    return Proposal(groups, names, parents, pairs, formats, flagged)


def group_sections(names: Sequence[str], overlap: np.ndarray, least: float) -> tuple[tuple[str, ...], ...]:
    """Sections joined from the most alike down while their mean overlap is at least `least`; a chain is not enough."""
    from scipy.cluster.hierarchy import fcluster

    numbers = fcluster(merge_tree(overlap), t=1.0 - least, criterion="distance")
    return _members(names, numbers)


def merge_tree(overlap: np.ndarray) -> np.ndarray:
    """The order in which classes are merged, most alike first (average linkage; rows as SciPy's `linkage` returns them)."""
    import numpy as np
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = 1.0 - overlap
    np.fill_diagonal(distance, 0.0)
    return np.asarray(linkage(squareform(distance, checks=False), method="average"))


def _members(names: Sequence[str], numbers: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """The names of every cluster, sorted."""
    clusters: dict[int, list[str]] = {}
    for name, number in zip(names, numbers.tolist(), strict=True):
        clusters.setdefault(number, []).append(name)
    return tuple(sorted(tuple(sorted(members)) for members in clusters.values()))


def _quarters(audited: Audited, number: int) -> Counter[str]:
    """Dated rows of a section in every quarter of a year, as "2014-2"; rows without a date are not counted."""
    dates = audited.rows["date"][audited.given == number]
    found: Counter[str] = Counter()
    for date in dates:
        year, month = str(date)[:4], str(date)[5:7]
        if year.isdigit() and month.isdigit():
            found[f"{year}-{(int(month) + 2) // 3}"] += 1
    return found


def _kind(one: Counter[str], other: Counter[str], one_rows: int, other_rows: int) -> tuple[str, float | None]:
    """Why two sections may overlap, and the share of their rows in common quarters where the years are known."""
    if not (_years_known(one, one_rows) and _years_known(other, other_rows)):
        return YEARS_UNKNOWN, None
    shared = sum(min(one[quarter] / one.total(), other[quarter] / other.total()) for quarter in one.keys() & other.keys())
    return (RENAMED if shared <= TIMES_APART else SAME_TIME), shared


def _years_known(quarters: Counter[str], rows: int) -> bool:
    """Whether enough of a section's rows have a date."""
    return quarters.total() >= max(MIN_DATED_ROWS, MIN_DATED_SHARE * rows)


def _years(quarters: Counter[str]) -> str | None:
    """The years that hold at least 2 % of a section's dated rows, as "2012–2014, 2018–2022"."""
    by_year: Counter[int] = Counter()
    for quarter, count in quarters.items():
        by_year[int(quarter[:4])] += count
    years = sorted(year for year, count in by_year.items() if count >= 0.02 * by_year.total())
    spans: list[list[int]] = []
    for year in years:
        if spans and year == spans[-1][1] + 1:
            spans[-1][1] = year
        else:
            spans.append([year, year])
    return ", ".join(f"{first}–{last}" if first < last else str(first) for first, last in spans) or None


def _name(group: tuple[str, ...], audited: Audited, quarters: Sequence[Counter[str]]) -> str:
    """A class's name: the newest of renamed sections, since readers know it; otherwise the members' names together."""
    numbers = [audited.names.index(section) for section in group]
    sizes = {number: int((audited.given == number).sum()) for number in numbers}
    if all(_years_known(quarters[number], sizes[number]) for number in numbers):
        return audited.names[max(numbers, key=lambda number: (max(quarters[number]), audited.names[number]))]
    return joined_name(group)


def joined_name(members: Sequence[str]) -> str:
    """A name for several classes that says what may be meant."""
    return SEPARATOR.join(members[:NAMED_MEMBERS]) + (
        f" / {len(members) - NAMED_MEMBERS} more" if len(members) > NAMED_MEMBERS else ""
    )


def _parents(audited: Audited, groups: Sequence[tuple[str, ...]], names: Sequence[str], parent_count: int) -> dict[str, str]:
    """Class → parent, from the overlap between the classes; a class alone in its group is left out: it is its own parent."""
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(groups) <= parent_count:
        return {}
    owner = {section: number for number, group in enumerate(groups) for section in group}
    membership = np.zeros((len(audited.names), len(groups)))
    for number, section in enumerate(audited.names):
        membership[number, owner[section]] = 1
    overlap = chance_overlap(membership.T @ audited.joint @ membership)
    distance = np.sqrt(np.clip(1.0 - np.sqrt(overlap), 0.0, 1.0))
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="ward")  # Ward keeps the parents of similar size
    clusters = _members(names, fcluster(tree, t=parent_count, criterion="maxclust"))
    return {name: joined_name(members) for members in clusters if len(members) > 1 for name in members}


def _topics(audited: Audited, overlap: np.ndarray) -> Audited:
    """The audit with overlapping sections as one, so that a section is not judged by its confusion with its own other name."""
    groups = group_sections(audited.names, overlap, OVERLAP)
    owner = {section: SEPARATOR.join(group) for group in groups for section in group}
    rows = audited.rows.assign(topic=audited.rows["category"].map(owner))
    return merged(replace(audited, rows=rows), "topic")


def format_measures(audited: Audited) -> list[dict[str, Any]]:
    """How a topic's misread rows spread, for every one; `format` marks those that name a form and not a topic.

    A topic's misread rows go to its neighbours. Those of a format label (good news, people over fifty) go wherever their topics
    are: `spread` is the number of sections that an even spread with the same entropy would reach, as a share of all others.
    One that spreads and is also found much worse than most is flagged. `missed_by` is the widest gap to the three limits (share
    of texts, of spread, of the median F1), 0 or less where all are met; the list begins with the flagged and those nearest to it.
    """
    import numpy as np

    size = len(audited.names)
    predicted = audited.probabilities.argmax(axis=1)
    confusion = np.zeros((size, size))
    np.add.at(confusion, (audited.given, predicted), 1)
    hits, given, found = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * hits / np.maximum(given + found, 1)
    wrong = confusion + confusion.T  # rows that leave a section and rows that come in both show where it borders
    np.fill_diagonal(wrong, 0)
    shares = wrong / np.maximum(wrong.sum(axis=1, keepdims=True), 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    spread = np.where(wrong.sum(axis=1) > 0, np.exp(entropy) / max(1, size - 1), 0.0)
    typical = float(np.median(f1))
    to_median = f1 / typical if typical else (f1 > 0).astype(float)
    least = max(MIN_SECTION_ROWS, FORMAT_SIZE * float(np.median(given)))
    missed_by = np.max([1 - given / least, FORMAT_SPREAD - spread, to_median - FORMAT_F1], axis=0)
    measures = [
        {
            "sections": name.split(SEPARATOR),
            "rows": int(given[number]),
            "precision": round(float(hits[number] / found[number]), 4) if found[number] else None,
            "recall": round(float(hits[number] / given[number]), 4),
            "f1": round(float(f1[number]), 4),
            "f1_to_median": round(float(to_median[number]), 4),
            "spread": round(float(spread[number]), 4),
            "missed_by": round(float(missed_by[number]), 4),
            "format": bool(missed_by[number] <= 0),
        }
        for number, name in enumerate(audited.names)
    ]
    return sorted(measures, key=lambda entry: (float(entry["missed_by"]), entry["sections"]))


def proposal_facts(proposal: Proposal) -> dict[str, Any]:
    """A proposal as JSON."""
    joined = [
        {"class": name, "sections": list(group)}
        for name, group in zip(proposal.names, proposal.groups, strict=True)
        if len(group) > 1
    ]
    return {
        "class_count": len(proposal.groups),
        "parent_count": len({proposal.parents.get(name, name) for name in proposal.names}) if proposal.parents else 0,
        "merged": joined,
        "pairs": [dict(pair) for pair in proposal.pairs],
        "format_labels": list(proposal.flagged),
        "formats": [dict(entry) for entry in proposal.formats],
        "thresholds": {"overlap": OVERLAP, "times_apart": TIMES_APART, "format_spread": FORMAT_SPREAD, "format_f1": FORMAT_F1},
    }


def proposed_taxonomy(proposal: Proposal, unjudged: Mapping[str, int], merge: str) -> Taxonomy:
    """The proposal as a taxonomy; sections in `unjudged`, too small for the audit, stay classes of their own."""
    groups = {**{section: (section,) for section in unjudged}, **dict(zip(proposal.names, proposal.groups, strict=True))}
    joined = sum(len(group) > 1 for group in groups.values())
    reason = "overlap and follow one another in time" if merge == "renamed" else "overlap"
    formats = f" Formats rather than topics: {', '.join(proposal.flagged)}." if proposal.flagged else ""
    joins = f"{joined} classes join sections that {reason}" if joined else "it joins no sections"
    return Taxonomy(
        version=f"proposed-{len(groups)}",
        description=f"Proposed by overlap_report: {joins}.{formats}",
        classes=tuple(sorted(groups)),
        mapping={section: name for name, group in groups.items() for section in group},
        parents=proposal.parents,
    )
