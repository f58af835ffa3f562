"""Prints the packages that pyproject.toml asks for: the run-time ones, and those of the extras that are named.

For the images alone, whose dependency layer is built before the source is there: python docker/requirements.py gcp docker
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirement lines, sorted.

    Raises:
        SystemExit: an extra does not exist; the message names those that do.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    unknown = sorted(set(extras) - set(optional))
    if unknown:
        raise SystemExit(f"pyproject.toml has no extra {', '.join(unknown)}: there are {', '.join(sorted(optional))}.")
    return sorted({*project["dependencies"], *(line for extra in extras for line in optional[extra])})


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])))
