"""The custom job API of Vertex AI in the few calls that a step needs, and what its errors mean. Google's packages are an extra.

Nothing of NewsJuice is in it. Running a step as a job is `vertex_pipes.py`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

Answer = TypeVar("Answer")

UNDER_WAY = ("JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_PAUSED", "JOB_STATE_UPDATING")
CANCELLING = "JOB_STATE_CANCELLING"
SUCCEEDED = "JOB_STATE_SUCCEEDED"

_LONGEST_REASON = 600  # characters of Google's own message in ours
_LABEL = re.compile(r"[^a-z0-9_-]")


class JobRefused(ValueError):
    """Vertex AI refused a request, and would refuse it again."""


class JobUnavailable(RuntimeError):
    """Vertex AI could not do it now, for want of quota or by an error of its own; a later try may succeed."""


@dataclass(frozen=True)
class VertexJob:
    """A container to run as a custom job, on one machine.

    `env` is all that the container gets besides the parameters of Pipes: put no secret into it, it is stored with the job and
    shown in Google's console.
    """

    display_name: str
    image: str
    command: Sequence[str]
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    machine: str = "n1-standard-4"
    accelerator: str = ""
    """Type of the accelerators, such as `NVIDIA_L4`; empty for none."""
    accelerators: int = 1
    boot_disk_gb: int = 100
    spot: bool = False
    timeout_s: float = 24 * 3600.0
    service_account: str | None = None
    """E-mail of the account the container runs as. None: the default of custom code in the project."""
    labels: Mapping[str, str] = field(default_factory=dict)
    work: str | None = None
    """What the job does, where two runs that ask for the same are to share one. None: a job belongs to a run and its retries."""

    def request(self, env: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
        """The `CustomJob` to create, with more variables and labels."""
        machine: dict[str, Any] = {"machine_type": self.machine}
        if self.accelerator and self.accelerators:
            machine |= {"accelerator_type": self.accelerator, "accelerator_count": self.accelerators}
        container = {
            "image_uri": self.image,
            "command": list(self.command),
            "args": list(self.args),
            # `$(NAME)` would be expanded.
            "env": [{"name": name, "value": value.replace("$(", "$$(")} for name, value in {**self.env, **env}.items()],
        }
        spec: dict[str, Any] = {
            "worker_pool_specs": [
                {
                    "machine_spec": machine,
                    "replica_count": 1,
                    "disk_spec": {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": self.boot_disk_gb},
                    "container_spec": container,
                }
            ],
            # Who runs the job decides on another try, so Vertex AI does not start one unasked.
            "scheduling": {
                "timeout": f"{round(self.timeout_s)}s",
                "strategy": "SPOT" if self.spot else "STANDARD",
                "disable_retries": True,
            },
        }
        if self.service_account:
            spec["service_account"] = self.service_account
        return {"display_name": self.display_name[:128], "job_spec": spec, "labels": {**self.labels, **labels}}


@dataclass(frozen=True)
class JobStatus:
    """A custom job as of now."""

    name: str
    """Resource name, `projects/P/locations/L/customJobs/ID`."""
    state: str
    labels: Mapping[str, str]
    env: Mapping[str, str]
    error_code: int = 0
    """A code of `google.rpc.Code`, 0 without an error."""
    error: str = ""

    @property
    def is_under_way(self) -> bool:
        """Whether it waits or runs, and nobody has cancelled it."""
        return self.state in UNDER_WAY

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return not self.is_under_way and self.state != CANCELLING

    @property
    def id(self) -> str:
        """The number of the job."""
        return self.name.rpartition("/")[2]


class CustomJobs:
    """The custom jobs of a project in a region. Every method raises `JobRefused` or `JobUnavailable`, and never retries.

    Args:
        project: Google Cloud project.
        region: such as `us-central1`.
        endpoint: another address of the API, `http(s)://HOST[:PORT]`. None: Google's own of the region.
        credentials: None: application-default credentials.
        timeout_s: longest time for one request.
    """

    def __init__(
        self,
        project: str,
        region: str,
        endpoint: str | None = None,
        credentials: "Credentials | None" = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.project, self.region = project, region
        self._parent = f"projects/{project}/locations/{region}"
        self._endpoint = endpoint or f"https://{region}-aiplatform.googleapis.com"
        self._credentials, self._timeout_s = credentials, timeout_s
        self._client: Any = None

    def create(self, request: Mapping[str, Any]) -> JobStatus:
        """Create a job. After `JobUnavailable` it may exist all the same: look for it by its labels."""
        from google.cloud.aiplatform_v1.types import CustomJob

        job = CustomJob.from_json(json.dumps(request))
        return self._call(lambda client: _status(client.create_custom_job(parent=self._parent, custom_job=job, **self._options)))

    def get(self, name: str) -> JobStatus:
        """A job as of now."""
        return self._call(lambda client: _status(client.get_custom_job(name=name, **self._options)))

    def find(self, label: str, value: str) -> list[JobStatus]:
        """The jobs with a label, the newest first."""
        request = {"parent": self._parent, "filter": f'labels.{label}="{value}"'}

        def listed(client: Any) -> list[Any]:
            jobs = [job for job in client.list_custom_jobs(request=request, **self._options) if job.labels.get(label) == value]
            return sorted(jobs, key=lambda job: job.create_time, reverse=True)

        return [_status(job) for job in self._call(listed)]

    def cancel(self, name: str) -> None:
        """Ask for the end of a job, which takes a while; one that has ended stays as it is."""
        self._call(lambda client: client.cancel_custom_job(name=name, **self._options))

    @property
    def _options(self) -> dict[str, Any]:
        return {"retry": None, "timeout": self._timeout_s}

    def _call(self, ask: Callable[[Any], Answer]) -> Answer:
        """What `ask` answers; Google's errors as ours: what went wrong and what to do, without anything secret."""
        try:
            from google.api_core import exceptions as google
            from google.auth.exceptions import GoogleAuthError, TransportError
            from google.cloud.aiplatform_v1.services.job_service import JobServiceClient
            from requests.exceptions import RequestException
        except ImportError:
            raise JobRefused("Vertex AI needs the package google-cloud-aiplatform.") from None
        where = f"Vertex AI in project {self.project}, region {self.region},"
        try:
            if self._client is None:
                self._client = JobServiceClient(
                    credentials=self._credentials, transport="rest", client_options={"api_endpoint": self._endpoint}
                )
            return ask(self._client)
        except google.Unauthorized as error:
            raise JobRefused(f"{where} does not accept the credentials: {_LOG_IN} {self._reason(error)}") from None
        except google.Forbidden as error:
            raise JobRefused(
                f"{where} gives no permission: give the account the role Vertex AI User (roles/aiplatform.user) and the right to "
                f"act as the service account of the job, and enable the Vertex AI API. {self._reason(error)}"
            ) from None
        except google.NotFound as error:
            raise JobRefused(
                f"{where} does not find what was asked for: check project and region. {self._reason(error)}"
            ) from None
        except google.TooManyRequests as error:
            raise JobUnavailable(f"the quota of {where} is used up. {_MORE_QUOTA} {self._reason(error)}") from None
        except (google.BadRequest, google.Conflict) as error:
            raise JobRefused(
                f"{where} finds the request wrong: check image, machine and accelerator. {self._reason(error)}"
            ) from None
        except (google.GoogleAPICallError, google.RetryError, RequestException, TransportError, OSError) as error:
            raise JobUnavailable(f"{where} did not answer as it should. {self._reason(error)}") from None
        except GoogleAuthError:
            raise JobRefused(f"there are no credentials for {where[:-1]}: {_LOG_IN}") from None

    def _reason(self, error: Exception) -> str:
        """Google's own words, without the access token in case they repeat it."""
        text = " ".join(str(getattr(error, "message", "") or error).split())
        text = re.sub(r"^[A-Z]+ https?://\S+: ", "", text)  # which request it was is said already
        text = re.sub(r"(?i)(bearer\s+)\S+", r"\1***", text)
        token = getattr(self._credentials, "token", None)
        if token:
            text = text.replace(str(token), "***")
        return f"It says: {text[:_LONGEST_REASON]}"


_LOG_IN = (
    "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account."
)
_MORE_QUOTA = "Wait until other jobs have ended, take another region or accelerator, or ask for more on the project's quota page."


@dataclass(frozen=True)
class Verdict:
    """Why a job did not succeed, and whether another one may."""

    reason: str
    may_succeed_later: bool


_EXIT_STATUS = re.compile(r"non-zero status(?: code)?(?: of)?:? (\d+)")
_TRY_AGAIN_STATUS = 75  # EX_TEMPFAIL of sysexits.h
_TERMINATED_STATUS = 143  # by SIGTERM, which is how a spot machine is taken away
_NO_MEMORY = re.compile(r"low on memory|out of memory|\boom\b", re.IGNORECASE)
_NO_CAPACITY = re.compile(r"stockout|insufficient|preempt|not have enough resources|resource pool exhausted", re.IGNORECASE)
_NO_QUOTA = re.compile(r"quota", re.IGNORECASE)
_PASSING_CODES = {4, 8, 10, 13, 14}  # deadline exceeded, resource exhausted, aborted, internal, unavailable


def judge(job: JobStatus, exception: str | None, *, spot: bool = False) -> Verdict:
    """What the end of a job without success means.

    Args:
        job: as it ended.
        exception: what the container's own code raised, as told by Pipes; None when it told nothing.
        spot: whether it ran on spot capacity.
    """
    if job.state == "JOB_STATE_EXPIRED":
        return Verdict("it reached its time limit: raise the limit, or take a faster machine", False)
    if job.state.startswith("JOB_STATE_CANCEL"):
        return Verdict("it was cancelled outside of this run", False)
    found = _EXIT_STATUS.search(job.error)
    status = int(found.group(1)) if found else None
    if status == _TRY_AGAIN_STATUS:
        return Verdict(f"the container asks for another try: {exception or job.error}", True)
    if exception is not None:
        return Verdict(f"the container failed: {exception}", False)
    if _NO_MEMORY.search(job.error):
        return Verdict(f"the machine has too little memory: take a larger one. {job.error}", False)
    if spot and status == _TERMINATED_STATUS:
        return Verdict(f"the spot machine was taken away. {job.error}", True)
    if status is None and (_NO_CAPACITY.search(job.error) or job.error_code in _PASSING_CODES):
        if _NO_QUOTA.search(job.error):
            return Verdict(f"the quota is used up. {_MORE_QUOTA} {job.error}", True)
        return Verdict(f"Google had no machine for it, or took it away. {job.error}", True)
    return Verdict(f"{job.error or 'no reason was given'} (code {job.error_code})", False)


def label_value(text: str) -> str:
    """A text in the alphabet of labels: at most 63 lower-case letters, digits, `_` and `-`."""
    return _LABEL.sub("-", text.lower())[:63]


def _status(job: Any) -> JobStatus:
    pools = job.job_spec.worker_pool_specs
    env = {item.name: item.value.replace("$$(", "$(") for item in pools[0].container_spec.env} if pools else {}
    return JobStatus(job.name, job.state.name, dict(job.labels), env, int(job.error.code), str(job.error.message))
