"""Vertex AI through Google's own libraries, against a local server that answers as the real API does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from newsjuice_pipelines.resources.vertex import VertexAI, VertexNotConfigured

MODEL = "projects/p/locations/us-central1/models/7"


class Registry(ThreadingHTTPServer):
    """Answers `models:upload` with a finished operation, and a model by its name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.uploads: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_POST(self) -> None:
        assert self.path.startswith("/v1/projects/p/locations/us-central1/models:upload")
        self.server.uploads.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        kind = "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse"
        self.answer({"name": f"{MODEL}/operations/9", "done": True, "response": {"@type": kind, "model": MODEL}})

    def do_GET(self) -> None:
        self.answer({"name": MODEL, "displayName": "newsjuice-student", "versionId": "1"})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_is_registered_with_its_place_image_and_version(registry: Registry) -> None:
    vertex = VertexAI(project="p", registry_url=f"http://127.0.0.1:{registry.server_port}")

    name = vertex.register_model("newsjuice-student", "gs://bucket/m", "image:1", "0123abcd", Credentials("token"))

    assert name == MODEL
    model = registry.uploads[0]["model"]
    assert model["artifactUri"] == "gs://bucket/m"
    assert model["containerSpec"]["imageUri"] == "image:1"
    assert model["labels"] == {"newsjuice-version": "0123abcd"}


def test_a_model_on_a_local_disk_is_refused_before_anything_is_sent(registry: Registry) -> None:
    vertex = VertexAI(project="p", registry_url=f"http://127.0.0.1:{registry.server_port}")

    with pytest.raises(VertexNotConfigured, match="NEWSJUICE_ARTIFACTS"):
        vertex.register_model("newsjuice-student", "/data/m", "image:1", "0123abcd", Credentials("token"))
    assert not registry.uploads


def test_a_missing_project_is_named() -> None:
    with pytest.raises(VertexNotConfigured, match="NEWSJUICE_GCP_PROJECT"):
        VertexAI().client()


def test_what_is_missing_for_a_client_is_reported_before_the_first_request() -> None:
    with pytest.raises(VertexNotConfigured, match="NEWSJUICE_GCP_PROJECT"):
        VertexAI().client_factory()


def test_a_client_factory_makes_a_new_client_each_time() -> None:
    factory = VertexAI(project="p").client_factory(Credentials("token"))
    first, second = factory(), factory()
    assert first is not second
    assert first.vertexai
