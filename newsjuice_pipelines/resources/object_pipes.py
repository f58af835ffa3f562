"""Dagster Pipes over an object store, the side of the step: writes the context, follows the messages. Any fsspec URI will do.

Nothing of NewsJuice is in it. The other side is `remote/messages.py`; the writers for S3 and GCS that come with `dagster_pipes`
understand its parameters too.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_pipes import PIPES_PROTOCOL_VERSION_FIELD, PipesContextData, PipesException, PipesMessage, PipesParams
from upath import UPath

from newsjuice_pipelines.remote.messages import CHUNK_S, CONTEXT_URI, MESSAGES_URI, write_whole

logger = logging.getLogger(__name__)

CONTEXT_FILE = "context.json"
JOIN_S = 120.0
LAST_TRIES = 5


class MessagesUnreadable(RuntimeError):
    """The object store did not give a chunk of messages."""


class ObjectContextInjector(dg.PipesContextInjector):
    """Hands the context over as an object, so that its size has no limit.

    Args:
        uri: folder of the session; the context becomes `context.json` in it.
        write: whether to write it; not for a process that was started earlier and has it.
    """

    def __init__(self, uri: str, *, write: bool = True) -> None:
        self.uri = uri
        self._write = write

    @contextmanager
    def inject_context(self, context_data: PipesContextData) -> Iterator[PipesParams]:
        """Write the context; the parameters name the object."""
        target = UPath(self.uri) / CONTEXT_FILE
        if self._write:
            write_whole(target, json.dumps(context_data).encode())
        where = _bucket_and_key(f"{self.uri}/{CONTEXT_FILE}")
        yield {CONTEXT_URI: f"{self.uri}/{CONTEXT_FILE}", **({} if where is None else {"bucket": where[0], "key": where[1]})}

    def no_messages_debug_text(self) -> str:
        """Where the context is."""
        return f"The context is in {self.uri}/{CONTEXT_FILE}; the process must load it by ObjectContextLoader."


class ObjectMessageReader(dg.PipesMessageReader):
    """Follows the message chunks `1.json`, `2.json` … below a URI, from the first one on.

    An exception with which the process closed is kept as `exception`, and handed on only at the end of the session: a
    container that is started again in the same job may do better.

    Args:
        uri: folder of the session.
        poll_s: seconds between looks.
        chunk_s: seconds between the chunks of the process.
    """

    def __init__(self, uri: str, *, poll_s: float = 5.0, chunk_s: float = 10.0) -> None:
        self.uri = uri
        self.exception: PipesException | None = None
        self._poll_s, self._chunk_s = poll_s, chunk_s
        self._next_chunk = 1
        self._closing: PipesMessage | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Follow the messages until the block ends; what is there by then is read to the last line."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(handler, ended), daemon=True, name="pipes messages")
        thread.start()
        where = _bucket_and_key(self.uri)
        try:
            yield {
                MESSAGES_URI: self.uri,
                CHUNK_S: self._chunk_s,
                **({} if where is None else {"bucket": where[0], "key_prefix": where[1]}),
            }
        finally:
            ended.set()
            thread.join(JOIN_S)

    def no_messages_debug_text(self) -> str:
        """Where messages were looked for."""
        return f"Messages were looked for in {self.uri}; the process must write them by ObjectMessageWriter."

    def _follow(self, handler: dg.PipesMessageHandler, ended: threading.Event) -> None:
        try:
            while not ended.wait(self._poll_s):
                try:
                    self._read_new(handler)
                except MessagesUnreadable as error:  # the store may be away for a while; nothing is lost by it
                    logger.warning("%s", error)
            self._read_rest(handler)
        except Exception:  # a thread has nobody else to tell
            handler.report_pipes_framework_exception("ObjectMessageReader", sys.exc_info())

    def _read_rest(self, handler: dg.PipesMessageHandler) -> None:
        for attempt in range(1, LAST_TRIES + 1):
            try:
                self._read_new(handler)
                break
            except MessagesUnreadable:
                if attempt == LAST_TRIES:
                    raise
                time.sleep(self._poll_s)
        if self._closing is not None:
            handler.handle_message(self._closing)

    def _read_new(self, handler: dg.PipesMessageHandler) -> None:
        """Hand on the chunks that came since the last look."""
        while (messages := self._chunk(self._next_chunk)) is not None:
            self._next_chunk += 1
            for message in messages:
                self._hand_on(message, handler)

    def _chunk(self, number: int) -> list[PipesMessage] | None:
        """The messages of a chunk; None while it is not there.

        Raises:
            MessagesUnreadable: the object store does not answer, or the chunk is no JSON.
        """
        try:
            target = UPath(self.uri) / f"{number}.json"
            target.fs.invalidate_cache()  # what was not there a moment ago may be there now
            lines = target.read_text(encoding="utf-8").splitlines()
            return [message for line in lines if line and PIPES_PROTOCOL_VERSION_FIELD in (message := json.loads(line))]
        except FileNotFoundError:
            return None
        except Exception as error:  # each store's library has errors of its own
            raise MessagesUnreadable(f"messages in {self.uri} cannot be read just now: {type(error).__name__}") from error

    def _hand_on(self, message: PipesMessage, handler: dg.PipesMessageHandler) -> None:
        method, params = message["method"], message["params"] or {}
        if method == "opened" and self._closing is not None:
            self.exception = self._closing = None
        if method == "closed" and (exception := params.get("exception")) is not None:
            self.exception, self._closing = exception, message
            return
        handler.handle_message(message)


def exception_text(exception: Mapping[str, Any]) -> str:
    """An exception of the process in one line, with what caused it."""
    text = " ".join(str(exception.get("message") or exception.get("name") or "an exception without a message").split())
    cause = exception.get("cause")
    return f"{text} (caused by {exception_text(cause)})" if cause else text


def _bucket_and_key(uri: str) -> tuple[str, str] | None:
    """Bucket and key of a URI of Cloud Storage or S3, as the writers of `dagster_pipes` want them."""
    scheme, _, rest = uri.partition("://")
    if scheme not in ("gs", "gcs", "s3"):
        return None
    bucket, _, key = rest.partition("/")
    return bucket, key
