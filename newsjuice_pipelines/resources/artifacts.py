"""The artefact store as a Dagster resource, and the translation of an artefact into a materialisation."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from newsjuice_pipelines.runtime.artifacts import ArtifactStore


class Artifacts(dg.ConfigurableResource):
    """Where artefacts are read and written: a folder, or any fsspec URI."""

    root: str = Field(description="Artefact root: a folder or an fsspec URI such as gs://bucket/prefix.")
    cache: str = Field(description="Local folder for scratch space, locks and copies of remote artefacts.")
    lock_timeout_s: float = Field(default=30.0, description="How long a second writer of an artefact waits, seconds.")

    def store(self) -> ArtifactStore:
        """The store itself, free of Dagster."""
        return ArtifactStore(self.root, Path(self.cache), self.lock_timeout_s)
