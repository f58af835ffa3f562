"""The download from Kaggle: the real kagglehub against a local server, and what is said when it cannot work."""

from __future__ import annotations

import io
import logging
import sys
import threading
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostError
from newsjuice_pipelines.classification.corpus.kaggle import FILE, download_huffpost

KEY = "a-very-secret-key"
CONTENT = b'{"headline": "Rain Expected", "category": "WEATHER"}\n'


class KaggleServer(ThreadingHTTPServer):
    """Answers as Kaggle does: the API sends on to a signed address, which sends the file, zipped. Works as an HTTP proxy."""

    def __init__(self, status: int = 302) -> None:
        super().__init__(("127.0.0.1", 0), KaggleHandler)
        self.status = status
        self.requests: list[tuple[str, str, bytes]] = []


class KaggleHandler(BaseHTTPRequestHandler):
    server: KaggleServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Authorization"] or "", body))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", f"http://localhost/files/{FILE}.zip?signature=s")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(FILE, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(packed.tell()))
        self.end_headers()
        self.wfile.write(packed.getvalue())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    """A server that kagglehub takes for Kaggle, and credentials for it; no others are found."""
    server = KaggleServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("NO_PROXY", "no_proxy", "KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLE_USERNAME", "ann")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    yield server
    server.shutdown()
    server.server_close()


def test_the_file_is_asked_for_by_name_and_version_and_stays_in_the_folder(kaggle: KaggleServer, tmp_path: Path) -> None:
    path = download_huffpost(tmp_path / "kaggle")
    assert path.read_bytes() == CONTENT
    [(url, authorization, body)] = kaggle.requests
    assert url.endswith("DownloadDataset")
    assert authorization == "Basic " + b64encode(f"ann:{KEY}".encode()).decode()
    assert all(part in body for part in (b'"rmisra"', b'"news-category-dataset"', FILE.encode()))
    assert [found.name for found in path.parent.iterdir()] == [FILE]


def test_a_file_that_is_there_is_not_downloaded_again(kaggle: KaggleServer, tmp_path: Path) -> None:
    for _ in range(2):
        download_huffpost(tmp_path)
    assert len(kaggle.requests) == 1


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_says_what_to_do_and_leaves_nothing(
    kaggle: KaggleServer, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kaggle.status = status
    with pytest.raises(HuffPostError, match=rf"(?s)Kaggle did not send {FILE}.*{status}.*give its path") as raised:
        download_huffpost(tmp_path / "kaggle")
    assert list((tmp_path / "kaggle").iterdir()) == []
    assert KEY not in str(raised.value) + caplog.text


def test_without_credentials_the_message_says_how_to_set_them(
    kaggle: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(HuffPostError, match="KAGGLE_API_TOKEN"):
        download_huffpost(tmp_path)
    assert kaggle.requests == []


def test_a_broken_credentials_file_is_named(kaggle: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "kaggle.json").write_text("{", encoding="utf-8")
    with pytest.raises(HuffPostError, match=r"credentials cannot be read: .*kaggle\.json"):
        download_huffpost(tmp_path / "kaggle")


def test_without_the_package_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(HuffPostError, match="pip install kagglehub"):
        download_huffpost(tmp_path)
