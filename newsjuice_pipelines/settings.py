"""Every environment variable of the project, typed, with its default and one line of explanation.

Domain packages never read the environment: assets, resources and the command line pass them plain values.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings from `NEWSJUICE_…` variables and from a `.env` file in the working directory."""

    model_config = SettingsConfigDict(
        env_prefix="NEWSJUICE_", env_file=".env", extra="ignore", env_ignore_empty=True, frozen=True
    )

    home: Path = Field(Path(".newsjuice"), description="Folder of all state: embedded database, artefacts, Dagster storage.")
    artifacts: str | None = Field(
        None, description="Artefact root: a folder or an fsspec URI (gs://…, s3://…). Default HOME/artifacts."
    )

    database_url: SecretStr | None = Field(None, description="PostgreSQL with the articles. Default: the embedded server.")
    ledger_url: SecretStr | None = Field(None, description="PostgreSQL for the teacher ledger. Default: the embedded server.")
    cloud_sql_instance: str | None = Field(
        None, description="Cloud SQL instance with the articles, project:region:instance; instead of a URL. Needs the gcp extra."
    )
    cloud_sql_user: str | None = Field(None, description="User on the Cloud SQL instance; for IAM the account's e-mail.")
    cloud_sql_database: str | None = Field(None, description="Database on the Cloud SQL instance.")
    cloud_sql_password: SecretStr | None = Field(None, description="Password on the Cloud SQL instance. Default: IAM log-in.")
    cloud_sql_ip_type: Literal["public", "private", "psc"] = Field(
        "public", description="Address of the Cloud SQL instance that is connected to."
    )
    demo: bool = Field(True, description="Load the demo corpus into an embedded database that holds no article.")
    chunks_table: str = Field(
        "chunks_vector", description="Table of article chunks, optionally with a schema: `public.chunks_vector`."
    )
    statement_timeout_s: int = Field(600, ge=1, description="Longest time a statement on the article database may take, seconds.")
    first_day: date = Field(date(2026, 9, 1), description="First daily partition (by fetched_at, UTC).")

    teacher: Literal["extractive", "gemini"] = Field(
        "extractive", description="Who writes the training scripts: `extractive` is free, `gemini` is paid."
    )
    gemini_model: str = Field(
        "gemini-3.5-flash-lite", description="Gemini model on Vertex AI, used when the teacher is `gemini`."
    )
    gcp_project: str | None = Field(None, description="Google Cloud project of Vertex AI.")
    gcp_location: str = Field("global", description="Vertex AI location.")
    registry_location: str = Field("us-central1", description="Region of the Vertex AI Model Registry.")
    registry_url: str | None = Field(None, description="Another address of the registry's API, for a private endpoint.")

    base_model: str = Field("tiny", description="`tiny` (built here), a Hugging Face model id, or a local folder.")
    base_model_revision: str | None = Field(
        None, description="Commit of the base model on the hub. Default: the pinned one of Qwen/Qwen3-0.6B."
    )
    student_engine: str = Field(
        "auto", description="Engine of the student: `auto` chooses by device; reference, transformers, openvino, vllm."
    )
    server_url: str | None = Field(
        None, description="OpenAI-compatible server for the engine `vllm`, such as http://127.0.0.1:8000/v1."
    )
    server_model: str | None = Field(None, description="Name of the student on that server. Default: the only model it serves.")
    server_base_model: str | None = Field(None, description="Name of the untuned model there. Default: it runs on this machine.")
    server_api_key: SecretStr | None = Field(None, description="API key of that server.")
    original_outputs: Path | None = Field(
        None, description="JSON lines with a `script` each: outputs of an earlier student, shown in the quality report."
    )

    huffpost_path: Path | None = Field(
        None, description="News_Category_Dataset_v3.json or a part of it; or `kaggle`. Default: the packaged sample."
    )
    classifiers: str = Field(
        "", description="More classifier models, name=folder-or-hub-id@commit, comma-separated: each is a partition of its own."
    )
    external_csv: Path | None = Field(
        None, description="CSV with id, title, content, summary for the external check. Default: the articles table."
    )

    executor: Literal["in-process", "multiprocess", "docker", "kubernetes", "celery"] = Field(
        "in-process", description="Where Dagster runs steps."
    )
    max_concurrent_steps: int = Field(1, ge=1, description="Steps at once with the multiprocess and docker executors.")
    celery_broker: SecretStr | None = Field(None, description="RabbitMQ (amqp://…) or Redis (redis://…) of the celery executor.")
    celery_backend: SecretStr | None = Field(
        None, description="Where Celery keeps results: rpc:// with RabbitMQ, redis://… with Redis. Default: fits the broker."
    )
    gpu_leases: Path | None = Field(
        None, description="Folder in which processes lease the GPUs of this machine. Default: one below the temporary folder."
    )

    training_on: Literal["here", "vertex"] = Field(
        "here", description="Where models are trained: in the step itself, or as a custom job on Vertex AI (paid)."
    )
    vertex_region: str = Field("us-central1", description="Region of custom jobs on Vertex AI.")
    vertex_image: str | None = Field(None, description="Image of custom jobs: the project's code image in Artifact Registry.")
    vertex_machine: str = Field("g2-standard-8", description="Machine type of custom jobs.")
    vertex_accelerator: str = Field("NVIDIA_L4", description="Accelerator of custom jobs; `none` for none.")
    vertex_accelerators: int = Field(1, ge=0, description="Accelerators on the machine of a custom job.")
    vertex_spot: bool = Field(
        False, description="Custom jobs on spot capacity: cheaper, may be preempted and is then tried again."
    )
    vertex_service_account: str | None = Field(None, description="Service account of custom jobs. Default: the project's.")
    vertex_timeout_h: float = Field(24, gt=0, description="Longest time a custom job may take, hours.")
    vertex_jobs_url: str | None = Field(None, description="Another address of the custom job API, for a private endpoint.")
    vertex_messages: str | None = Field(
        None, description="gs:// URI under which custom jobs write their messages. Default: ARTIFACTS/messages."
    )

    webhook_url: SecretStr | None = Field(
        None, description="Where failed, expensive and promoting runs are told: JSON with a `text` (Slack, Mattermost, Teams …)."
    )
    expensive_run_usd: float = Field(5.0, gt=0, description="A run whose paid calls cost more than this is told to the webhook.")
    nightly_budget_usd: float = Field(5.0, gt=0, description="The most that the nightly schedule may spend on teacher calls.")
    retrain_after_scripts: int = Field(
        200, ge=1, description="The weekly schedule retrains the student when so many new scripts came since the last training."
    )

    wandb_mode: Literal["offline", "online", "disabled"] | None = Field(
        None, description="Weights & Biases: default `online` when WANDB_API_KEY is set, else `offline`."
    )
    wandb_project: str = Field("newsjuice-pipelines", description="Weights & Biases project.")

    @field_validator("home", "huffpost_path", "external_csv", "original_outputs", "gpu_leases")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("chunks_table")
    @classmethod
    def _one_or_two_names(cls, value: str) -> str:
        parts = value.split(".")
        if len(parts) > 2 or not all(parts):
            raise ValueError(f"chunks_table is {value!r}: give a table, or a schema and a table as public.chunks_vector")
        return value

    @field_validator("artifacts")
    @classmethod
    def _absolute_or_uri(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else str(Path(value).expanduser().absolute())

    @property
    def artifact_root(self) -> str:
        """The artefact root as a folder or URI."""
        return self.artifacts or str(self.home / "artifacts")

    @property
    def articles_are_embedded(self) -> bool:
        """Whether the articles lie on the embedded server: neither a URL nor a Cloud SQL instance is set."""
        return self.database_url is None and self.cloud_sql_instance is None

    @property
    def cache(self) -> Path:
        """Scratch space, locks and local copies of remote artefacts; always a local folder."""
        return self.home / "cache"


def load_settings() -> Settings:
    """The settings as the environment has them now. Cheap, and never cached: tests and the command line change variables."""
    return Settings()
