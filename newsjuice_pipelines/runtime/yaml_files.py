"""Versioned YAML files: those that come with the package, by name, and people's own, by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def find_yaml(name_or_path: str | Path, packaged: Path, kind: str, error: type[ValueError]) -> Path:
    """The packaged file of that name, or the file at that path.

    Args:
        name_or_path: the name of a packaged file, or a path that ends in .yaml or .yml.
        packaged: folder of the packaged files.
        kind: what the file is, for the message.
        error: raised when there is no such file.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = packaged / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in packaged.glob("*.yaml")))
        raise error(f"there is no {kind} {str(name_or_path)!r}: use one of {known}, or the path of a YAML file.")
    return path


def read_yaml(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The mapping in a YAML file; `error` is raised when it is not YAML, or no mapping."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise error(f"{path.name} is not valid YAML: {problem}") from problem
    if not isinstance(content, dict):
        raise error(f"{path.name} must hold a mapping, it holds {type(content).__name__}.")
    return content
