"""The recipe of an artefact: everything that decides it, as JSON values. Equal recipes give equal artefacts."""

from collections.abc import Iterable, Mapping
from typing import Any

from newsjuice_pipelines.runtime.artifacts import Artifact


def recipe(code_version: str, config: Mapping[str, Any], inputs: Iterable[Artifact] = (), **more: Any) -> dict[str, Any]:
    """The recipe of one artefact.

    Args:
        code_version: of the asset; raised by hand when its code gives another result for the same input.
        config: the settings that decide the result.
        inputs: the artefacts that are read; their versions count, not their places.
        more: further JSON values, such as a fingerprint of rows read from a database.
    """
    return {
        "code_version": code_version,
        "config": dict(config),
        "inputs": {artifact.key: artifact.version for artifact in inputs},
        **more,
    }
