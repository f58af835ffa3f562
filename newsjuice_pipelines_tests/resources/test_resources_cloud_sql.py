"""The article database through the Cloud SQL connector: the real one, against a local admin API and a local door with TLS."""

import contextlib
import datetime as dt
import functools
import http.server
import json
import os
import socket
import ssl
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from newsjuice_pipelines.resources.postgres import ArticleDatabase, DatabaseUnreachable

SECRET = "p@ss/w:rd? 100%"
ROWS = 1500


@pytest.fixture
def cloud(articles: str, authority: Any, listening: Any, join: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The real connector against a local admin API and a TLS door to the database; what they were asked for."""
    from google.cloud.sql import connector
    from google.cloud.sql.connector import connector as implementation
    from google.oauth2.credentials import Credentials

    asked: dict[str, Any] = {"paths": [], "bodies": [], "clients": [], "connectors": [], "arguments": []}

    def serve(peer: socket.socket) -> None:
        secure = context.wrap_socket(peer, server_side=True)
        asked["clients"].append(dict(part[0] for part in secure.getpeercert()["subject"])["commonName"])
        join(secure, articles)

    context = authority.context
    monkeypatch.setattr(context, "verify_mode", ssl.CERT_REQUIRED)
    door = contextlib.ExitStack()
    port = door.enter_context(listening(serve))
    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(AdminApi, authority, asked))
    threading.Thread(target=api.serve_forever, daemon=True).start()

    class Local(connector.Connector):
        def __init__(self, **arguments: Any) -> None:
            endpoint, credentials = f"http://127.0.0.1:{api.server_port}", Credentials("token")
            super().__init__(sqladmin_api_endpoint=endpoint, credentials=credentials, **arguments)
            asked["connectors"].append(self)

        def connect(self, *where: Any, **arguments: Any) -> Any:
            asked["arguments"].append((where, arguments))
            return super().connect(*where, **arguments)

    monkeypatch.setattr(connector, "Connector", Local)
    monkeypatch.setattr(implementation, "SERVER_PROXY_PORT", port)
    monkeypatch.delenv("NEWSJUICE_DATABASE_URL")
    for name, value in {
        "INSTANCE": "my-project:europe-west1:my-instance",
        "USER": "postgres",
        "DATABASE": urlsplit(articles).path[1:],
        "PASSWORD": SECRET,
    }.items():
        monkeypatch.setenv(f"NEWSJUICE_CLOUD_SQL_{name}", value)
    yield asked
    door.close()
    api.shutdown()
    api.server_close()


class AdminApi(http.server.BaseHTTPRequestHandler):
    """The two calls of the Cloud SQL Admin API that a connection takes."""

    def __init__(self, authority: Any, asked: dict[str, Any], *arguments: Any) -> None:
        self.authority, self.asked = authority, asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.asked["paths"].append(self.path)
        if "my-instance" not in self.path:
            self.answer({"error": {"message": "The Cloud SQL instance does not exist."}}, 404)
            return
        self.answer(
            {
                "region": "europe-west1",
                "databaseVersion": "POSTGRES_18",
                "ipAddresses": [{"type": "PRIMARY", "ipAddress": "127.0.0.1"}],
                "serverCaCert": {"cert": self.authority.certificate.decode()},
            }
        )

    def do_POST(self) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked["bodies"].append(body)
        certificate = self.authority.sign("a client", load_pem_public_key(body["public_key"].encode()))
        self.answer({"ephemeralCert": {"cert": certificate.decode()}})

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


def count_rows(connection: psycopg.Connection) -> Any:
    return connection.execute("SELECT count(*) FROM chunks_vector").fetchone()


def test_articles_are_read_through_the_cloud_sql_connector_which_is_closed(cloud: dict[str, Any]) -> None:
    with ArticleDatabase().read_only() as connection:
        assert count_rows(connection) == (ROWS,)
    assert connection.closed
    assert cloud["clients"] == ["a client"], "the door was opened with the certificate of the admin API"
    assert [connector._closed for connector in cloud["connectors"]] == [True]
    assert cloud["arguments"][0][1]["password"] == SECRET
    assert cloud["arguments"][0][1]["enable_iam_auth"] is False


def test_a_connection_through_the_connector_is_read_only_and_is_opened_again_when_lost(
    cloud: dict[str, Any], end: Any, articles: str, waits: list[float]
) -> None:
    def lose_once(connection: psycopg.Connection) -> Any:
        if len(cloud["connectors"]) == 1:
            end(connection, articles)
        return count_rows(connection)

    assert ArticleDatabase().read(lose_once) == (ROWS,)
    assert waits == [1.0]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ArticleDatabase().read(lambda connection: connection.execute("DELETE FROM chunks_vector"))
    assert all(connector._closed for connector in cloud["connectors"])


def test_without_a_password_the_log_in_is_by_iam(cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEWSJUICE_CLOUD_SQL_PASSWORD")
    monkeypatch.setattr("google.cloud.sql.connector.client._downscope_credentials", lambda given: FreshToken())
    assert ArticleDatabase().read(count_rows) == (ROWS,)
    assert cloud["arguments"][0][1]["enable_iam_auth"] is True
    assert "password" not in cloud["arguments"][0][1]
    assert cloud["bodies"][0]["access_token"] == "log-in token"


class FreshToken:
    token = "log-in token"
    expiry = dt.datetime(2099, 1, 1)


def test_an_unknown_instance_is_named_and_the_password_is_not(cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWSJUICE_CLOUD_SQL_INSTANCE", "my-project:europe-west1:other")
    with pytest.raises(DatabaseUnreachable, match=r"my-project:europe-west1:other does not answer: .*does not exist") as raised:
        ArticleDatabase().read(count_rows)
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert all(connector._closed for connector in cloud["connectors"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CLOUD_SQL_INSTANCE": "my-instance"}, "project:region:instance"),
        ({"CLOUD_SQL_USER": ""}, "NEWSJUICE_CLOUD_SQL_USER"),
        ({"DATABASE_URL": "postgresql://127.0.0.1/news"}, "both set"),
    ],
)
def test_settings_that_contradict_each_other_or_lack_something_are_named(
    cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(f"NEWSJUICE_{name}", value)
    with pytest.raises(ValueError, match=message):
        ArticleDatabase().read(count_rows)


def test_a_connector_that_is_not_installed_says_how_to_install_it(cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.sql.connector", None)
    with pytest.raises(DatabaseUnreachable, match=r"pip install 'newsjuice-pipelines\[gcp\]'"):
        ArticleDatabase().read(count_rows)


def test_missing_credentials_say_how_to_get_some(articles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEWSJUICE_DATABASE_URL")
    monkeypatch.setenv("NEWSJUICE_CLOUD_SQL_INSTANCE", "my-project:europe-west1:my-instance")
    monkeypatch.setenv("NEWSJUICE_CLOUD_SQL_USER", "me")
    monkeypatch.setenv("NEWSJUICE_CLOUD_SQL_DATABASE", "news")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", os.fspath(tmp_path / "none.json"))
    with pytest.raises(DatabaseUnreachable, match="gcloud auth application-default login"):
        ArticleDatabase().read(count_rows)
