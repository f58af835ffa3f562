"""Taxonomies: which section of the source belongs to which class, and which classes share a parent.

Labels of foreign sources are `crosswalk.py`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.runtime.reports import write_json
from newsjuice_pipelines.runtime.yaml_files import find_yaml, read_yaml

if TYPE_CHECKING:
    import pandas as pd

PACKAGED = Path(__file__).parent / "taxonomies"
TAXONOMY = "taxonomy.json"


class TaxonomyError(ValueError):
    """A taxonomy file is missing or contradicts itself."""


def label_key(label: str) -> str:
    """The form in which labels are compared: case and spacing do not matter."""
    return " ".join(label.split()).casefold()


@dataclass(frozen=True)
class Taxonomy:
    """Classes, the source sections they hold, and their parents.

    `classes` is sorted, `mapping` is section → class, `parents` is class → parent. A class without a parent is its own, so
    that every class has one.
    """

    version: str
    description: str
    classes: tuple[str, ...]
    mapping: Mapping[str, str]
    parents: Mapping[str, str] = field(default_factory=dict)
    _by_key: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_key", {label_key(raw): name for raw, name in self.mapping.items()})
        object.__setattr__(self, "parents", {name: self.parents.get(name, name) for name in self.classes})

    def class_of(self, section: str) -> str | None:
        """The class of a source section, or None when the taxonomy does not know it."""
        return self._by_key.get(label_key(section))


def packaged_taxonomies() -> list[str]:
    """Names of the taxonomies that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def load_taxonomy(name_or_path: str | Path) -> Taxonomy:
    """Load a packaged taxonomy by its name, or a YAML file by its path.

    Raises:
        TaxonomyError: no such taxonomy, or a file that is empty, mistyped or contradicts itself (one section under two
            classes, one class under two parents, a parent over classes that do not exist).
    """
    path = taxonomy_file(name_or_path)
    content = read_yaml(path, TaxonomyError)
    if not isinstance(content.get("classes"), dict) or not content["classes"] or not isinstance(content.get("version"), str):
        raise TaxonomyError(f"{path.name} needs `version: <text>` and `classes: {{class: [section, …]}}`.")
    mapping = _owners(content["classes"], path.name, "class", "section")
    classes = tuple(sorted(content["classes"]))
    _refuse_equal_names(classes, path.name)
    parents = _parents(content.get("parents") or {}, classes, path.name)
    return Taxonomy(content["version"], str(content.get("description", "")), classes, mapping, parents)


def taxonomy_file(name_or_path: str | Path) -> Path:
    """The YAML file of a packaged taxonomy, or the one at the path itself.

    Raises:
        TaxonomyError: there is no such file.
    """
    return find_yaml(name_or_path, PACKAGED, "taxonomy", TaxonomyError)


def write_taxonomy_file(taxonomy: Taxonomy, path: Path) -> None:
    """Write a YAML file that `load_taxonomy` reads back as the same taxonomy."""
    import yaml

    content: dict[str, Any] = {"version": taxonomy.version, "description": taxonomy.description}
    content["classes"] = {
        name: sorted(raw for raw, owner in taxonomy.mapping.items() if owner == name) for name in taxonomy.classes
    }
    parents: dict[str, list[str]] = {}
    for name in taxonomy.classes:
        if taxonomy.parents[name] != name or list(taxonomy.parents.values()).count(name) > 1:
            parents.setdefault(taxonomy.parents[name], []).append(name)
    if parents:
        content["parents"] = dict(sorted(parents.items()))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    path.write_text(text, encoding="utf-8")


def write_taxonomy(taxonomy: Taxonomy, rows: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Write `taxonomy.json`: classes, parents, mapping, rows of every class, unknown sections and entries that no row used."""
    sections = Counter(rows["category"])
    per_class = dict.fromkeys(taxonomy.classes, 0)
    unknown: dict[str, int] = {}
    used: set[str] = set()
    for section, count in sorted(sections.items()):
        name = taxonomy.class_of(section)
        if name is None:
            unknown[section] = count
            continue
        per_class[name] += count
        used.add(label_key(section))
    per_parent: Counter[str] = Counter()
    for name, count in per_class.items():
        per_parent[taxonomy.parents[name]] += count
    facts = {
        "version": taxonomy.version,
        "class_count": len(taxonomy.classes),
        "parent_count": len(per_parent),
        "row_count": sum(per_class.values()),
        "rows_per_class": per_class,
        "rows_per_parent": dict(sorted(per_parent.items())),
        "unknown_categories": unknown,
        "unknown_rows": sum(unknown.values()),
        "unused_entries": sorted(section for section in taxonomy.mapping if label_key(section) not in used),
    }
    plan = {"classes": list(taxonomy.classes), "parents": dict(taxonomy.parents), "mapping": dict(taxonomy.mapping)}
    write_json(out / TAXONOMY, {"description": taxonomy.description, **plan, **facts})
    return facts


def _owners(lists: Mapping[Any, Any], file: str, owner_kind: str, member_kind: str) -> dict[str, str]:
    """Member → owner of a YAML mapping `owner: [member, …]`; a member under two owners is refused."""
    owners: dict[str, str] = {}
    seen: dict[str, str] = {}
    for owner, members in lists.items():
        if not isinstance(owner, str) or not isinstance(members, list) or not all(isinstance(item, str) for item in members):
            raise TaxonomyError(
                f"{file}: {owner_kind} {owner!r} must be a text with a list of {member_kind} names; quote YAML words."
            )
        for member in members:
            key = label_key(member)
            if key in seen:
                raise TaxonomyError(f"{file}: {member_kind} {member!r} is listed under {seen[key]!r} and under {owner!r}.")
            seen[key] = owner
            owners[member] = owner
    return owners


def _parents(lists: Any, classes: tuple[str, ...], file: str) -> dict[str, str]:
    """Class → parent of the YAML key `parents`."""
    if not isinstance(lists, dict):
        raise TaxonomyError(f"{file}: `parents` must be `{{parent: [class, …]}}`, it is {type(lists).__name__}.")
    parents = _owners(lists, file, "parent", "class")
    _refuse_equal_names(tuple(lists), file)
    unknown = sorted(set(parents) - set(classes))
    if unknown:
        raise TaxonomyError(f"{file}: the parent {parents[unknown[0]]!r} names {unknown[0]!r}, which is no class of this file.")
    known = {label_key(name): name for name in classes}
    for parent in lists:
        namesake = known.get(label_key(parent))
        if namesake is not None and parents.get(namesake) != parent:
            raise TaxonomyError(
                f"{file}: the parent {parent!r} carries the name of a class that is not under it; rename the parent, "
                "or list the class under it."
            )
    return parents


def _refuse_equal_names(names: tuple[str, ...], file: str) -> None:
    """Names that differ in case or spacing only could not be told apart later."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(label_key(name), name)
        if other != name or not name.strip():
            raise TaxonomyError(f"{file}: {other!r} and {name!r} are one name; give classes and parents distinct ones.")
