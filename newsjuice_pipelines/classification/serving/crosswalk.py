"""Crosswalks: which of our classes count as right for a label that another source uses. Comparing is `external.py`'s business."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.corpus.taxonomy import TaxonomyError, label_key, load_taxonomy, packaged_taxonomies
from newsjuice_pipelines.runtime.yaml_files import find_yaml, read_yaml

PACKAGED = Path(__file__).parent / "crosswalks"


@dataclass(frozen=True)
class Vocabulary:
    """The names that a crosswalk can use for the classes of one classifier: the classes, their parents, their sections."""

    classes: tuple[str, ...]
    parents: tuple[str, ...] = ()
    """The parent of every class, in their order; empty without parents."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Source section → class, where the taxonomy is at hand."""
    _found: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, tuple[str, ...]] = {label_key(name): (name,) for name in self.classes}
        for parent in dict.fromkeys(self.parents):
            below = tuple(name for name, above in zip(self.classes, self.parents, strict=True) if above == parent)
            found.setdefault(label_key(parent), below)
        for section, name in self.sections.items():
            if name in self.classes:
                found.setdefault(label_key(section), (name,))
        object.__setattr__(self, "_found", found)

    def classes_of(self, name: str) -> tuple[str, ...]:
        """The classes that a name stands for: itself, all below a parent, or the one that holds a section."""
        return self._found.get(label_key(name), ())


@dataclass(frozen=True)
class Crosswalk:
    """Foreign label → names of acceptable classes, parents or sections. Case and spacing of labels do not matter.

    `no_counterpart` are labels that are known to have none: they count as unmapped, but nobody has to look at them again.
    """

    version: str
    labels: Mapping[str, tuple[str, ...]]
    no_counterpart: tuple[str, ...] = ()
    _by_key: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_key", {label_key(label): names for label, names in self.labels.items()})

    def acceptable(self, label: str, vocabulary: Vocabulary | Iterable[str]) -> tuple[str, ...]:
        """The classes that are right for a foreign label; empty when the label has no counterpart among them.

        Args:
            label: as the other source writes it.
            vocabulary: of the classifier; plain class names will do.
        """
        known = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(tuple(vocabulary))
        wanted = self._by_key.get(label_key(label), ())
        return tuple(dict.fromkeys(found for name in wanted for found in known.classes_of(name)))

    def is_left_out(self, label: str) -> bool:
        """Whether a label is known to have no counterpart."""
        return label_key(label) in {label_key(known) for known in self.no_counterpart}


def load_crosswalk(name_or_path: str | Path = "default") -> Crosswalk:
    """Load a packaged crosswalk by its name, or a YAML file by its path.

    Raises:
        TaxonomyError: no such crosswalk, or a file that is mistyped, lists one label twice or a label without classes.
    """
    path = find_yaml(name_or_path, PACKAGED, "crosswalk", TaxonomyError)
    content = read_yaml(path, TaxonomyError)
    labels, left_out = content.get("labels"), content.get("no_counterpart") or []
    if not isinstance(labels, dict) or not labels or not isinstance(content.get("version"), str):
        raise TaxonomyError(f"{path.name} needs `version: <text>` and `labels: {{label: [class, …]}}`.")
    if not isinstance(left_out, list):
        raise TaxonomyError(f"{path.name}: `no_counterpart` must be a list of labels.")
    seen: dict[str, str] = {}
    for label, names in [*labels.items(), *((label, None) for label in left_out)]:
        if not isinstance(label, str) or not (_are_texts(names) or (names is None and label in left_out)):
            raise TaxonomyError(f"{path.name}: label {label!r} must be a text with a list of class names; quote YAML words.")
        if names == []:
            raise TaxonomyError(f"{path.name}: label {label!r} has no class; list it under `no_counterpart` instead.")
        if label_key(label) in seen:
            raise TaxonomyError(f"{path.name}: label {label!r} is listed twice (also as {seen[label_key(label)]!r}).")
        seen[label_key(label)] = label
    return Crosswalk(content["version"], {label: tuple(names) for label, names in labels.items()}, tuple(left_out))


def check_crosswalk(crosswalk: Crosswalk, vocabulary: Vocabulary) -> None:
    """Refuse a crosswalk with names that no taxonomy knows, or that leads to no class in use: it would compare nothing.

    Names are looked for in the vocabulary in use and in every packaged taxonomy.

    Raises:
        TaxonomyError: naming the unknown names, with the nearest known ones.
    """
    known = [*vocabulary.classes, *vocabulary.parents, *vocabulary.sections, *_packaged_names()]
    keys = {label_key(name) for name in known}
    unknown = {name: label for label, names in crosswalk.labels.items() for name in names if label_key(name) not in keys}
    if unknown:
        shown = "; ".join(f"{name!r} (for {label!r}{_nearest(name, known)})" for name, label in list(unknown.items())[:5])
        raise TaxonomyError(f"crosswalk {crosswalk.version}: no taxonomy has a class, parent or section {shown}.")
    if not any(vocabulary.classes_of(name) for names in crosswalk.labels.values() for name in names):
        raise TaxonomyError(
            f"crosswalk {crosswalk.version} leads to none of the {len(vocabulary.classes)} classes in use "
            f"({', '.join(vocabulary.classes[:5])} …): the vocabularies do not meet. Write a crosswalk for this taxonomy."
        )


def _packaged_names() -> list[str]:
    """Every class, parent and section of the packaged taxonomies."""
    names: dict[str, None] = {}
    for packaged in packaged_taxonomies():
        taxonomy = load_taxonomy(packaged)
        names |= dict.fromkeys([*taxonomy.classes, *taxonomy.parents.values(), *taxonomy.mapping])
    return list(names)


def _nearest(name: str, known: list[str]) -> str:
    """The known name that is most like an unknown one, as a question."""
    found = get_close_matches(name.upper(), known, n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def _are_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)
