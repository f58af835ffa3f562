"""Vertex AI: the client of the paid teacher, and the Model Registry. Google's packages are an extra (`gcp`)."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.genai import Client


_NO_PACKAGE = "Vertex AI needs the gcp extra: pip install 'newsjuice-pipelines[gcp]'"


class VertexNotConfigured(ValueError):
    """Vertex AI was chosen, but something that it needs is missing."""


class VertexAI(dg.ConfigurableResource):
    """Gemini and the Model Registry on Vertex AI."""

    project: str | None = Field(default=None, description="Google Cloud project.")
    location: str = Field(default="global", description="Vertex AI location.")
    base_url: str | None = Field(default=None, description="Another address of the API, for a proxy or a private endpoint.")
    timeout_s: int = Field(default=120, description="Longest time for one request, seconds.")

    registry_location: str = Field(default="us-central1", description="Region of the Model Registry.")
    registry_url: str | None = Field(default=None, description="Another address of the registry's API, for a private endpoint.")

    def client(self, credentials: "Credentials | None" = None) -> "Client":
        """A client that never retries by itself: the teacher owns the retries.

        Raises:
            VertexNotConfigured: no project, or the `gcp` extra is not installed.
        """
        try:
            from google.genai import Client
            from google.genai.types import HttpOptions, HttpRetryOptions
        except ImportError:
            raise VertexNotConfigured(_NO_PACKAGE) from None
        options = HttpOptions(base_url=self.base_url, timeout=self.timeout_s * 1000, retry_options=HttpRetryOptions(attempts=1))
        return Client(
            enterprise=True, project=self._project(), location=self.location, credentials=credentials, http_options=options
        )

    def client_factory(self, credentials: "Credentials | None" = None) -> "Callable[[], Client]":
        """What makes clients for `GeminiTeacher`; what is missing is reported now and not at the first request.

        Raises:
            VertexNotConfigured: no project, or the `gcp` extra is not installed.
        """
        self._project()
        if find_spec("google") is None or find_spec("google.genai") is None:
            raise VertexNotConfigured(_NO_PACKAGE)
        return lambda: self.client(credentials)

    def register_model(
        self, name: str, artifact_uri: str, serving_image: str, version: str, credentials: "Credentials | None" = None
    ) -> str:
        """Put a model into the Vertex AI Model Registry; returns its resource name.

        Args:
            name: display name of the model.
            artifact_uri: folder of the model on Cloud Storage (`gs://…`).
            serving_image: container image that serves it.
            version: version of the artefact, kept as a label.
            credentials: default: application-default credentials.

        Raises:
            VertexNotConfigured: no project, no `gcp` extra, or an artefact that is not on Cloud Storage.
        """
        if not artifact_uri.startswith("gs://"):
            raise VertexNotConfigured(
                f"the Model Registry reads models from Cloud Storage, and this one is in {artifact_uri}: "
                "set NEWSJUICE_ARTIFACTS to gs://bucket/prefix and materialise the model again."
            )
        project = self._project()
        try:
            from google.cloud import aiplatform
        except ImportError:
            raise VertexNotConfigured(_NO_PACKAGE) from None
        aiplatform.init(
            project=project,
            location=self.registry_location,
            credentials=credentials,
            api_endpoint=self.registry_url,
            api_transport="rest" if self.registry_url else None,
        )
        model = aiplatform.Model.upload(
            display_name=name,
            artifact_uri=artifact_uri,
            serving_container_image_uri=serving_image,
            labels={"newsjuice-version": version},
        )
        return str(model.resource_name)

    def _project(self) -> str:
        if self.project is None:
            raise VertexNotConfigured("Vertex AI needs NEWSJUICE_GCP_PROJECT: set it to a Google Cloud project.")
        return self.project
