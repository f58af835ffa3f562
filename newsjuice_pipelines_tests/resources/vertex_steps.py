"""A code location with one asset that is made by a custom job, for the tests. As a script it is a run worker: it runs the job.

Usage: vertex_steps.py RUN-ID [RUN-ID-OF-THE-RUN-TO-RETRY]
"""

import os
import sys
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.storage.tags import RESUME_RETRY_TAG
from dagster._utils.interrupts import setup_interrupt_handlers
from google.oauth2.credentials import Credentials

from newsjuice_pipelines.resources.vertex_jobs import VertexJob
from newsjuice_pipelines.resources.vertex_pipes import VertexPipesClient

TOKEN = "ya29.very-secret-token"
SECRET = "postgresql://user:hunter2@host/db"
CONTAINER = Path(__file__).with_name("vertex_container.py")


def client(url: str, messages_uri: str, **more: Any) -> VertexPipesClient:
    usual: dict[str, Any] = {"poll_s": 0.1, "chunk_s": 0, "first_wait_s": 0.01, "max_retries": 2}
    return VertexPipesClient("p", "us-central1", messages_uri, endpoint=url, credentials=Credentials(TOKEN), **{**usual, **more})


class ThingConfig(dg.Config):
    """What the container is told, and whether it runs on spot capacity."""

    told: dict[str, str] = {}  # noqa: RUF012 - each instance gets a copy
    spot: bool = False
    work: str | None = None


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
def thing(context: dg.AssetExecutionContext, config: ThingConfig, vertex: VertexPipesClient) -> dg.MaterializeResult:
    job = VertexJob(
        "a thing",
        image="europe-docker.pkg.dev/p/r/image:1",
        command=["python", str(CONTAINER)],
        env={"MY_SETTING": "$(HOME) stays"},
        accelerator="NVIDIA_L4",
        machine="g2-standard-8",
        spot=config.spot,
        work=config.work,
    )
    told = {"folder": os.environ["TEST_FOLDER"], **config.told}
    return vertex.run(context=context, job=job, extras=told).get_materialize_result()


@dg.repository
def steps() -> list[Any]:
    folder = Path(os.environ.get("TEST_FOLDER", "/nowhere"))  # who imports the module only for its asset has none
    vertex = client(os.environ.get("TEST_VERTEX_URL", "http://127.0.0.1:9"), (folder / "messages").as_uri())
    return [*dg.with_resources([thing], {"vertex": vertex}), dg.define_asset_job("make_thing", [thing])]


def main(run_id: str, retried: str | None = None) -> None:
    setup_interrupt_handlers()
    job = ReconstructableJob.for_file(__file__, "make_thing_job")
    with dg.DagsterInstance.get() as instance:
        options = dg.ReexecutionOptions.from_failure(retried, instance) if retried else None
        # The daemon and the web UI mark a run that goes on where another failed; this call alone does not.
        tags = {"name": run_id, **({RESUME_RETRY_TAG: "true"} if retried else {})}
        dg.execute_job(job, instance, reexecution_options=options, tags=tags)


def make_thing_job() -> dg.JobDefinition:
    return steps.get_job("make_thing")


if __name__ == "__main__":
    main(*sys.argv[1:])
