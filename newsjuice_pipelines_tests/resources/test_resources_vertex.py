"""Vertex AI through Google's own libraries, against a local server that answers as the real API does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from google.oauth2.credentials import Credentials

from newsjuice_pipelines.resources.vertex import RegistryRefused, RegistryUnavailable, VertexAI, VertexNotConfigured

PLACE = "projects/p/locations/us-central1"
MODEL = f"{PLACE}/models/newsjuice-student"
OPERATION = f"{MODEL}/operations/9"
TOKEN = "ya29.secret"


class Registry(ThreadingHTTPServer):
    """One model and its versions. An upload is an operation that is done at the second look."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.uploads: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.looks = 0
        self.refusal: tuple[int, str, str] | None = None
        self.broken_upload: dict[str, Any] | None = None

    def add(self, upload: dict[str, Any]) -> None:
        number = str(len(self.versions) + 1)
        self.versions.append({**upload["model"], "name": f"{MODEL}@{number}", "versionId": number})


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.partition("?")[0] == f"/v1/{PLACE}/models:upload":
            if self.server.refusal:
                code, status, message = self.server.refusal
                return self.answer({"error": {"code": code, "status": status, "message": message}}, code)
            assert content.get("parentModel") == (MODEL if self.server.versions else None)
            assert content.get("modelId") == (None if self.server.versions else "newsjuice-student")
            self.server.uploads.append(content)
            self.server.looks = 0
            return self.answer({"name": OPERATION, "done": False})
        model, _, method = self.path.partition("?")[0].rpartition(":")
        assert method == "mergeVersionAliases"
        version = self.version(model)
        version["versionAliases"] = [*version["versionAliases"], *content["versionAliases"]]
        return self.answer(version)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.endswith(OPERATION):  # Google's REST client asks for operations under /ui/ instead of /v1/
            return self.answer(self.operation())
        if not self.server.versions:
            return self.answer({"error": {"code": 404, "status": "NOT_FOUND", "message": "no such model"}}, 404)
        if parts.path == f"/v1/{MODEL}:listVersions":
            key, _, value = parse_qs(parts.query)["filter"][0].partition("=")
            label = key.removeprefix("labels.")
            found = [model for model in self.server.versions if model["labels"][label] == value.strip('"')]
            return self.answer({"models": found})
        return self.answer(self.version(parts.path))

    def operation(self) -> dict[str, Any]:
        self.server.looks += 1
        if self.server.looks < 2:
            return {"name": OPERATION, "done": False}
        if self.server.broken_upload:
            return {"name": OPERATION, "done": True, "error": self.server.broken_upload}
        self.server.add(self.server.uploads[-1])
        kind = "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse"
        version = self.server.versions[-1]["versionId"]
        return {"name": OPERATION, "done": True, "response": {"@type": kind, "model": MODEL, "modelVersionId": version}}

    def version(self, path: str) -> dict[str, Any]:
        return self.server.versions[int(unquote(path).partition("@")[2] or "1") - 1]

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
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


def register(registry: Registry, version: str = "0123abcd", place: str = "gs://bucket/m", **more: Any) -> str:
    vertex = VertexAI(project="p", registry_url=f"http://127.0.0.1:{registry.server_port}")
    return vertex.register_model("newsjuice-student", place, "image:1", version, Credentials(TOKEN), **more)


def test_a_model_is_registered_with_its_place_image_and_version(registry: Registry) -> None:
    name = register(registry, labels={"newsjuice_base": "f00d"}, description="Gate passed.")

    assert name == f"{MODEL}@1"
    model = registry.uploads[0]["model"]
    assert model["artifactUri"] == "gs://bucket/m"
    assert model["containerSpec"]["imageUri"] == "image:1"
    assert model["labels"] == {"newsjuice_version": "0123abcd", "newsjuice_base": "f00d"}
    assert model["versionDescription"] == "Gate passed."
    assert set(model["versionAliases"]) == {"v-0123abcd", "default"}


def test_an_upload_is_waited_for_until_it_is_done(registry: Registry) -> None:
    register(registry)

    assert registry.looks == 2


def test_a_version_that_was_registered_before_is_not_uploaded_again(registry: Registry) -> None:
    first = register(registry)

    assert register(registry) == first
    assert len(registry.uploads) == 1


def test_a_new_version_goes_under_the_same_model_and_is_not_served_unasked(registry: Registry) -> None:
    register(registry)

    assert register(registry, "4567cdef") == f"{MODEL}@2"
    assert registry.uploads[1]["model"]["versionAliases"] == ["v-4567cdef"]


def test_a_registered_version_becomes_the_default_when_asked(registry: Registry) -> None:
    register(registry)
    register(registry, "4567cdef")

    assert register(registry, "4567cdef", make_default=True) == f"{MODEL}@2"
    assert registry.versions[1]["versionAliases"] == ["v-4567cdef", "default"]


@pytest.mark.parametrize(
    ("code", "status", "kind", "advice"),
    [
        (403, "PERMISSION_DENIED", RegistryRefused, "roles/aiplatform.user"),
        (401, "UNAUTHENTICATED", RegistryRefused, "gcloud auth application-default login"),
        (404, "NOT_FOUND", RegistryRefused, "check NEWSJUICE_GCP_PROJECT"),
        (400, "INVALID_ARGUMENT", RegistryRefused, "check the container image"),
        (429, "RESOURCE_EXHAUSTED", RegistryUnavailable, "quota .* is used up"),
        (500, "INTERNAL", RegistryUnavailable, "run again later"),
    ],
)
def test_a_refusal_says_what_to_do_and_hides_the_token(
    registry: Registry, code: int, status: str, kind: type[Exception], advice: str
) -> None:
    registry.refusal = (code, status, f"denied for Bearer {TOKEN}, token {TOKEN}")

    with pytest.raises(kind, match=advice) as caught:
        register(registry)
    assert TOKEN not in str(caught.value)


def test_an_upload_that_fails_after_it_was_accepted_is_reported(registry: Registry) -> None:
    registry.broken_upload = {"code": 7, "message": "the service agent cannot read gs://bucket/m"}

    with pytest.raises(RegistryRefused, match="service agent cannot read gs://bucket/m"):
        register(registry)


def test_a_model_on_a_local_disk_is_refused_before_anything_is_sent(registry: Registry) -> None:
    with pytest.raises(VertexNotConfigured, match="NEWSJUICE_ARTIFACTS"):
        register(registry, place="/data/m")
    assert not registry.uploads


def test_a_label_that_the_registry_cannot_hold_is_named(registry: Registry) -> None:
    with pytest.raises(VertexNotConfigured, match="newsjuice_base='F00D' cannot be a label"):
        register(registry, labels={"newsjuice_base": "F00D"})


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
