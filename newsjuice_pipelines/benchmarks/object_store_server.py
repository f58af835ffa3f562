"""An object store on this machine, for tests: moto's server, which speaks S3, and the variables that lead a process to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BUCKET = "newsjuice"
_KEYS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class ObjectStore:
    """A running server with one empty bucket."""

    url: str
    environment: dict[str, str]
    """What a process needs in its environment so that `s3://` URIs lead here."""

    def uri(self, path: str) -> str:
        """The URI of a path in the bucket."""
        return f"s3://{BUCKET}/{path}"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Serve an object store; inside the block `s3://` URIs of this process and of those it starts lead to it.

    Raises:
        ImportError: the packages `moto[server]` and `s3fs` are not installed.
    """
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer
    from upath import UPath

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    environment = {**_KEYS, "AWS_ENDPOINT_URL": url}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    filesystems = type(UPath(f"s3://{BUCKET}").fs)
    filesystems.clear_instance_cache()  # those of an earlier server know its address
    try:
        UPath(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        yield ObjectStore(url, environment)
    finally:
        server.stop()
        s3_backends.reset()  # else the next server of this process would hold the same objects
        filesystems.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
