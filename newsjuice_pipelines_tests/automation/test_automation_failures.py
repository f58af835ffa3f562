"""Failures: what is final stops every kind of retry, what may pass is tried again, and no dead run keeps its pool slot."""

import importlib.util
import logging
import os
import signal
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import consume_new_runs_for_automatic_reexecution
from dagster._daemon.monitoring.concurrency import execute_concurrency_slots_iteration

from newsjuice_pipelines.automation.failures import PERMANENT_TAG, is_permanent, permanent_failures
from newsjuice_pipelines.automation.retries import OUTSIDE, TRAINING
from newsjuice_pipelines.podcast.teaching.ledger import LedgerUnavailable
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused, TeacherUnavailable
from newsjuice_pipelines.resources.postgres import ConnectionLost, DatabaseUnreachable, connect
from newsjuice_pipelines.runtime.artifacts import ArtifactBusy, ArtifactMissing

POOL = "gpu"


def test_a_permanent_error_becomes_a_failure_that_is_not_retried_and_keeps_its_words() -> None:
    with pytest.raises(dg.Failure, match="materialise it first") as caught, permanent_failures():
        raise ArtifactMissing("materialise it first")
    assert not caught.value.allow_retries


def test_a_transient_error_stays_what_it_is_and_may_be_retried() -> None:
    with pytest.raises(ConnectionError), permanent_failures():
        raise ConnectionError("the network is away")


@pytest.mark.parametrize("error", [ValueError("bad row"), TeacherRefused("401"), ArtifactMissing("none"), TypeError("a defect")])
def test_bad_data_wrong_credentials_and_defects_are_final(error: Exception) -> None:
    assert is_permanent(error)


@pytest.mark.parametrize(
    "error",
    [
        TeacherUnavailable("429"),
        LedgerUnavailable("restarting"),
        ConnectionLost("in the middle"),
        ArtifactBusy("another writer"),
        TimeoutError("no answer"),
        RuntimeError("who knows"),
    ],
)
def test_what_may_pass_is_not_final(error: Exception) -> None:
    assert not is_permanent(error)


def refusal(url: str) -> DatabaseUnreachable:
    with pytest.raises(DatabaseUnreachable) as caught:
        connect(url, "NEWSJUICE_DATABASE_URL")
    return caught.value


def test_a_server_that_lets_nobody_in_is_final_and_one_that_is_not_there_is_not(empty_database: str) -> None:
    assert is_permanent(refusal(psycopg.conninfo.make_conninfo(empty_database, user="nobody_here")))
    assert is_permanent(refusal(psycopg.conninfo.make_conninfo(empty_database, dbname="no_such_database")))
    assert is_permanent(refusal("nonsense://"))
    assert is_permanent(DatabaseUnreachable('FATAL: password authentication failed for user "reader"'))
    assert not is_permanent(refusal("postgresql://127.0.0.1:9/articles"))


def run_of(instance: dg.DagsterInstance, error: Exception, policy: dg.RetryPolicy | None = None) -> tuple[dg.DagsterRun, int]:
    """A run whose only step raises `error`, as it is stored; and how often the step was tried."""
    tries = []

    @dg.asset(retry_policy=policy)
    def asset() -> None:
        tries.append(1)
        with permanent_failures():
            raise error

    result = dg.materialize([asset], instance=instance, raise_on_error=False)
    run = instance.get_run_by_id(result.run_id)
    assert run
    return run, len(tries)


@pytest.mark.parametrize("error", [ValueError("bad row"), dg.Failure("said by hand", allow_retries=False)])
def test_a_permanent_failure_stops_the_step_and_the_run(instance: dg.DagsterInstance, error: Exception) -> None:
    run, tries = run_of(instance, error, dg.RetryPolicy(max_retries=2))

    assert tries == 1
    assert run.tags["dagster/will_retry"] == "false"
    assert run.tags[PERMANENT_TAG] == "true"


def test_a_transient_failure_is_tried_again_by_the_step_and_then_by_the_run(instance: dg.DagsterInstance) -> None:
    run, tries = run_of(instance, TeacherUnavailable("429"), dg.RetryPolicy(max_retries=2))

    assert tries == 3
    assert run.tags["dagster/will_retry"] == "true"
    assert PERMANENT_TAG not in run.tags


@pytest.mark.parametrize("policy", [OUTSIDE, TRAINING])
def test_waits_between_tries_grow(policy: dg.RetryPolicy) -> None:
    assert policy.backoff == dg.Backoff.EXPONENTIAL
    assert policy.jitter == dg.Jitter.PLUS_MINUS
    assert policy.calculate_delay(policy.max_retries) > policy.delay


def held_run(toy: Any) -> dg.DagsterRun:
    """A run in a process of its own whose step has the slot of the pool and waits."""
    spec = importlib.util.spec_from_file_location("toy_location", Path(__file__).with_name("toy_location.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    workspace = toy.context.create_request_context()
    (repository,) = workspace.code_locations[0].get_repositories().values()
    job = repository.get_full_job("hold")
    (toy.root / "pid").unlink(missing_ok=True)
    toy.hold("hold")
    run = toy.instance.create_run_for_job(
        module.defs.resolve_job_def("hold"),
        remote_job_origin=job.get_remote_origin(),
        job_code_origin=job.get_python_origin(),
    )
    toy.instance.launch_run(run.run_id, workspace)
    toy.wait_for(lambda: (toy.root / "pid").exists())
    assert holders(toy) == {run.run_id}
    return run


def holders(toy: Any) -> set[str]:
    return set(toy.instance.event_log_storage.get_concurrency_info(POOL).active_run_ids)


def free_slots(toy: Any) -> None:
    """What the monitoring daemon does with the slots of runs that are over."""
    list(execute_concurrency_slots_iteration(toy.context, logging.getLogger("test")))


def status_of(toy: Any, run_id: str) -> dg.DagsterRunStatus:
    return toy.instance.get_run_by_id(run_id).status


def test_a_killed_run_frees_its_slot_and_is_launched_again(toy: Any) -> None:
    run = held_run(toy)

    os.kill(int((toy.root / "pid").read_text()), signal.SIGKILL)
    toy.wait_for(lambda: status_of(toy, run.run_id) == dg.DagsterRunStatus.FAILURE)
    toy.wait_for(lambda: not holders(toy), lambda: free_slots(toy))

    toy.release("hold")
    records = toy.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    list(consume_new_runs_for_automatic_reexecution(toy.context, records, logging.getLogger("test")))
    (again,) = (found for found in toy.instance.get_runs() if found.parent_run_id == run.run_id)
    toy.wait_for(lambda: status_of(toy, again.run_id) == dg.DagsterRunStatus.SUCCESS)


def test_a_cancelled_run_frees_its_slot(toy: Any) -> None:
    run = held_run(toy)

    toy.instance.run_launcher.terminate(run.run_id)

    toy.wait_for(lambda: status_of(toy, run.run_id) == dg.DagsterRunStatus.CANCELED)
    toy.wait_for(lambda: not holders(toy), lambda: free_slots(toy))
    toy.release("hold")
