"""The sensor for new chunks, against a real table; and the stages that one command runs."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import psycopg
import pytest

from newsjuice_pipelines.automation import sensors
from newsjuice_pipelines.automation.executors import executor_for
from newsjuice_pipelines.automation.sensors import SENSORS, new_chunks, new_split
from newsjuice_pipelines.commands.run import RunFailed, plan
from newsjuice_pipelines.definitions import build_defs
from newsjuice_pipelines.podcast.sampling.chunk_table import count_chunks, days_with_new_chunks, finished_days
from newsjuice_pipelines.podcast.sampling.chunks import SourceTableError
from newsjuice_pipelines.resources.postgres import ArticleDatabase
from newsjuice_pipelines.settings import Settings

TODAY = datetime.now(UTC).date()
FIRST = TODAY - timedelta(days=5)


def add_chunks(connection: psycopg.Connection, days: Sequence[date | None]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO chunks_vector (article_id, chunk, chunk_index, fetched_at) VALUES ('a', 'text', 0, %s)",
            [(day and datetime.combine(day, datetime.min.time()),) for day in days],
        )
    connection.commit()


def tick(url: str, monkeypatch: pytest.MonkeyPatch, cursor: str | None) -> dg.SensorResult:
    monkeypatch.setenv("NEWSJUICE_DATABASE_URL", url)
    context = dg.build_sensor_context(cursor=cursor)
    return new_chunks(context, database=ArticleDatabase())


def test_each_finished_day_with_new_rows_is_requested_once(
    connection: psycopg.Connection, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_chunks(connection, [FIRST, FIRST, FIRST + timedelta(days=1)])

    first = tick(empty_database, monkeypatch, None)
    assert [request.partition_key for request in first.run_requests] == [str(FIRST), str(FIRST + timedelta(days=1))]
    assert first.cursor == "3"

    assert not tick(empty_database, monkeypatch, first.cursor).run_requests


def test_rows_of_a_day_that_is_not_over_wait_and_are_not_forgotten(
    connection: psycopg.Connection, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_chunks(connection, [FIRST, TODAY, FIRST])

    result = tick(empty_database, monkeypatch, None)

    assert [request.partition_key for request in result.run_requests] == [str(FIRST)]
    assert result.cursor == "1", "the row of today has the id 2 and must be seen again"
    days, cursor = days_with_new_chunks(connection, "chunks_vector", int(result.cursor), TODAY + timedelta(days=1))
    assert days == {TODAY: 2, FIRST: 3}
    assert cursor == 3


def test_asking_again_for_the_same_rows_gives_the_same_run_key(
    connection: psycopg.Connection, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_chunks(connection, [FIRST, TODAY])

    keys = [tick(empty_database, monkeypatch, "0").run_requests[0].run_key for _ in range(2)]

    assert keys == [f"{FIRST}:1"] * 2


def test_each_requested_day_has_the_nightly_budget(
    connection: psycopg.Connection, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_chunks(connection, [FIRST])
    monkeypatch.setenv("NEWSJUICE_NIGHTLY_BUDGET_USD", "0.5")

    (request,) = tick(empty_database, monkeypatch, None).run_requests

    assert request.run_config["ops"]["teacher_scripts"]["config"] == {"max_budget_usd": 0.5}
    assert dg.validate_run_config(build_defs().resolve_job_def("daily_scripts"), request.run_config)


def split_anew(instance: dg.DagsterInstance, version: str) -> list[dg.RunRequest]:
    """What is requested when a split of this version was materialised."""

    @dg.asset
    def balanced_split() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"version": version})

    dg.materialize([balanced_split], instance=instance)
    context = dg.build_sensor_context(instance=instance, repository_def=build_defs().get_repository_def())
    return list(new_split.evaluate_tick(context).run_requests or [])


def test_a_new_split_trains_each_model_at_hand_and_an_unchanged_one_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "models_at_hand", lambda: ["linear", "minilm"])
    with dg.DagsterInstance.ephemeral() as instance:
        first = split_anew(instance, "1a")
        again, other = split_anew(instance, "1a"), split_anew(instance, "2b")

    assert [request.tags["dagster/partition"] for request in first] == ["linear", "minilm"]
    assert [request.run_key for request in again] == [request.run_key for request in first], "the daemon launches a key once"
    assert not {request.run_key for request in other} & {request.run_key for request in first}


def test_every_sensor_says_what_it_costs() -> None:
    words = ("Free", "Costs", "Seconds of CPU")

    assert all(any(word in (sensor.description or "") for word in words) for sensor in SENSORS)
    assert {sensor.default_status for sensor in SENSORS} == {dg.DefaultSensorStatus.STOPPED}


def test_days_and_rows_of_a_table(connection: psycopg.Connection) -> None:
    assert finished_days(connection, "chunks_vector", FIRST, TODAY) is None
    add_chunks(connection, [FIRST - timedelta(days=9), FIRST, FIRST + timedelta(days=2), TODAY, None])

    assert finished_days(connection, "public.chunks_vector", FIRST, TODAY) == (FIRST, FIRST + timedelta(days=2))
    assert count_chunks(connection, "chunks_vector") == 5


def test_a_missing_table_is_named_and_a_table_name_is_never_sql(connection: psycopg.Connection) -> None:
    with pytest.raises(SourceTableError, match="no_such_table"):
        count_chunks(connection, "no_such_table")
    connection.rollback()
    with pytest.raises(SourceTableError, match="NEWSJUICE_CHUNKS_TABLE"):
        count_chunks(connection, "chunks_vector; DROP TABLE chunks_vector")
    connection.rollback()
    assert count_chunks(connection, "chunks_vector") == 0


def everything() -> set[str]:
    return {spec.key.to_user_string() for spec in build_defs().resolve_all_asset_specs()}


def test_a_run_is_planned_as_days_then_shared_assets_then_models_then_their_comparison() -> None:
    stages = plan(build_defs(), everything(), ("2026-09-15", "2026-10-14"), ["linear", "minilm"])

    assert [(stage.partition, stage.assets[0]) for stage in stages] == [
        (None, "article_chunks"),
        (None, "base_model"),
        ("linear", "classifier_checkpoint"),
        ("minilm", "classifier_checkpoint"),
        (None, "model_leaderboard"),
    ]
    assert stages[0].tags["dagster/asset_partition_range_end"] == "2026-10-14"
    assert {name for stage in stages for name in stage.assets} == everything()


def test_a_selection_leaves_out_empty_stages() -> None:
    stages = plan(build_defs(), {"balanced_split", "taxonomy"}, None, ["linear"])

    assert [stage.assets for stage in stages] == [("taxonomy", "balanced_split")]


def test_days_without_chunks_are_an_error_that_says_where_to_look() -> None:
    with pytest.raises(RunFailed, match="NEWSJUICE_FIRST_DAY"):
        plan(build_defs(), {"article_chunks"}, None, [])


def test_the_executor_follows_the_setting() -> None:
    assert executor_for(Settings(executor="in-process")).name == "in_process"
    assert executor_for(Settings(executor="multiprocess", max_concurrent_steps=3)).name == "multiprocess"
