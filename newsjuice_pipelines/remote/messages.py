"""Dagster Pipes over an object store, the side of the process that runs elsewhere: one object a chunk of messages.

Any fsspec URI will do (`gs://`, `s3://`, `file://`). Needs `dagster_pipes` but not Dagster; its reader is `object_pipes.py`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

from dagster_pipes import (
    PipesContext,
    PipesContextData,
    PipesContextLoader,
    PipesMessage,
    PipesMessageWriter,
    PipesMessageWriterChannel,
    PipesParams,
)
from upath import UPath

CONTEXT_URI, MESSAGES_URI, CHUNK_S = "context_uri", "uri", "chunk_s"

SHORTEST_CHUNK_S = 0.05
LONGEST_END_S = 120.0  # an object store that is away for longer at the end loses messages


class ObjectContextLoader(PipesContextLoader):
    """Loads the Pipes context from the object that the orchestrator wrote."""

    @contextmanager
    def load_context(self, params: PipesParams) -> Iterator[PipesContextData]:
        """The context; `params` names its URI."""
        yield json.loads(UPath(params[CONTEXT_URI]).read_text(encoding="utf-8"))


class ObjectMessageWriter(PipesMessageWriter["ObjectMessageChannel"]):
    """Writes messages as objects `1.json`, `2.json` … below a URI, one JSON message a line; the last one when it closes."""

    @contextmanager
    def open(self, params: PipesParams) -> Iterator[ObjectMessageChannel]:
        """The channel to the URI that `params` names; everything is written when the block ends."""
        channel = ObjectMessageChannel(params[MESSAGES_URI], chunk_s=params.get(CHUNK_S, 10.0))
        with channel.uploading():
            yield channel


class ObjectMessageChannel(PipesMessageWriterChannel):
    """A channel to the objects below `uri`, a new one at most every `chunk_s` seconds."""

    def __init__(self, uri: str, *, chunk_s: float) -> None:
        self._folder = UPath(uri)
        self._chunk_s = max(chunk_s, SHORTEST_CHUNK_S)
        # A container that is started again in the same job goes on behind the messages of its first try.
        self._next_chunk = last_chunk(self._folder) + 1
        self._written: SimpleQueue[PipesMessage] = SimpleQueue()
        self._waiting: list[PipesMessage] = []
        self._waiting_is_kept_back = False
        self._ended = Event()

    def write_message(self, message: PipesMessage) -> None:
        """Take a message, to be written with the next chunk."""
        self._written.put(message)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Write chunks while the block runs, and the rest at its end; an error of the store costs messages, never the work."""
        thread = Thread(target=self._upload_until_end, daemon=True, name="pipes messages")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(LONGEST_END_S)

    def _upload_until_end(self) -> None:
        while not self._ended.wait(self._chunk_s):
            self._upload()
        wait_s = 1.0
        while self._waiting or not self._written.empty():
            if not self._upload():
                time.sleep(wait_s)
                wait_s *= 2

    def _upload(self) -> bool:
        """Write a chunk if there are messages for one; whether it worked. One that did not is written again as it is."""
        while not self._waiting_is_kept_back and not self._written.empty():
            self._waiting.append(self._written.get())
        if not self._waiting:
            return True
        lines = "".join(json.dumps(message) + "\n" for message in self._waiting)
        try:
            write_whole(self._folder / f"{self._next_chunk}.json", lines.encode())
        except Exception as error:  # each store's library has errors of its own
            print(f"messages are kept back, {self._folder} does not take them: {error}", file=sys.stderr)
            self._waiting_is_kept_back = True
            return False
        self._waiting, self._waiting_is_kept_back = [], False
        self._next_chunk += 1
        return True


class PipesLogHandler(logging.Handler):
    """Sends the lines of a logger to the log of the step, and so to the run's page."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.INFO)
        self._pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line; what comes after the end is only in the container's own log."""
        if not self._pipes.is_closed:
            self._pipes.log.log(record.levelno, record.getMessage())


def last_chunk(folder: UPath) -> int:
    """The highest number of a chunk below `folder`, 0 without one."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal()), default=0)


def write_whole(target: UPath, data: bytes) -> None:
    """Write an object so that no reader sees half of it; object stores do so by themselves."""
    if target.protocol not in ("", "file", "local"):
        target.write_bytes(data)
        return
    path = Path(target.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".tmp-{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)
