"""Vertex AI: the client of the paid teacher, and the Model Registry. Google's packages are an extra (`gcp`)."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.cloud.aiplatform.models import ModelRegistry
    from google.genai import Client


VERSION_LABEL = "newsjuice_version"
_LONGEST_REASON = 400  # characters of Google's own message in ours
_NO_PACKAGE = "Vertex AI needs the gcp extra: pip install 'newsjuice-pipelines[gcp]'"


class VertexNotConfigured(ValueError):
    """Vertex AI was chosen, but something that it needs is missing."""


class RegistryRefused(ValueError):
    """The Model Registry refused a request, and would refuse it again."""


class RegistryUnavailable(RuntimeError):
    """The Model Registry could not do it now; a later try may succeed."""


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

    def check_registry(self, artifact_uri: str) -> str:
        """The project whose registry can take a model from `artifact_uri`; what is missing is reported before any work.

        Raises:
            VertexNotConfigured: no project, no `gcp` extra, or an artefact that is not on Cloud Storage.
        """
        if not artifact_uri.startswith("gs://"):
            raise VertexNotConfigured(
                f"the Model Registry reads models from Cloud Storage, and artefacts are in {artifact_uri}: set "
                "NEWSJUICE_ARTIFACTS to gs://bucket/prefix, and copy the artefacts there or materialise them again from "
                "article_chunks on."
            )
        project = self._project()
        if find_spec("google") is None or find_spec("google.cloud") is None or find_spec("google.cloud.aiplatform") is None:
            raise VertexNotConfigured(_NO_PACKAGE)
        return project

    def register_model(
        self,
        name: str,
        artifact_uri: str,
        serving_image: str,
        version: str,
        credentials: "Credentials | None" = None,
        labels: Mapping[str, str] | None = None,
        description: str = "",
        make_default: bool = False,
    ) -> str:
        """Put a version of a model into the Vertex AI Model Registry; returns its resource name, `…/models/NAME@VERSION`.

        The first call makes the model, later ones put new versions under it. A version that is there already, as its
        label tells, is returned and not uploaded again.

        Args:
            name: id and display name of the model: lower-case letters, digits, `-` and `_`.
            artifact_uri: folder of the model on Cloud Storage (`gs://…`).
            serving_image: container image that serves it.
            version: version of the artefact, kept as the label `newsjuice_version` and as the alias `v-VERSION`.
            credentials: default: application-default credentials.
            labels: more labels, such as the identity of the base; lower-case letters, digits, `-` and `_`.
            description: of this version.
            make_default: serve this version when none is named. The first version of a model always is the default.

        Raises:
            VertexNotConfigured: no project, no `gcp` extra, an artefact that is not on Cloud Storage, or names that do not do.
            RegistryRefused: no permission, no credentials, or a request that Google finds wrong; says what to do.
            RegistryUnavailable: quota used up, the service down, or no answer in time.
        """
        project = self.check_registry(artifact_uri)
        all_labels = {**(labels or {}), VERSION_LABEL: version}
        _check_names(name, all_labels)
        from google.cloud import aiplatform

        with _readable_errors(project, self.registry_location, credentials):
            aiplatform.init(
                project=project,
                location=self.registry_location,
                credentials=credentials,
                api_endpoint=self.registry_url,
                api_transport="rest" if self.registry_url else None,
            )
            registry = aiplatform.models.ModelRegistry(name, self.registry_location, project, credentials)
            exists, known = _find_version(registry, version)
            if known is not None:
                if make_default and "default" not in known.version_aliases:
                    registry.add_version_aliases(["default"], known.version_id)
                return str(known.versioned_resource_name)
            model = aiplatform.Model.upload(
                display_name=name,
                model_id=None if exists else name,
                parent_model=name if exists else None,
                is_default_version=make_default or not exists,
                version_aliases=[f"v-{version}"],
                version_description=description or None,
                description=None if exists else "Writes podcast scripts from news articles.",
                artifact_uri=artifact_uri,
                serving_container_image_uri=serving_image,
                labels=all_labels,
            )
            return str(model.versioned_resource_name)

    def _project(self) -> str:
        if self.project is None:
            raise VertexNotConfigured("Vertex AI needs NEWSJUICE_GCP_PROJECT: set it to a Google Cloud project.")
        return self.project


def _check_names(name: str, labels: Mapping[str, str]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
        raise VertexNotConfigured(
            f"{name!r} cannot be the id of a model: use up to 63 lower-case letters, digits, '-' and '_', a letter first."
        )
    for key, value in labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            raise VertexNotConfigured(
                f"{key}={value!r} cannot be a label: use up to 63 lower-case letters, digits, '-' and '_', a letter first "
                "in the key."
            )


def _find_version(registry: "ModelRegistry", version: str) -> tuple[bool, Any]:
    """Whether the model exists, and its version that carries the label of the artefact's `version`, or None."""
    from google.api_core.exceptions import NotFound

    try:
        found = registry.list_versions(filter=f'labels.{VERSION_LABEL}="{version}"')
    except NotFound:
        return False, None
    for info in found:
        model = registry.get_model(info.version_id)
        if model.labels.get(VERSION_LABEL) == version:
            return True, model
    return True, None


@contextmanager
def _readable_errors(project: str, region: str, credentials: "Credentials | None") -> Iterator[None]:
    """Google's errors as ours: what went wrong and what to do, without anything secret."""
    from google.api_core import exceptions as google
    from google.auth.exceptions import GoogleAuthError

    where = f"the Model Registry of project {project} in {region}"
    try:
        yield
    except (GoogleAuthError, google.Unauthorized):
        raise RegistryRefused(
            f"{where} does not accept the credentials: run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account."
        ) from None
    except google.Forbidden as error:
        raise RegistryRefused(
            f"no permission at {where}: give the account the role Vertex AI User (roles/aiplatform.user), enable the Vertex AI "
            f"API, and let Vertex AI's service agent read the bucket. {_reason(error, credentials)}"
        ) from None
    except google.NotFound as error:
        raise RegistryRefused(
            f"{where} does not find what was asked for: check NEWSJUICE_GCP_PROJECT, the registry's region, and that the "
            f"model's folder and the container image exist. {_reason(error, credentials)}"
        ) from None
    except google.TooManyRequests as error:
        raise RegistryUnavailable(
            f"the quota of {where} is used up: wait and run again, or ask for more on the quota page of the project. "
            f"{_reason(error, credentials)}"
        ) from None
    except google.BadRequest as error:
        raise RegistryRefused(
            f"{where} finds the request wrong: check the container image and the model's folder. {_reason(error, credentials)}"
        ) from None
    except (google.GoogleAPICallError, google.RetryError, TimeoutError, ConnectionError) as error:
        raise RegistryUnavailable(
            f"{where} did not answer as it should: run again later, nothing is registered twice. {_reason(error, credentials)}"
        ) from None


def _reason(error: Exception, credentials: "Credentials | None") -> str:
    """Google's own words, without the access token in case they repeat it."""
    text = " ".join(str(getattr(error, "message", "") or error).split())
    text = re.sub(r"(?i)(bearer\s+)\S+", r"\1***", text)
    token = getattr(credentials, "token", None)
    if token:
        text = text.replace(str(token), "***")
    return f"Google says: {text[:_LONGEST_REASON]}"
