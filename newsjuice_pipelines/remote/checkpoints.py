"""Copies of a training's checkpoints on the object store, so that it goes on after its machine was taken away.

Which of them a training goes on from is for `runtime/checkpoints.py` to say.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from upath import UPath

COPY_EVERY_S = 60.0
LAST_FILE = "trainer_state.json"  # trainings write it when the rest of a checkpoint is there, so it is copied last


@contextmanager
def kept_checkpoints(scratch: Path, remote: UPath, every_s: float = COPY_EVERY_S) -> Iterator[None]:
    """Fetch the checkpoints of an earlier try into `scratch`, copy new ones to `remote` meanwhile, and remove them at the end.

    After an error in the block the copies stay. An error of the object store is printed and costs a copy, never the work.
    """
    if remote.exists() and not any(scratch.iterdir()):
        _fetch(remote, scratch)
    copies, ended = CheckpointCopies(scratch, remote), Event()
    thread = Thread(target=_copy_until, args=(copies, ended, every_s), daemon=True, name="checkpoint copies")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    copies.remove_all()


class CheckpointCopies:
    """The copies below `remote` of what a training keeps in `scratch`."""

    def __init__(self, scratch: Path, remote: UPath) -> None:
        self._scratch, self._remote = scratch, remote
        self._copied: dict[str, tuple[int, int]] = {}

    def update(self) -> None:
        """Copy what is new and whole; remove copies of what the training has deleted."""
        for path in sorted(self._scratch.iterdir()):
            if path.is_file() and path.suffix != ".partial":
                self._copy(path)
        kept = set()
        for folder in sorted(path for path in self._scratch.iterdir() if (path / LAST_FILE).is_file()):
            kept.add(folder.name)
            files = [path for path in folder.rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: (path.name == LAST_FILE, path)):
                self._copy(path)
        if kept:
            self._remove_others({*kept, *(path.name for path in self._scratch.iterdir() if path.is_file())})

    def remove_all(self) -> None:
        """Remove the copies: the work is done."""
        try:
            if self._remote.exists():
                self._remote.fs.rm(self._remote.path, recursive=True)
        except Exception as error:  # each store's library has errors of its own; copies that stay cost a little money
            print(f"checkpoints stay in {self._remote}: {error}", file=sys.stderr)

    def _copy(self, path: Path) -> None:
        name, about = path.relative_to(self._scratch).as_posix(), path.stat()
        mark = (about.st_size, about.st_mtime_ns)
        if self._copied.get(name) != mark:
            target = self._remote / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 2**22)
            self._copied[name] = mark

    def _remove_others(self, kept: set[str]) -> None:
        for copied in {name.partition("/")[0] for name in self._copied} - kept:
            self._remote.fs.rm((self._remote / copied).path, recursive=True)
            self._copied = {name: mark for name, mark in self._copied.items() if name.partition("/")[0] != copied}


def _copy_until(copies: CheckpointCopies, ended: Event, every_s: float) -> None:
    while not ended.wait(every_s):
        try:
            copies.update()
        except Exception as error:  # the training may delete a file meanwhile, or the store be away
            print(f"checkpoints are copied later: {error}", file=sys.stderr)


def _fetch(remote: UPath, scratch: Path) -> None:
    for source in remote.rglob("*"):
        if source.is_file():
            target = scratch / source.path.removeprefix(remote.path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 2**22)
