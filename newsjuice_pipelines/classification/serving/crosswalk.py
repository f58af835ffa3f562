"""Crosswalks: which of our classes count as right for a label that another source uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from newsjuice_pipelines.classification.corpus.taxonomy import TaxonomyError, label_key
from newsjuice_pipelines.runtime.yaml_files import find_yaml, read_yaml

PACKAGED = Path(__file__).parent / "crosswalks"


@dataclass(frozen=True)
class Crosswalk:
    """Foreign label → acceptable classes. Labels are compared without regard to case and spacing."""

    version: str
    labels: Mapping[str, tuple[str, ...]]
    _by_key: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_key", {label_key(label): names for label, names in self.labels.items()})

    def acceptable(self, label: str, classes: Iterable[str]) -> tuple[str, ...]:
        """Those of `classes` that are right for a foreign label; empty when the label has no counterpart among them."""
        known = {label_key(name): name for name in classes}
        wanted = (label_key(name) for name in self._by_key.get(label_key(label), ()))
        return tuple(known[key] for key in wanted if key in known)


def load_crosswalk(name_or_path: str | Path = "default") -> Crosswalk:
    """Load a packaged crosswalk by its name, or a YAML file by its path.

    Raises:
        TaxonomyError: no such crosswalk, or a file that is mistyped or lists one label twice.
    """
    path = find_yaml(name_or_path, PACKAGED, "crosswalk", TaxonomyError)
    content = read_yaml(path, TaxonomyError)
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels or not isinstance(content.get("version"), str):
        raise TaxonomyError(f"{path.name} needs `version: <text>` and `labels: {{label: [class, …]}}`.")
    seen: dict[str, str] = {}
    for label, names in labels.items():
        if not isinstance(label, str) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TaxonomyError(f"{path.name}: label {label!r} must be a text with a list of class names; quote YAML words.")
        if label_key(label) in seen:
            raise TaxonomyError(f"{path.name}: label {label!r} is listed twice (also as {seen[label_key(label)]!r}).")
        seen[label_key(label)] = label
    return Crosswalk(content["version"], {label: tuple(names) for label, names in labels.items()})
