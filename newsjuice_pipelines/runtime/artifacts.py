"""The artefact store: whole-or-nothing directories with a manifest, on a local folder or any fsspec URI.

Layout: `ROOT/<key>/<version>/…files, manifest.json` and `ROOT/<key>/CURRENT`, one line naming the version in force.
A version is written next to its siblings under a temporary name, its manifest last, then renamed; `CURRENT` is replaced
in one step, so a reader sees a whole artefact or none. The version is the hash of the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from upath import UPath

from newsjuice_pipelines.runtime.provenance import canonical_json, environment, fingerprint

logger = logging.getLogger("newsjuice.artifacts")

MANIFEST = "manifest.json"
FACTS = "facts.json"
CURRENT = "CURRENT"
TEMPORARY = ".tmp-"
KEPT_VERSIONS = 3


class ArtifactError(Exception):
    """Base of the store's errors."""


class ArtifactMissing(ArtifactError):
    """An artefact that was asked for has never been written."""


class ArtifactCorrupted(ArtifactError):
    """A stored file does not match its manifest."""


class ArtifactBusy(ArtifactError):
    """Another process is writing the same artefact."""


class DiskFull(ArtifactError):
    """The disk of the artefact root has no room left."""


@dataclass(frozen=True)
class Artifact:
    """One whole version of an artefact. `path` is a local directory; `facts` are the producer's results (JSON values)."""

    key: str
    version: str
    path: Path
    uri: str
    recipe: Mapping[str, Any]
    facts: Mapping[str, Any]
    reused: bool = False


@dataclass(frozen=True)
class Draft:
    """Where a producer writes: `path` becomes the artefact; `scratch` survives a crash, for checkpoints and partial rows."""

    path: Path
    scratch: Path


@dataclass
class ArtifactStore:
    """Reads and writes artefacts below `root`; `cache` holds scratch space, locks and local copies of remote artefacts."""

    root: str
    cache: Path
    lock_timeout_s: float = 30.0
    _root: UPath = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._root = UPath(self.root)
        if self.is_local:
            self._root = UPath(Path(self._root.path).absolute())

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return self._root.protocol in ("", "file", "local")

    # -- reading ---------------------------------------------------------------------------------------------------

    def current_version(self, key: str) -> str | None:
        """The version of `key` that is in force, or None when there is none. Reads one small file."""
        try:
            return (self._root / key / CURRENT).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def open(self, key: str, version: str | None = None) -> Artifact:
        """The artefact in force, or an earlier version of it, every file checked against its manifest.

        Raises:
            ArtifactMissing: nothing was written yet, or that version is no longer kept; the message names the asset to
                materialise.
            ArtifactCorrupted: a file is missing or differs from its SHA-256.
        """
        asset, _, partition = key.partition("/")
        if version is None:
            version = self.current_version(key)
            if version is None:
                which = f" for partition {partition}" if partition else ""
                raise ArtifactMissing(f"{asset} has not been materialised{which}: materialise the asset {asset!r} first.")
        elif not (self._root / key / version / MANIFEST).exists():
            kept = f"the last {KEPT_VERSIONS} versions are kept" if self.is_local else "it may have been removed"
            raise ArtifactMissing(f"{key} has no version {version} any more ({kept}): materialise {asset!r} again.")
        directory = self._local_copy(key, version)
        try:
            manifest = self._verify(key, version, directory)
        except ArtifactCorrupted:
            if self.is_local:
                raise
            shutil.rmtree(directory)  # the copy may be damaged, not the original
            directory = self._local_copy(key, version)
            manifest = self._verify(key, version, directory)
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        return Artifact(key, version, directory, str(self._root / key / version), manifest["recipe"], facts)

    def partitions(self, key: str) -> list[str]:
        """Names of the partitions of `key` that have an artefact in force, sorted."""
        parent = self._root / key
        if not parent.exists():
            return []
        return sorted(entry.name for entry in parent.iterdir() if (entry / CURRENT).exists())

    def _verify(self, key: str, version: str, directory: Path) -> dict[str, Any]:
        asset = key.partition("/")[0]
        try:
            raw = (directory / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise ArtifactCorrupted(f"{key} {version} has no manifest: materialise {asset!r} again.") from None
        if not hashlib.sha256(raw).hexdigest().startswith(version):
            raise ArtifactCorrupted(f"the manifest of {key} {version} was changed: materialise {asset!r} again.")
        manifest: dict[str, Any] = json.loads(raw)
        for name, digest in manifest["files"].items():
            path = directory / name
            if not path.is_file():
                raise ArtifactCorrupted(f"{key}: file {name} is missing: materialise {asset!r} again.")
            if _sha256(path) != digest:
                raise ArtifactCorrupted(f"{key}: checksum error in {name}: materialise {asset!r} again.")
        return manifest

    def _local_copy(self, key: str, version: str) -> Path:
        source = self._root / key / version
        if self.is_local:
            return Path(str(source))
        target = self.cache / "copies" / key / version
        if not target.exists():
            partial = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
            try:
                for name in [*json.loads((source / MANIFEST).read_bytes())["files"], MANIFEST]:
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    with (source / name).open("rb") as reader, (partial / name).open("wb") as writer:
                        shutil.copyfileobj(reader, writer, 2**22)
                try:
                    os.rename(partial, target)
                except OSError:
                    if not target.exists():  # otherwise another process was faster
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    # -- writing ---------------------------------------------------------------------------------------------------

    def publish(
        self,
        key: str,
        recipe: Mapping[str, Any],
        write: Callable[[Draft], Mapping[str, Any]],
        *,
        force: bool = False,
    ) -> Artifact:
        """Write an artefact, unless the one in force was made by the same recipe and is intact.

        Args:
            key: the asset's name, with `/partition` behind it for a partitioned asset.
            recipe: everything that decides the result, as JSON values: configuration, seed, code version, versions of
                the inputs.
            write: fills `draft.path` and returns the facts (JSON values) worth showing.
            force: write even when nothing changed.

        Raises:
            ArtifactBusy: another process is writing `key` and does not finish within `lock_timeout_s`.
            DiskFull: the disk is full; what was in force stays in force.
        """
        with self._lock(key):
            existing = None if force else self._reusable(key, recipe)
            if existing is not None:
                return existing
            scratch = self.cache / "scratch" / key / fingerprint(recipe)[:16]
            staging = self._staging(key)
            try:
                scratch.mkdir(parents=True, exist_ok=True)
                staging.mkdir(parents=True)
                facts = write(Draft(staging, scratch))
                (staging / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
                version = self._commit(key, recipe, staging)
            except Exception as error:
                if _is_disk_full(error):
                    raise DiskFull(
                        f"no room left for {key} in {self._root} (cache {self.cache}): free some space or set "
                        "NEWSJUICE_ARTIFACTS to another disk, then run again; finished work is kept."
                    ) from error
                raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
            self._prune(key, version)
        return self.open(key)

    def put_in_force(self, key: str, version: str) -> Artifact:
        """Let `CURRENT` name another version that is still kept, in one step; returns that version, checked.

        Raises:
            ArtifactMissing: that version is no longer kept.
            ArtifactCorrupted: a file of it is missing or differs from its SHA-256; what was in force stays in force.
            ArtifactBusy: another process is writing `key` and does not finish within `lock_timeout_s`.
        """
        with self._lock(key):
            artifact = self.open(key, version)
            self._point_to(key, version)
            if self.is_local:
                os.utime(artifact.path)  # what served last is pruned last
        return artifact

    def recipe_in_force(self, key: str) -> Mapping[str, Any] | None:
        """The recipe of the artefact in force, even where its files are damaged; None without one or without its manifest."""
        version = self.current_version(key)
        if version is None:
            return None
        try:
            raw = (self._root / key / version / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None
        if not hashlib.sha256(raw).hexdigest().startswith(version):
            return None
        recipe: dict[str, Any] = json.loads(raw)["recipe"]
        return recipe

    def _reusable(self, key: str, recipe: Mapping[str, Any]) -> Artifact | None:
        if self.current_version(key) is None:
            return None
        try:
            artifact = self.open(key)
        except (ArtifactError, OSError, ValueError) as error:
            logger.warning("%s is damaged and will be written again: %s", key, error)
            return None
        if canonical_json(artifact.recipe) != canonical_json(recipe):
            return None
        return Artifact(**{**artifact.__dict__, "reused": True})

    def _staging(self, key: str) -> Path:
        parent = Path(str(self._root / key)) if self.is_local else self.cache / "staging" / key
        if parent.exists():  # we hold the lock, so what lies here was left by a killed process
            for leftover in parent.glob(TEMPORARY + "*"):
                shutil.rmtree(leftover, ignore_errors=True)
        return parent / f"{TEMPORARY}{uuid.uuid4().hex[:12]}"

    def _commit(self, key: str, recipe: Mapping[str, Any], staging: Path) -> str:
        files = {str(path.relative_to(staging)): _sha256(path) for path in sorted(staging.rglob("*")) if path.is_file()}
        manifest = {"key": key, "files": files, "recipe": recipe, "environment": environment()}
        raw = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False).encode()
        version = hashlib.sha256(raw).hexdigest()[:16]
        target = self._root / key / version
        (staging / MANIFEST).write_bytes(raw)
        if self.is_local:
            _flush(staging)
            local = Path(str(target))
            if local.exists():  # same content as before, possibly damaged since
                shutil.rmtree(local)
            os.rename(staging, local)
        else:
            for name in [*files, MANIFEST]:
                with (staging / name).open("rb") as reader, (target / name).open("wb") as writer:
                    shutil.copyfileobj(reader, writer, 2**22)
        self._point_to(key, version)
        return version

    def _point_to(self, key: str, version: str) -> None:
        pointer = self._root / key / CURRENT
        if not self.is_local:  # object stores replace an object in one step
            pointer.write_text(version, encoding="utf-8")
            return
        temporary = Path(f"{pointer}{TEMPORARY}{uuid.uuid4().hex[:8]}")
        temporary.write_text(version, encoding="utf-8")
        os.replace(temporary, str(pointer))

    def _prune(self, key: str, in_force: str) -> None:
        if not self.is_local:  # object stores have life-cycle rules for this
            return
        versions = [entry for entry in Path(str(self._root / key)).iterdir() if (entry / MANIFEST).is_file()]
        old = sorted((v for v in versions if v.name != in_force), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in old[KEPT_VERSIONS - 1 :]:
            shutil.rmtree(entry, ignore_errors=True)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        path = self.cache / "locks" / (key.replace("/", "@") + ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=self.lock_timeout_s)
        try:
            with lock:
                yield
        except Timeout:
            raise ArtifactBusy(
                f"another process is writing {key} (waited {self.lock_timeout_s:.0f} s): run again when it has finished."
            ) from None


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk; libraries that write weights report it in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(directory: Path) -> None:
    """Have the files on disk before the rename makes them visible."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
