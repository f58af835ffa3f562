"""Where models are trained: in the step itself, or as a custom job on Vertex AI that runs the same training function."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import dagster as dg

from newsjuice_pipelines.remote import jobs
from newsjuice_pipelines.remote.jobs import JOB, TrainingJob
from newsjuice_pipelines.resources.vertex import VertexNotConfigured
from newsjuice_pipelines.resources.vertex_jobs import VertexJob
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactError, ArtifactStore
from newsjuice_pipelines.runtime.provenance import canonical_json, fingerprint
from newsjuice_pipelines.runtime.tracking import Tracker
from newsjuice_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from newsjuice_pipelines.resources.vertex_pipes import VertexPipesClient

POLL_S = CHUNK_S = 10.0
COMMAND = ("python", "-m", "newsjuice_pipelines.remote")


def trained(
    context: dg.AssetExecutionContext, store: ArtifactStore, job: TrainingJob, inputs: Sequence[Artifact], tracker: Tracker
) -> Artifact:
    """The artefact of a training job, made where `NEWSJUICE_TRAINING_ON` says; an unchanged one is not made again.

    Args:
        context: of the step.
        store: where artefacts are.
        job: what is trained.
        inputs: the artefacts it reads, opened.
        tracker: where curves go when the training runs here.

    Raises:
        VertexNotConfigured: a custom job is asked for, and a setting that it needs is missing.
    """
    settings = load_settings()
    if settings.training_on == "here":
        return jobs.publish(job, store, tracker, inputs)
    check_vertex(settings, store, job)
    return _in_force(store, job) or _trained_on_vertex(context, store, job, settings)


def check_vertex(settings: Settings, store: ArtifactStore, job: TrainingJob) -> None:
    """Refuse what a container elsewhere could not do.

    Raises:
        VertexNotConfigured: no project, no image, artefacts or a base model in a folder of this machine.
    """
    if "://" not in store.root:
        raise VertexNotConfigured(
            f"a custom job cannot reach the artefacts in {store.root}: set NEWSJUICE_ARTIFACTS to gs://bucket/prefix and copy "
            "them there, or train here with NEWSJUICE_TRAINING_ON=here."
        )
    for name, value in (("NEWSJUICE_GCP_PROJECT", settings.gcp_project), ("NEWSJUICE_VERTEX_IMAGE", settings.vertex_image)):
        if not value:
            raise VertexNotConfigured(f"training on Vertex AI needs {name}: see .env.example.")
    folder = job.settings.get("model", {}).get("folder") or job.settings.get("config", {}).get("base_path")
    if folder:
        raise VertexNotConfigured(
            f"a custom job cannot reach the base model in {folder}: give a hub id with its commit, or set "
            "NEWSJUICE_TRAINING_ON=here."
        )


def vertex_client(settings: Settings, store: ArtifactStore) -> "VertexPipesClient":
    """The client of custom jobs as the settings describe it."""
    from newsjuice_pipelines.resources.vertex_pipes import VertexPipesClient

    assert settings.gcp_project is not None, "check_vertex comes first"
    return VertexPipesClient(
        settings.gcp_project,
        settings.vertex_region,
        settings.vertex_messages or f"{store.root.rstrip('/')}/messages",
        endpoint=settings.vertex_jobs_url,
        poll_s=POLL_S,
        chunk_s=CHUNK_S,
    )


def container_env(settings: Settings, store: ArtifactStore) -> dict[str, str]:
    """The settings that a container gets: these and no others, none of them a secret."""
    env = {"NEWSJUICE_ARTIFACTS": store.root, "NEWSJUICE_WANDB_PROJECT": settings.wandb_project}
    if settings.wandb_mode is not None:
        env["NEWSJUICE_WANDB_MODE"] = settings.wandb_mode
    return env


def _trained_on_vertex(context: dg.AssetExecutionContext, store: ArtifactStore, job: TrainingJob, settings: Settings) -> Artifact:
    assert settings.vertex_image is not None, "check_vertex comes first"
    invocation = vertex_client(settings, store).run(
        context=context,
        job=VertexJob(
            display_name=f"newsjuice {job.key}",
            image=settings.vertex_image,
            command=COMMAND,
            env=container_env(settings, store),
            machine=settings.vertex_machine,
            accelerator="" if settings.vertex_accelerator.lower() == "none" else settings.vertex_accelerator,
            accelerators=settings.vertex_accelerators,
            spot=settings.vertex_spot,
            timeout_s=settings.vertex_timeout_h * 3600,
            service_account=settings.vertex_service_account,
            labels={"application": "newsjuice"},
            # Two runs that ask for the same training share one job, as two on one machine share one artefact.
            work=fingerprint([store.root, job.key, job.recipe]),
        ),
        extras={JOB: asdict(job)},
    )
    made = [message for message in invocation.get_custom_messages() if message.get("key") == job.key]
    if not made:
        raise dg.Failure(f"the custom job ended without saying which version of {job.key} it made: run the step again.")
    artifact = store.open(job.key, made[-1]["version"])
    return replace(artifact, reused=bool(made[-1]["reused"]))


def _in_force(store: ArtifactStore, job: TrainingJob) -> Artifact | None:
    """The artefact in force, when the same recipe made it and it is whole: then no machine has to be paid to find that out."""
    recipe = None if job.force else store.recipe_in_force(job.key)
    if recipe is None or canonical_json(recipe) != canonical_json(job.recipe):
        return None
    try:
        return replace(store.open(job.key), reused=True)
    except ArtifactError:
        return None
