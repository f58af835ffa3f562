"""Steps that run as custom jobs on Vertex AI, against a local server of the protocol with a process as the container."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import instance_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget

from newsjuice_pipelines.benchmarks.vertex_jobs_server import QUOTA, STOCKOUT, Refusal, VertexJobsServer
from newsjuice_pipelines.resources.object_pipes import exception_text
from newsjuice_pipelines.resources.vertex_jobs import JobStatus, VertexJob, judge, label_value

STEPS = Path(__file__).with_name("vertex_steps.py")
DEADLINE_S = 120


@pytest.fixture(scope="module")
def steps() -> Any:
    """The code location, as a module of this process."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("vertex_steps", STEPS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Workplace:
    """A server of custom jobs, and a folder that steps, containers and the test share."""

    server: VertexJobsServer
    folder: Path
    steps: Any

    def materialize(self, config: dict[str, Any] | None = None, **client: Any) -> dg.ExecuteInProcessResult:
        """Make the asset in this process; the container need not wait."""
        self.let_go()
        vertex = self.steps.client(self.server.url, (self.folder / "messages").as_uri(), **client)
        return dg.materialize(
            [self.steps.thing],
            resources={"vertex": vertex},
            run_config={"ops": {"thing": {"config": config or {}}}},
            instance=dg.DagsterInstance.ephemeral(),
            raise_on_error=False,
        )

    def let_go(self) -> None:
        """Let the containers end."""
        (self.folder / "go on").touch()

    def starts(self) -> int:
        """How often a container began its work."""
        path = self.folder / "starts"
        return len(path.read_text()) if path.exists() else 0

    def worker(self, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """A process that runs the job, as a run worker does."""
        return subprocess.Popen([sys.executable, str(STEPS), *arguments], env={**os.environ, "DAGSTER_HOME": str(home)})


@pytest.fixture
def workplace(tmp_path: Path, steps: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    folder = tmp_path / "shared"
    folder.mkdir()
    with VertexJobsServer(tmp_path / "containers") as server:
        monkeypatch.setenv("TEST_VERTEX_URL", server.url)
        monkeypatch.setenv("TEST_FOLDER", str(folder))
        monkeypatch.setenv("NEWSJUICE_DATABASE_URL", steps.SECRET)
        yield Workplace(server, folder, steps)


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def messages(result: dg.ExecuteInProcessResult) -> str:
    """What the run's page shows."""
    return "\n".join(f"{event.message}" for event in result.all_events)


def failure(result: dg.ExecuteInProcessResult) -> Any:
    """The failure that the only step ended in."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data


def tries_again(result: dg.ExecuteInProcessResult) -> int:
    """How often Dagster tried the step again; its retry policy would do so once."""
    return len(result.filter_events(lambda event: event.event_type_value == "STEP_UP_FOR_RETRY"))


def states(server: VertexJobsServer) -> list[str]:
    return [job.state.removeprefix("JOB_STATE_") for job in server.jobs.values()]


def test_a_step_runs_as_a_job_and_its_results_and_log_lines_come_back(
    workplace: Workplace, capfd: pytest.CaptureFixture[str]
) -> None:
    result = workplace.materialize()

    (materialization,) = result.asset_materializations_for_node("thing")
    (job,) = workplace.server.jobs.values()
    assert materialization.metadata["rows"].value == 7
    assert materialization.metadata["vertex_job_id"].value == job.resource["name"].rpartition("/")[2]
    log = capfd.readouterr().err
    assert 0 < log.find("the training begins") < log.find("the training ends")


def test_a_job_is_what_was_asked_for_and_carries_labels_and_no_secret(workplace: Workplace) -> None:
    result = workplace.materialize({"spot": True})

    (job,) = workplace.server.jobs.values()
    pool, scheduling = job.resource["jobSpec"]["workerPoolSpecs"][0], job.resource["jobSpec"]["scheduling"]
    assert (pool["machineSpec"]["machineType"], pool["machineSpec"]["acceleratorCount"]) == ("g2-standard-8", 1)
    assert scheduling["disableRetries"] is True
    assert scheduling["timeout"] == "86400s"
    assert job.resource["labels"]["dagster_run"] == result.run_id
    assert job.resource["labels"]["dagster_step"] == "thing"
    assert set(job.env) == {"MY_SETTING", "DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES"}
    assert job.env["MY_SETTING"] == "$$(HOME) stays"
    everything = json.dumps(job.resource) + workplace.server.log(job)
    assert "hunter2" not in everything
    assert workplace.steps.TOKEN not in everything


def test_what_the_container_raises_is_the_failure_and_nothing_is_tried_again(workplace: Workplace) -> None:
    result = workplace.materialize({"told": {"error": "the loss is no number"}})

    found = failure(result)
    assert "the container failed: ValueError: the loss is no number" in found.description
    assert "https://console.cloud.google.com/logs/query" in found.description
    assert tries_again(result) == 0
    assert states(workplace.server) == ["FAILED"]


def test_a_container_that_dies_without_a_word_fails_the_step_for_good(workplace: Workplace) -> None:
    result = workplace.materialize({"told": {"signal": "SIGKILL"}})

    assert "non-zero status of 137" in failure(result).description
    assert states(workplace.server) == ["FAILED"]


def test_a_container_may_ask_for_another_try(workplace: Workplace) -> None:
    result = workplace.materialize({"told": {"status": "75"}}, max_retries=1)

    assert "the container asks for another try" in failure(result).description
    assert "Tried 2 times" in failure(result).description
    assert states(workplace.server) == ["FAILED", "FAILED"]


def test_a_step_waits_for_quota_and_then_runs(workplace: Workplace) -> None:
    workplace.server.behaviour.refusals.append(Refusal(429, "RESOURCE_EXHAUSTED", QUOTA))

    result = workplace.materialize()

    assert result.success
    assert tries_again(result) == 1
    assert states(workplace.server) == ["SUCCEEDED"]


def test_a_step_without_quota_gives_up_in_the_end_and_says_what_to_do(workplace: Workplace) -> None:
    workplace.server.behaviour.refusals.extend([Refusal(429, "RESOURCE_EXHAUSTED", QUOTA)] * 3)

    found = failure(workplace.materialize())

    assert "ask for more on the project's quota page" in found.description
    assert "custom_model_training_nvidia_l4_gpus" in found.description
    assert "Tried 3 times" in found.description
    assert workplace.server.jobs == {}


def test_a_machine_that_is_taken_away_is_replaced(workplace: Workplace) -> None:
    workplace.server.behaviour.preemptions = 1

    result = workplace.materialize({"spot": True})

    assert result.success
    assert states(workplace.server) == ["FAILED", "SUCCEEDED"]


def test_a_refused_permission_is_final_and_tells_the_role_and_no_token(workplace: Workplace) -> None:
    token = workplace.steps.TOKEN
    workplace.server.behaviour.refusals.append(Refusal(403, "PERMISSION_DENIED", f"Permission denied for Bearer {token}"))

    result = workplace.materialize()

    assert "roles/aiplatform.user" in failure(result).description
    assert tries_again(result) == 0
    assert token not in messages(result) + failure(result).description
    assert workplace.server.authorizations == {f"Bearer {token}"}


def test_a_wrong_request_is_final(workplace: Workplace) -> None:
    workplace.server.behaviour.refusals.append(Refusal(400, "INVALID_ARGUMENT", "Machine type is not supported."))

    result = workplace.materialize()

    assert "check image, machine and accelerator. It says: Machine type is not supported." in failure(result).description
    assert tries_again(result) == 0


def test_an_answer_that_gets_lost_does_not_start_a_second_job(workplace: Workplace) -> None:
    workplace.server.behaviour.lost_answers = 1

    assert workplace.materialize().success
    assert states(workplace.server) == ["SUCCEEDED"]


def test_a_service_that_is_away_for_a_while_does_no_harm(workplace: Workplace) -> None:
    workplace.server.behaviour.unavailable = 3

    assert workplace.materialize().success
    assert states(workplace.server) == ["SUCCEEDED"]


def test_a_service_that_stays_away_ends_the_try_but_not_the_job(workplace: Workplace) -> None:
    workplace.server.behaviour.unavailable = 2

    result = workplace.materialize(patience_s=0)

    assert result.success, "the second try should go on with the job of the first"
    assert states(workplace.server) == ["SUCCEEDED"]
    assert workplace.starts() == 1


def test_a_run_that_is_cancelled_cancels_its_job(workplace: Workplace, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    target = PythonFileTarget(python_file=str(STEPS), attribute=None, working_directory=None, location_name="steps")
    with instance_for_test(temp_dir=str(home)) as instance, WorkspaceProcessContext(instance, target) as workspace:
        request = workspace.create_request_context()
        job = request.get_code_location("steps").get_repository("steps").get_full_job("make_thing")
        run = instance.create_run_for_job(
            workplace.steps.make_thing_job(),
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
        )
        instance.launch_run(run.run_id, request)
        wait_until(workplace.starts)

        assert instance.run_launcher.terminate(run.run_id)

        wait_until(lambda: instance.get_run_by_id(run.run_id).is_finished)
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED
        wait_until(lambda: states(workplace.server) == ["CANCELLED"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Dagster home of its own."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    return folder


def the_run(home: Path) -> dg.DagsterRun:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return instance.get_runs(limit=1)[0]


def test_a_retry_of_a_killed_run_goes_on_with_the_job_that_it_left(workplace: Workplace, home: Path) -> None:
    killed = workplace.worker(home, "first")
    wait_until(workplace.starts)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        first = instance.get_runs(limit=1)[0]
        instance.report_run_failed(first)
    assert states(workplace.server) == ["RUNNING"], "the container should not notice"

    retry = workplace.worker(home, "second", first.run_id)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        wait_until(lambda: "Going on with custom job" in all_messages(instance))
        workplace.let_go()
        assert retry.wait(DEADLINE_S) == 0

        assert instance.get_runs(limit=1)[0].status == dg.DagsterRunStatus.SUCCESS
        assert "the training begins" in all_messages(instance), "messages from before should be read too"
    assert states(workplace.server) == ["SUCCEEDED"]
    assert workplace.starts() == 1


def all_messages(instance: dg.DagsterInstance) -> str:
    """What the page of the last run shows."""
    (run,) = instance.get_runs(limit=1)
    return "\n".join(entry.user_message for entry in instance.all_logs(run.run_id))


@pytest.mark.parametrize(("retries", "left"), [(0, "CANCELLED"), (1, "RUNNING")])
def test_a_process_that_is_stopped_leaves_its_job_only_to_a_run_that_comes_back(
    workplace: Workplace, home: Path, retries: int, left: str
) -> None:
    (home / "dagster.yaml").write_text(f"run_retries: {{enabled: true, max_retries: {retries}}}\n")
    worker = workplace.worker(home, "stopped")
    wait_until(workplace.starts)

    worker.send_signal(signal.SIGTERM)
    worker.wait(DEADLINE_S)

    wait_until(lambda: states(workplace.server) == [left])
    assert the_run(home).status == dg.DagsterRunStatus.FAILURE


def test_another_run_that_asks_for_the_same_work_shares_the_job(workplace: Workplace, home: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    workplace.server.behaviour.pending_s = 1.0
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(workplace.materialize, {"work": "recipe 1"})
        wait_until(lambda: workplace.server.jobs)
        second = pool.submit(workplace.materialize, {"work": "recipe 1"})

        assert first.result().success
        assert second.result().success
    assert states(workplace.server) == ["SUCCEEDED"]


FAILED = JobStatus("projects/p/locations/l/customJobs/1", "JOB_STATE_FAILED", {}, {})
EXITED = "The replica workerpool0-0 exited with a non-zero status of {}."


@pytest.mark.parametrize(
    ("change", "exception", "spot", "reason", "later"),
    [
        ({"error_code": 8, "error": QUOTA}, None, False, "the quota is used up", True),
        ({"error_code": 8, "error": STOCKOUT}, None, True, "Google had no machine for it", True),
        ({"error_code": 13, "error": "Internal error occurred."}, None, False, "or took it away", True),
        ({"error_code": 3, "error": EXITED.format(1)}, "ValueError: no rows", False, "the container failed: ValueError", False),
        ({"error_code": 3, "error": EXITED.format(1)}, None, False, "non-zero status of 1", False),
        ({"error_code": 3, "error": EXITED.format(75)}, "ConnectionError: hub", False, "asks for another try", True),
        ({"error_code": 3, "error": EXITED.format(143)}, None, True, "the spot machine was taken away", True),
        ({"error_code": 3, "error": EXITED.format(143)}, None, False, "non-zero status of 143", False),
        ({"error_code": 3, "error": "Replicas low on memory: workerpool0."}, None, False, "take a larger one", False),
        ({"error_code": 5, "error": "Image not found"}, None, False, "Image not found", False),
        ({"error_code": 3, "error": EXITED.format(1)}, "ValueError: preempt the quota", True, "the container failed", False),
        ({"state": "JOB_STATE_CANCELLED"}, None, False, "cancelled outside of this run", False),
        ({"state": "JOB_STATE_EXPIRED"}, None, False, "raise the limit", False),
    ],
)
def test_the_end_of_a_job_is_told_apart(
    change: dict[str, Any], exception: str | None, spot: bool, reason: str, later: bool
) -> None:
    verdict = judge(replace(FAILED, **change), exception, spot=spot)

    assert reason in verdict.reason
    assert verdict.may_succeed_later is later


def test_labels_keep_to_their_alphabet() -> None:
    assert label_value("Train[2026-09-15|MiniLM]") == "train-2026-09-15-minilm-"
    assert len(label_value("x" * 100)) == 63


def test_an_exception_is_told_with_its_cause() -> None:
    exception = {"message": "ValueError: no\nrows\n", "cause": {"message": "OSError: disk\n", "cause": None}}

    assert exception_text(exception) == "ValueError: no rows (caused by OSError: disk)"


def test_without_an_accelerator_none_is_asked_for() -> None:
    request = VertexJob("a", image="i", command=["c"], accelerators=0, accelerator="NVIDIA_L4").request({}, {})

    assert request["job_spec"]["worker_pool_specs"][0]["machine_spec"] == {"machine_type": "n1-standard-4"}
