"""`python -m newsjuice_pipelines.remote`: what a container does. It takes a job by Dagster Pipes, trains, and publishes.

The artefact root comes from `NEWSJUICE_ARTIFACTS`; credentials are those of the machine's service account.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes
from upath import UPath

from newsjuice_pipelines.remote.checkpoints import kept_checkpoints
from newsjuice_pipelines.remote.jobs import JOB, TrainingJob, publish
from newsjuice_pipelines.remote.messages import ObjectContextLoader, ObjectMessageWriter, PipesLogHandler
from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.runtime.provenance import fingerprint
from newsjuice_pipelines.runtime.tracking import Tracker
from newsjuice_pipelines.settings import Settings, load_settings

# Asks whoever started the container to try again; any other status but 0 is final.
TRY_AGAIN = os.EX_TEMPFAIL


def main() -> int:
    """Run the job that the environment names; returns the exit status."""
    if DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        print("This is what a training job runs in its container; set NEWSJUICE_TRAINING_ON=vertex to use it.", file=sys.stderr)
        return os.EX_USAGE
    try:
        with open_dagster_pipes(context_loader=ObjectContextLoader(), message_writer=ObjectMessageWriter()) as pipes:
            run_job(pipes, load_settings())
    except Exception as error:  # it is reported by Pipes; the status says whether another try makes sense
        traceback.print_exc()
        return TRY_AGAIN if isinstance(error, ConnectionError | TimeoutError) else 1
    return 0


def run_job(pipes: PipesContext, settings: Settings) -> None:
    """Train and publish, and tell the orchestrator which version it became."""
    logger = logging.getLogger("newsjuice")
    logger.setLevel(logging.INFO)
    logger.addHandler(PipesLogHandler(pipes))
    job = TrainingJob.from_values(pipes.get_extra(JOB))
    store = ArtifactStore(settings.artifact_root, settings.cache)
    copies = UPath(store.root) / "checkpoints" / job.key / fingerprint(job.recipe)[:16]
    artifact = publish(job, store, container_tracker(settings), keeping=lambda scratch: kept_checkpoints(scratch, copies))
    pipes.report_custom_message({"key": artifact.key, "version": artifact.version, "reused": artifact.reused})


def container_tracker(settings: Settings) -> Tracker:
    """Weights & Biases where the container has a key; off-line files would end with its disk."""
    online = bool(os.environ.get("WANDB_API_KEY")) and settings.wandb_mode in (None, "online")
    return Tracker("online" if online else "disabled", settings.home / "tracking", settings.wandb_project)


if __name__ == "__main__":
    sys.exit(main())
