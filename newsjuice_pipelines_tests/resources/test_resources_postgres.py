"""The article database over real connections: lost, refused, slow, and encrypted."""

import datetime as dt
import logging
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from newsjuice_pipelines.podcast.sampling import chunk_filters
from newsjuice_pipelines.podcast.sampling.chunks import ChunkSampling, SourceTableError, sample_chunks
from newsjuice_pipelines.resources import postgres
from newsjuice_pipelines.resources.postgres import ArticleDatabase, ConnectionLost, DatabaseUnreachable, StatementTimeout
from newsjuice_pipelines.settings import load_settings

SECRET = "p@ss/w:rd? 100%"
ENCODED = "p%40ss%2Fw%3Ard%3F%20100%25"
DAYS = (dt.date(2026, 9, 1), dt.date(2026, 9, 30))
ROWS = 1500


# -- lost connections ----------------------------------------------------------------------------------------------------


def test_a_connection_lost_in_the_middle_of_a_pass_is_read_again(
    end: Any, articles: str, waits: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def sample(connection: psycopg.Connection) -> Any:
        problem = chunk_filters.RowFilter.problem
        rows = 0

        def problem_and_end(self: Any, values: Any) -> str | None:
            nonlocal rows
            rows += 1
            if rows == ROWS // 2 and len(seen) < 2:
                seen.append(rows)
                end(connection, articles)
            return problem(self, values)

        with monkeypatch.context() as patch:
            patch.setattr(chunk_filters.RowFilter, "problem", problem_and_end)
            return sample_chunks(connection, "chunks_vector", ChunkSampling(near_duplicate_similarity=0), *DAYS)

    with caplog.at_level(logging.WARNING, "newsjuice.database"):
        counts = ArticleDatabase().read(sample).counts

    assert seen == [ROWS // 2, ROWS // 2]
    assert counts["rows_read"] == counts["sampled"] == ROWS
    assert waits == [1.0, 10.0]
    assert "again in 1 s: the connection to the article database was lost" in caplog.text


def test_a_connection_that_is_always_lost_is_given_up_after_three_more_tries(end: Any, articles: str, waits: list[float]) -> None:
    tries = 0

    def lose(connection: psycopg.Connection) -> None:
        nonlocal tries
        tries += 1
        end(connection, articles)
        connection.execute("SELECT 1")

    with pytest.raises(ConnectionLost, match="was lost"):
        ArticleDatabase().read(lose)
    assert tries == 4
    assert waits == [1.0, 10.0, 60.0]


def test_a_server_that_refuses_connections_while_it_restarts_is_waited_for(
    end: Any, articles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try meets a closed door, the third one an open one."""
    monkeypatch.setattr(postgres.time, "sleep", lambda wait_s: monkeypatch.setenv("NEWSJUICE_DATABASE_URL", doors.pop()))
    doors = [articles, "postgresql://postgres@127.0.0.1:1/closed"]
    asked: list[str] = []

    def ask(connection: psycopg.Connection) -> str:
        asked.append(connection.info.dbname)
        if len(asked) == 1:
            end(connection, articles)
        connection.execute("SELECT 1")
        return "answer"

    assert ArticleDatabase().read(ask) == "answer"
    assert len(asked) == 2
    assert doors == []


def test_other_failures_are_not_tried_again(articles: str, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(connection: psycopg.Connection) -> None:
        connection.execute("SELECT pg_sleep(20)")

    with pytest.raises(StatementTimeout, match=r"may take 1 s\. Set NEWSJUICE_STATEMENT_TIMEOUT_S"):
        ArticleDatabase(statement_timeout_s=1).read(slow)
    with pytest.raises(SourceTableError, match="no table nowhere"):
        ArticleDatabase().read(lambda connection: sample_chunks(connection, "nowhere", ChunkSampling(), *DAYS))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ArticleDatabase().read(lambda connection: connection.execute("DELETE FROM chunks_vector"))
    monkeypatch.setenv("NEWSJUICE_DATABASE_URL", "postgresql://postgres@127.0.0.1:1/closed")
    with pytest.raises(DatabaseUnreachable, match=r"no PostgreSQL answers at 127\.0\.0\.1:1/closed"):
        ArticleDatabase().read(lambda connection: None)
    assert waits == []


def test_a_slow_sample_names_the_setting(articles: str, connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE VIEW slow AS SELECT article_id, chunk_index, title, author, source_link, source_type, published_at, fetched_at, "
        "chunk || pg_sleep(1)::text AS chunk, summary FROM chunks_vector"
    )
    database = ArticleDatabase(chunks_table="slow", statement_timeout_s=1)
    with pytest.raises(StatementTimeout, match="NEWSJUICE_STATEMENT_TIMEOUT_S"):
        database.read(lambda connection: sample_chunks(connection, "slow", ChunkSampling(), *DAYS, statement_timeout_s=1))


# -- passwords -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [f"postgresql://me:{ENCODED}@127.0.0.1:1/news", f"host=127.0.0.1 port=1 password='{SECRET}'"])
def test_a_password_with_special_characters_is_never_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWSJUICE_DATABASE_URL", url)
    database = ArticleDatabase()
    with pytest.raises(DatabaseUnreachable) as raised, database.read_only():
        pass
    shown = (
        "".join(traceback.format_exception(raised.value)) + repr(database) + repr(load_settings()) + str(database.model_dump())
    )
    assert "127.0.0.1:1" in shown
    assert not [part for part in (SECRET, ENCODED, "w:rd", "w%3Ard") if part in shown]


@pytest.mark.parametrize("option", ["sslmode=perhaps", "sslmode=verify-full&sslrootcert=/nowhere/root.pem", "port=x"])
def test_options_that_make_no_sense_are_named(option: str, listening: Any, join: Any, articles: str, monkeypatch: Any) -> None:
    with listening(lambda peer: join(peer, articles)) as port:
        monkeypatch.setenv("NEWSJUICE_DATABASE_URL", f"postgresql://postgres@127.0.0.1:{port}/news?{option}")
        with pytest.raises(DatabaseUnreachable, match=r"no PostgreSQL answers at .* Check NEWSJUICE_DATABASE_URL"):
            ArticleDatabase().read(lambda connection: None)


@pytest.mark.parametrize("password", ["p@hidden", "p/hidden", "p?hidden", "p@x/hidden", "p:1@2/hidden", "p#x@hidden"])
def test_a_password_that_is_not_encoded_is_refused_without_showing_it(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWSJUICE_DATABASE_URL", f"postgresql://me:{password}@127.0.0.1:1/news")
    with pytest.raises(DatabaseUnreachable, match="NEWSJUICE_DATABASE_URL") as raised, ArticleDatabase().read_only():
        pass
    assert "hidden" not in "".join(traceback.format_exception(raised.value))


def test_a_wrong_password_is_refused_once_and_not_shown(
    listening: Any, articles: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(refuse_password) as port:
        monkeypatch.setenv("NEWSJUICE_DATABASE_URL", f"postgresql://me:{ENCODED}@127.0.0.1:{port}/news?sslmode=disable")
        with pytest.raises(DatabaseUnreachable, match='password authentication failed for user "me"') as raised:
            ArticleDatabase().read(lambda connection: None)
    assert SECRET not in str(raised.value)
    assert waits == []


def refuse_password(peer: socket.socket) -> None:
    """Speaks as much of PostgreSQL as it takes to ask for a password, and to refuse it with the password in the message."""
    peer.recv(int.from_bytes(peer.recv(4)) - 4)
    peer.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))  # a password in clear text is wanted
    peer.recv(1)
    given = peer.recv(int.from_bytes(peer.recv(4)) - 4).rstrip(b"\0")
    fields = b'SFATAL\0C28P01\0Mpassword authentication failed for user "me" (' + given + b")\0\0"
    peer.sendall(b"E" + (len(fields) + 4).to_bytes(4) + fields)
    peer.close()


# -- TLS -----------------------------------------------------------------------------------------------------------------


def encrypted(authority: Any, join: Any, url: str) -> Callable[[socket.socket], None]:
    """Puts PostgreSQL's own TLS in front of the server, which has none."""

    def serve(peer: socket.socket) -> None:
        assert peer.recv(8)[4:] == (80877103).to_bytes(4), "a request for TLS comes first"
        peer.sendall(b"S")
        join(authority.context.wrap_socket(peer, server_side=True), url)

    return serve


def test_a_server_without_tls_is_not_read_when_the_url_asks_for_tls(
    listening: Any, join: Any, articles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = urlsplit(articles).path
    with listening(lambda peer: join(peer, articles)) as port:
        monkeypatch.setenv("NEWSJUICE_DATABASE_URL", f"postgresql://postgres@127.0.0.1:{port}{database}?sslmode=disable")
        assert ArticleDatabase().read(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
        monkeypatch.setenv("NEWSJUICE_DATABASE_URL", f"postgresql://postgres@127.0.0.1:{port}{database}?sslmode=require")
        with pytest.raises(DatabaseUnreachable, match="server does not support SSL, but SSL was required"):
            ArticleDatabase().read(lambda connection: None)


def test_the_certificate_is_checked_against_the_root_that_the_url_names(
    listening: Any, join: Any, authorities: Any, articles: str, authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(root: Path) -> Any:
        place = f"127.0.0.1:{port}{urlsplit(articles).path}"
        monkeypatch.setenv("NEWSJUICE_DATABASE_URL", f"postgresql://postgres@{place}?sslmode=verify-full&sslrootcert={root}")
        return ArticleDatabase().read(lambda connection: connection.pgconn.ssl_in_use)

    with listening(encrypted(authority, join, articles)) as port:
        assert read(authority.root_file) is True
        with pytest.raises(DatabaseUnreachable, match="SSL error"):
            read(authorities(tmp_path).root_file)
