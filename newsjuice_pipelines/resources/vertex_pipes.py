"""A Dagster Pipes client for custom jobs on Vertex AI: a step starts a container there, follows its messages and its state.

Nothing of NewsJuice is in it. The container opens Pipes with `ObjectContextLoader` and `ObjectMessageWriter` of
`remote/messages.py`. The API itself, and what its errors mean, is `vertex_jobs.py`.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import dagster as dg
from dagster._core.definitions.resource_annotation import TreatAsResourceParam
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import ASSET_RESUME_RETRY_TAG, RESUME_RETRY_TAG
from dagster_pipes import DAGSTER_PIPES_MESSAGES_ENV_VAR, decode_param

from newsjuice_pipelines.remote.messages import MESSAGES_URI
from newsjuice_pipelines.resources.object_pipes import ObjectContextInjector, ObjectMessageReader, exception_text
from newsjuice_pipelines.resources.vertex_jobs import (
    SUCCEEDED,
    CustomJobs,
    JobRefused,
    JobStatus,
    JobUnavailable,
    VertexJob,
    judge,
    label_value,
)

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

RUN_LABEL, STEP_LABEL, WORK_LABEL = "dagster_run", "dagster_step", "dagster_work"
INTERRUPTIONS = (DagsterExecutionInterruptedError, KeyboardInterrupt, GeneratorExit)
LONGEST_WAIT_S = 1800.0

Context = dg.OpExecutionContext | dg.AssetExecutionContext


class VertexPipesClient(dg.PipesClient, TreatAsResourceParam):
    """Runs a step's work as a custom job on Vertex AI, and survives the loss of the step's own process.

    A job carries labels that tell which work it does. A step that is tried again, or whose run is resumed or retried after its
    process died, finds the job that is under way and goes on with it instead of paying for a second one. A run that is
    cancelled cancels its job; a process that is merely stopped leaves it running where Dagster will resume or retry the run.

    Want of quota, of machines or of an answer ends in `dg.RetryRequested` with growing waits, everything else in a
    `dg.Failure` that is not retried.

    Args:
        project: Google Cloud project.
        region: such as `us-central1`.
        messages_uri: folder for context and messages, as an fsspec URI that container and step both reach (`gs://…`).
        endpoint: another address of the API, for a private endpoint.
        credentials: None: application-default credentials.
        poll_s: seconds between looks at job and messages.
        chunk_s: seconds between message chunks of the container.
        patience_s: seconds for which the API may give no answer while a job is watched.
        max_retries: further tries after want of quota or machines, with `first_wait_s` seconds before the first, then twice
            as many each time.
        first_wait_s: see above.
    """

    def __init__(
        self,
        project: str,
        region: str,
        messages_uri: str,
        *,
        endpoint: str | None = None,
        credentials: "Credentials | None" = None,
        poll_s: float = 10.0,
        chunk_s: float = 10.0,
        patience_s: float = 900.0,
        max_retries: int = 5,
        first_wait_s: float = 60.0,
    ) -> None:
        self.messages_uri = messages_uri.rstrip("/")
        self._jobs = CustomJobs(project, region, endpoint, credentials)
        self._poll_s, self._chunk_s, self._patience_s = poll_s, chunk_s, patience_s
        self._max_retries, self._first_wait_s = max_retries, first_wait_s

    def run(  # type: ignore[override]
        self, *, context: Context, job: VertexJob, extras: dict[str, Any] | None = None
    ) -> dg.PipesClientCompletedInvocation:
        """Run a container to its end, or go on with the job that was started for the same work.

        Args:
            context: of the step.
            job: what to run, and on which machine.
            extras: JSON values that the container finds in its Pipes context.

        Raises:
            dagster.RetryRequested: no quota, no machine, or no answer; Dagster tries the step again.
            dagster.Failure: refused, failed, cancelled elsewhere, or tried often enough.
        """
        lineage = run_lineage(context)
        work = _digest(job.work or f"{lineage[-1]}/{_step_key(context)}/{job.display_name}")
        with self._outcomes(context):
            found = self._find(work, lineage)
            uri = _messages_of(found) if found else f"{self.messages_uri}/{context.run_id}/{uuid.uuid4().hex[:12]}"
            reader = ObjectMessageReader(uri, poll_s=self._poll_s, chunk_s=self._chunk_s)
            injector = ObjectContextInjector(uri, write=found is None)
            with dg.open_pipes_session(context, injector, reader, extras=extras) as session:
                try:
                    if found is None:
                        env = dict(session.get_bootstrap_env_vars())
                        found = self._create(context, job.request(env, self._labels(context, work)), work, lineage)
                        context.log.info(f"Custom job {found.id} started: {self.console_url(found)}")
                    else:
                        context.log.info(f"Going on with custom job {found.id}, started earlier: {self.console_url(found)}")
                    ended = self._wait(context, found)
                except INTERRUPTIONS:
                    self._interrupted(context, work, lineage)
                    raise
            self._check(ended, job, reader)
        metadata: dict[str, Any] = {"vertex_job": dg.MetadataValue.url(self.console_url(ended)), "vertex_job_id": ended.id}
        return dg.PipesClientCompletedInvocation(session, metadata=metadata)

    def console_url(self, job: JobStatus) -> str:
        """The page of a job in Google's console."""
        place = f"locations/{self._jobs.region}/training/{job.id}"
        return f"https://console.cloud.google.com/vertex-ai/{place}/cpu?project={self._jobs.project}"

    def logs_url(self, job: JobStatus) -> str:
        """The page of what the container wrote to standard output and error."""
        query = quote(f'resource.type="ml_job" resource.labels.job_id="{job.id}"', safe="")
        return f"https://console.cloud.google.com/logs/query;query={query}?project={self._jobs.project}"

    def _labels(self, context: Context, work: str) -> dict[str, str]:
        return {RUN_LABEL: label_value(context.run_id), STEP_LABEL: label_value(_step_key(context)), WORK_LABEL: work}

    def _find(self, work: str, lineage: list[str]) -> JobStatus | None:
        """The job of this work that is under way; or one that this run, or the run that it retries, brought to its end."""
        jobs = self._jobs.find(WORK_LABEL, work)
        ours = {label_value(run_id) for run_id in lineage}
        for job in jobs:
            if job.is_under_way or (job.state == SUCCEEDED and job.labels.get(RUN_LABEL) in ours):
                return job
        return None

    def _create(self, context: Context, request: dict[str, Any], work: str, lineage: list[str]) -> JobStatus:
        """A new job; when the answer to the request got lost, the job that it made all the same."""
        try:
            return self._jobs.create(request)
        except JobUnavailable as error:
            context.log.warning(f"No job yet: {error}")
            found = self._find(work, lineage)
            if found is None or found.labels.get(RUN_LABEL) != label_value(context.run_id):
                raise
            return found

    def _wait(self, context: Context, job: JobStatus) -> JobStatus:
        """The job at its end. The API may fail to answer for a while."""
        state, last_answer = job.state, time.monotonic()
        while not job.has_ended:
            time.sleep(self._poll_s)
            try:
                job = self._jobs.get(job.name)
            except JobUnavailable as error:
                if time.monotonic() - last_answer > self._patience_s:
                    raise
                context.log.warning(f"The state of custom job {job.id} is not known just now. {error}")
                continue
            last_answer = time.monotonic()
            if job.state != state:
                state = job.state
                context.log.info(f"Custom job {job.id}: {state.removeprefix('JOB_STATE_').lower().replace('_', ' ')}.")
        return job

    def _check(self, ended: JobStatus, job: VertexJob, reader: ObjectMessageReader) -> None:
        """Raise unless the job succeeded and its container says so too."""
        exception = None if reader.exception is None else exception_text(reader.exception)
        if ended.state == SUCCEEDED and exception is None:
            return
        verdict = judge(ended, exception, spot=job.spot)
        message = f"custom job {ended.id} did not succeed: {verdict.reason}\nIts output: {self.logs_url(ended)}"
        raise JobUnavailable(message) if verdict.may_succeed_later else JobRefused(message)

    @contextmanager
    def _outcomes(self, context: Context) -> Iterator[None]:
        """Errors of a job as what Dagster acts upon."""
        try:
            yield
        except JobRefused as error:
            raise dg.Failure(_sentence(error), allow_retries=False) from None
        except JobUnavailable as error:
            self._try_again(context, error)

    def _try_again(self, context: Context, error: JobUnavailable) -> NoReturn:
        done = context.retry_number
        if done >= self._max_retries:
            raise dg.Failure(f"{_sentence(error)}\nTried {done + 1} times; run it again later.") from None
        wait_s = min(self._first_wait_s * 2**done, LONGEST_WAIT_S)
        context.log.warning(f"{_sentence(error)}\nAnother try in {wait_s:.0f} s ({done + 1} of {self._max_retries}).")
        raise dg.RetryRequested(max_retries=self._max_retries, seconds_to_wait=wait_s) from error

    def _interrupted(self, context: Context, work: str, lineage: list[str]) -> None:
        """Cancel the job, unless a later process of this run or its retry, or another run that waits for it, wants it."""
        job = self._quietly(context, lambda: self._find(work, lineage))
        if job is None or not job.is_under_way:
            return
        if will_come_back(context):
            context.log.warning(f"Custom job {job.id} goes on: Dagster will resume or retry this run, which then finds it.")
        elif _belongs_to_another(context, job):
            context.log.warning(f"Custom job {job.id} goes on: the run that started it still waits for it.")
        else:
            self._quietly(context, lambda: self._jobs.cancel(job.name))
            context.log.info(f"Custom job {job.id} is cancelled.")

    def _quietly(self, context: Context, ask: Callable[[], Any]) -> Any:
        """What the API answers, after an interruption that must not turn into another error; None without an answer."""
        try:
            return ask()
        except (JobRefused, JobUnavailable) as error:
            context.log.error(f"The custom job may still be running: cancel it in Google's console. {error}")
            return None


def run_lineage(context: Context) -> list[str]:
    """The ids of this run and of those it retries from failure, back to the first one.

    A run that was re-executed as a whole starts its own lineage: it asks for new work.
    """
    run: dg.DagsterRun | None = context.run
    found = [context.run_id]
    while run is not None and "true" in (run.tags.get(RESUME_RETRY_TAG), run.tags.get(ASSET_RESUME_RETRY_TAG)):
        if run.parent_run_id is None or run.parent_run_id in found:
            break
        found.append(run.parent_run_id)
        run = context.instance.get_run_by_id(run.parent_run_id)
    return found


def will_come_back(context: Context) -> bool:
    """Whether Dagster starts another process for this run, or a retry of it, when this process ends now."""
    instance = context.instance
    run = instance.get_run_by_id(context.run_id)
    if run is None or run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
        return False
    if instance.run_will_resume(run.run_id):
        return True
    failed = run.with_status(dg.DagsterRunStatus.FAILURE)
    return auto_reexecution_should_retry_run(instance, failed, RunFailureReason.UNEXPECTED_TERMINATION)


def _belongs_to_another(context: Context, job: JobStatus) -> bool:
    """Whether another run of this instance started the job and has not ended."""
    owner = context.instance.get_run_by_id(job.labels.get(RUN_LABEL, ""))
    return owner is not None and owner.run_id != context.run_id and not owner.is_finished


def _messages_of(job: JobStatus) -> str:
    """Where a job writes its messages, as it was told when it was started.

    Raises:
        JobRefused: it was not started by this client.
    """
    if DAGSTER_PIPES_MESSAGES_ENV_VAR not in job.env:
        raise JobRefused(f"custom job {job.id} carries the label {WORK_LABEL} but no parameters of Dagster Pipes: cancel it.")
    return str(decode_param(job.env[DAGSTER_PIPES_MESSAGES_ENV_VAR])[MESSAGES_URI])


def _step_key(context: Context) -> str:
    return str(context.get_step_execution_context().step.key)


def _digest(text: str) -> str:
    """A label value that stands for a text of any length."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
