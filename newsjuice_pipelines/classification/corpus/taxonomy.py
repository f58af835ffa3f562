"""Taxonomies: which section of the source belongs to which class. Labels of foreign sources are `crosswalk.py`'s business."""

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
    """Classes and the source sections they hold. `mapping` is section → class; `classes` is sorted."""

    version: str
    description: str
    classes: tuple[str, ...]
    mapping: Mapping[str, str]
    _by_key: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_key", {label_key(raw): name for raw, name in self.mapping.items()})

    def class_of(self, section: str) -> str | None:
        """The class of a source section, or None when the taxonomy does not know it."""
        return self._by_key.get(label_key(section))


def packaged_taxonomies() -> list[str]:
    """Names of the taxonomies that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def load_taxonomy(name_or_path: str | Path) -> Taxonomy:
    """Load a packaged taxonomy by its name, or a YAML file by its path.

    Raises:
        TaxonomyError: no such taxonomy, or a file that is empty, mistyped or puts one section under two classes.
    """
    path = taxonomy_file(name_or_path)
    content = read_yaml(path, TaxonomyError)
    classes = content.get("classes")
    if not isinstance(classes, dict) or not classes or not isinstance(content.get("version"), str):
        raise TaxonomyError(f"{path.name} needs `version: <text>` and `classes: {{class: [section, …]}}`.")
    mapping: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name, sections in classes.items():
        if not isinstance(name, str) or not isinstance(sections, list) or not all(isinstance(item, str) for item in sections):
            raise TaxonomyError(f"{path.name}: class {name!r} must be a text with a list of section names; quote YAML words.")
        for section in sections:
            key = label_key(section)
            if key in owner:
                raise TaxonomyError(f"{path.name}: section {section!r} is listed under {owner[key]!r} and under {name!r}.")
            owner[key] = name
            mapping[section] = name
    return Taxonomy(content["version"], str(content.get("description", "")), tuple(sorted(classes)), mapping)


def taxonomy_file(name_or_path: str | Path) -> Path:
    """The YAML file of a packaged taxonomy, or the one at the path itself.

    Raises:
        TaxonomyError: there is no such file.
    """
    return find_yaml(name_or_path, PACKAGED, "taxonomy", TaxonomyError)


def write_taxonomy(taxonomy: Taxonomy, rows: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Write `taxonomy.json`: classes, mapping, rows of every class, unknown sections and entries that no row used."""
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
    facts = {
        "version": taxonomy.version,
        "class_count": len(taxonomy.classes),
        "row_count": sum(per_class.values()),
        "rows_per_class": per_class,
        "unknown_categories": unknown,
        "unknown_rows": sum(unknown.values()),
        "unused_entries": sorted(section for section in taxonomy.mapping if label_key(section) not in used),
    }
    written = {"description": taxonomy.description, "classes": list(taxonomy.classes), "mapping": dict(taxonomy.mapping), **facts}
    write_json(out / TAXONOMY, written)
    return facts
