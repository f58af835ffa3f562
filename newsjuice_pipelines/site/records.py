"""Artefacts as their manifests describe them: version, inputs, when. Reads single files, so that a model's weights stay where
they are; whole artefacts are `runtime/artifacts.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from upath import UPath

from newsjuice_pipelines.runtime.artifacts import FACTS, MANIFEST, ArtifactCorrupted, ArtifactStore


@dataclass(frozen=True)
class Record:
    """The artefact in force of one key. `written_at` is when its manifest was written here, UTC; None where that is not known."""

    key: str
    version: str
    folder: UPath
    manifest: Mapping[str, Any]
    written_at: datetime | None

    @property
    def asset(self) -> str:
        """The asset's name."""
        return self.key.partition("/")[0]

    @property
    def partition(self) -> str | None:
        """The partition, or None for an unpartitioned asset."""
        return self.key.partition("/")[2] or None

    @property
    def files(self) -> Mapping[str, str]:
        """SHA-256 (hex) by file name."""
        files: Mapping[str, str] = self.manifest["files"]
        return files

    @property
    def inputs(self) -> Mapping[str, str]:
        """The version of each input that it was made from, by key."""
        inputs: Mapping[str, str] = self.manifest["recipe"].get("inputs", {})
        return inputs

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What its producer found."""
        facts: Mapping[str, Any] = json.loads(self.read(FACTS))
        return facts

    def read(self, name: str) -> bytes:
        """One file.

        Raises:
            ArtifactCorrupted: it is missing or differs from its SHA-256.
        """
        try:
            content = (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise ArtifactCorrupted(f"{self.key}: file {name} is missing: materialise {self.asset!r} again.") from None
        if hashlib.sha256(content).hexdigest() != self.files.get(name):
            raise ArtifactCorrupted(f"{self.key}: checksum error in {name}: materialise {self.asset!r} again.")
        return content


class Records:
    """All artefacts in force below a root. Versions and manifests are read once, so that one site shows one state."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._root = UPath(store.root)
        self._found: dict[str, Record | None] = {}
        self._versions: dict[str, str | None] = {}

    def find(self, key: str) -> Record | None:
        """The artefact in force of `key`, or None when there is none.

        Raises:
            ArtifactCorrupted: its manifest is missing or was changed.
        """
        if key not in self._found:
            version = self.version(key)
            self._found[key] = None if version is None else self._read(key, version)
        return self._found[key]

    def partitions(self, asset: str) -> list[str]:
        """The partitions of an asset that are there, sorted."""
        return self._store.partitions(asset)

    def version(self, key: str) -> str | None:
        """The version of `key` in force, or None when there is none."""
        if key not in self._versions:
            self._versions[key] = self._store.current_version(key)
        return self._versions[key]

    def facts(self, key: str) -> Mapping[str, Any] | None:
        """What the producer of `key` found, or None when it is not materialised."""
        record = self.find(key)
        return None if record is None else record.facts

    def of(self, asset: str, by: str | None) -> list[str]:
        """The keys of an asset that are there: one for each partition, or its own."""
        if by is None:
            return [asset] if self.version(asset) is not None else []
        return [f"{asset}/{partition}" for partition in self.partitions(asset)]

    def _read(self, key: str, version: str) -> Record:
        folder = self._root / key / version
        asset = key.partition("/")[0]
        try:
            raw = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise ArtifactCorrupted(f"{key} {version} has no manifest: materialise {asset!r} again.") from None
        if not hashlib.sha256(raw).hexdigest().startswith(version):
            raise ArtifactCorrupted(f"the manifest of {key} {version} was changed: materialise {asset!r} again.")
        written_s = float(getattr((folder / MANIFEST).stat(), "st_mtime", 0) or 0)
        written_at = datetime.fromtimestamp(written_s, UTC) if written_s else None
        return Record(key, version, folder, json.loads(raw), written_at)
