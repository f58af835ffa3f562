"""Lineage: what each artefact in force was made from, when and by which code, and the drawing of the graph."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from newsjuice_pipelines.runtime.artifacts import ArtifactCorrupted
from newsjuice_pipelines.site.catalogue import ASSETS, BY_NAME, Asset, Group
from newsjuice_pipelines.site.records import Record, Records

State = Literal["current", "outdated", "missing", "damaged"]

NODE_WIDTH, NODE_HEIGHT, GAP_X, GAP_Y, MARGIN = 184, 52, 18, 38, 8
SHORT = 8  # characters of a version or commit that tell it apart


@dataclass(frozen=True)
class Input:
    """The versions of one asset that an artefact was made from; `newer` counts those that were replaced since."""

    asset: str
    versions: Mapping[str, str]
    newer: int

    @property
    def words(self) -> str:
        """In one line: the version, or how many partitions."""
        if len(self.versions) == 1:
            key, version = next(iter(self.versions.items()))
            return f"{key} {version[:SHORT]}"
        return f"{self.asset}, {len(self.versions)} partitions"


@dataclass(frozen=True)
class Made:
    """How one artefact in force came to be."""

    key: str
    partition: str | None
    version: str
    written_at: datetime | None
    inputs: tuple[Input, ...]
    commit: str | None
    dirty: bool
    device: str | None
    code_version: str | None
    configuration: str
    packages: Mapping[str, str]

    @property
    def outdated(self) -> bool:
        """Whether an input was replaced since."""
        return any(found.newer for found in self.inputs)


@dataclass(frozen=True)
class History:
    """All artefacts in force of one asset."""

    asset: Asset
    state: State
    made: tuple[Made, ...]
    problems: tuple[str, ...]

    @property
    def note(self) -> str:
        """The second line in the drawing."""
        if self.state in ("missing", "damaged"):
            return "not materialised" if self.state == "missing" else "damaged"
        if self.asset.partitioned_by:
            of = f"{len(self.made)} {self.asset.partitioned_by}{'s' if len(self.made) != 1 else ''}"
        else:
            of = self.made[0].version[:SHORT]
        last = max((made.written_at for made in self.made if made.written_at), default=None)
        when = f" · {last:%d %b}" if last else ""
        return f"{of}{when}{' · outdated' if self.state == 'outdated' else ''}"


@dataclass(frozen=True)
class Node:
    """One box of the drawing; `x`, `y` is its upper left corner."""

    history: History
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """The graph of one group: boxes, and lines as SVG paths."""

    group: Group
    width: float
    height: float
    nodes: tuple[Node, ...]
    lines: tuple[str, ...]


def histories(records: Records) -> dict[str, History]:
    """Every asset of the project with what is there of it, by name, in the order of the graph."""
    return {asset.name: _history(records, asset) for asset in ASSETS}


def _history(records: Records, asset: Asset) -> History:
    made, problems = [], []
    for key in records.of(asset.name, asset.partitioned_by):
        try:
            record = records.find(key)
            if record is not None:
                made.append(_made(records, record))
        except ArtifactCorrupted as error:
            problems.append(str(error))
    state: State = "current"
    if problems:
        state = "damaged"
    elif not made:
        state = "missing"
    elif any(one.outdated for one in made):
        state = "outdated"
    return History(asset, state, tuple(made), tuple(problems))


def _made(records: Records, record: Record) -> Made:
    environment: Mapping[str, Any] = record.manifest.get("environment", {})
    git = environment.get("git") or {}
    recipe = {name: value for name, value in record.manifest["recipe"].items() if name not in ("inputs", "code_version")}
    return Made(
        key=record.key,
        partition=record.partition,
        version=record.version,
        written_at=record.written_at,
        inputs=tuple(_inputs(records, record)),
        commit=git.get("commit"),
        dirty=bool(git.get("dirty")),
        device=environment.get("device"),
        code_version=record.manifest["recipe"].get("code_version"),
        configuration=json.dumps(recipe, indent=2, ensure_ascii=False),
        packages=environment.get("packages") or {},
    )


def _inputs(records: Records, record: Record) -> Iterator[Input]:
    by_asset: dict[str, dict[str, str]] = {}
    for key, version in record.inputs.items():
        by_asset.setdefault(key.partition("/")[0], {})[key] = version
    for asset, versions in by_asset.items():
        newer = sum(records.version(key) not in (version, None) for key, version in versions.items())
        yield Input(asset, versions, newer)


def draw(group: Group, found: Mapping[str, History]) -> Drawing:
    """Lay the graph of a group out from top to bottom, narrow enough for a phone. Inputs that another line implies have none."""
    parents = {asset.name: _direct_parents(asset) for asset in ASSETS if asset.group == group}
    ranks: dict[str, int] = {}
    for name in parents:  # the catalogue names parents before children
        ranks[name] = 1 + max((ranks[parent] for parent in parents[name]), default=-1)
    centres: dict[str, float] = {}
    for rank in range(max(ranks.values()) + 1):
        centres |= _centres([name for name in parents if ranks[name] == rank], parents, centres)
    left = min(centres.values()) - NODE_WIDTH / 2 - MARGIN
    width = max(centres.values()) + NODE_WIDTH / 2 + MARGIN - left
    tops = {name: MARGIN + rank * (NODE_HEIGHT + GAP_Y) for name, rank in ranks.items()}
    nodes = tuple(Node(found[name], centres[name] - NODE_WIDTH / 2 - left, tops[name]) for name in parents)
    lines = tuple(
        _line(centres[parent] - left, tops[parent] + NODE_HEIGHT, centres[name] - left, tops[name])
        for name in parents
        for parent in parents[name]
    )
    return Drawing(group, width, max(tops.values()) + NODE_HEIGHT + MARGIN, nodes, lines)


def _direct_parents(asset: Asset) -> tuple[str, ...]:
    return tuple(
        parent for parent in asset.parents if not any(parent in _ancestors(other) for other in asset.parents if other != parent)
    )


def _ancestors(name: str) -> set[str]:
    parents = BY_NAME[name].parents
    return set(parents).union(*(_ancestors(parent) for parent in parents))


def _centres(names: Sequence[str], parents: Mapping[str, Sequence[str]], placed: Mapping[str, float]) -> dict[str, float]:
    """Below their parents where there is room, else side by side around the middle of where they would be."""
    wanted = {
        name: sum(placed[parent] for parent in parents[name]) / len(parents[name]) if parents[name] else 0.0 for name in names
    }
    order = sorted(names, key=lambda name: wanted[name])
    step = NODE_WIDTH + GAP_X
    if all(wanted[right] - wanted[left] >= step for left, right in pairwise(order)):
        return wanted
    middle = sum(wanted.values()) / len(wanted)
    return {name: middle + (place - (len(order) - 1) / 2) * step for place, name in enumerate(order)}


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    """Straight down until the row above the target, then a curve."""
    turn = max(y, to_y - GAP_Y)
    half = (turn + to_y) / 2
    return f"M{x:.0f} {y:.0f}V{turn:.0f}C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y:.0f}"
