"""A filled article database, ways to lose and to encrypt a connection to it, and a certificate authority."""

import contextlib
import datetime as dt
import ipaddress
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from newsjuice_pipelines.resources import postgres

ROWS = 1500


@pytest.fixture
def articles(connection: psycopg.Connection, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with chunks that the settings point at."""
    connection.execute(
        "INSERT INTO chunks_vector (article_id, chunk, chunk_index, fetched_at) "
        "SELECT 'a' || n, 'The story of house ' || n || repeat(' that stood there', 30), 0, timestamp '2026-09-05' "
        "FROM generate_series(1, %s) n",
        (ROWS,),
    )
    monkeypatch.setenv("NEWSJUICE_DATABASE_URL", empty_database)
    return empty_database


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time here."""
    waited: list[float] = []
    monkeypatch.setattr(postgres.time, "sleep", waited.append)
    return waited


@pytest.fixture
def end() -> Callable[[psycopg.Connection, str], None]:
    """Ends a connection from the server's side, and returns when it has ended."""

    def end(connection: psycopg.Connection, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))

    return end


@pytest.fixture
def listening() -> Callable[..., contextlib.AbstractContextManager[int]]:
    """Opens a port on this machine, and serves each connection in a thread."""
    return open_port


@pytest.fixture
def join() -> Callable[[socket.socket, str], None]:
    """Passes bytes between a peer and the PostgreSQL server of a URL, until one of them ends."""
    return pass_bytes


@pytest.fixture(scope="session")
def authorities() -> "type[Authority]":
    """Makes certificate authorities."""
    return Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> "Authority":
    return Authority(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def open_port(serve: Callable[[socket.socket], None], port: int = 0) -> Iterator[int]:
    """A port on this machine; each connection is served in a thread."""
    door = socket.create_server(("127.0.0.1", port))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=quietly, args=(serve, door.accept()[0]), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield door.getsockname()[1]
    finally:
        door.close()


def quietly(serve: Callable[[socket.socket], None], peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        serve(peer)


def pass_bytes(peer: socket.socket, url: str) -> None:
    """Passes bytes between a peer and the PostgreSQL server of `url`, until one of them ends."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(parse_qs(urlsplit(url).query)["host"][0] + "/.s.PGSQL.5432")

    with peer, server:
        while True:
            decrypted = isinstance(peer, ssl.SSLSocket) and peer.pending()
            for source in [peer] if decrypted else select.select([peer, server], [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                (server if source is peer else peer).sendall(data)


class Authority:
    """A certificate authority, and a certificate of this machine signed by it."""

    def __init__(self, folder: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        root = self._builder(self.name, self.key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = root.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.root_file = folder / "root.pem"
        self.root_file.write_bytes(self.certificate)
        server_key = ec.generate_private_key(ec.SECP256R1())
        pem = self.sign("my-project:my-instance", server_key.public_key()) + server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "server.pem").write_bytes(pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem")
        self.context.load_verify_locations(self.root_file)

    def sign(self, common_name: str, public_key: Any) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = self._builder(subject, public_key).add_extension(names, critical=False).sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    def _builder(self, subject: Any, public_key: Any) -> Any:
        from cryptography import x509

        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder(subject_name=subject, issuer_name=self.name, public_key=public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )
