"""Backfills from the command line: what is asked for, and what a daemon with a real code server makes of it."""

import importlib.util
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.types import DaemonHeartbeat

from newsjuice_pipelines.automation.partitions import CLASSIFIERS, classifier_models, daily
from newsjuice_pipelines.commands.backfill import (
    CannotBackfill,
    Extent,
    backfill,
    cancel,
    classifiers,
    days,
    request_backfill,
    request_cancellation,
    state,
    status,
)
from newsjuice_pipelines.definitions import build_defs
from newsjuice_pipelines.settings import load_settings

pytestmark = pytest.mark.whole_system

LETTERS = Extent(("a", "b", "c"), by_model=True)
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
FIRST = load_settings().first_day


def graph() -> AssetGraph:
    path = Path(__file__).with_name("toy_location.py")
    spec = importlib.util.spec_from_file_location("toy_location", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.defs.resolve_asset_graph()


def status_of(toy: Any, backfill_id: str) -> str:
    return toy.instance.get_backfill(backfill_id).status.value


def daemon(toy: Any) -> None:
    """What the backfill daemon does every half minute."""
    errors = [found for found in execute_backfill_iteration(toy.context, logging.getLogger("test")) if found]
    assert not errors, errors


def finish(toy: Any, backfill_id: str) -> str:
    """Let the daemon work until the backfill is over; returns how it ended."""
    toy.wait_for(lambda: status_of(toy, backfill_id) not in ("REQUESTED", "CANCELING", "FAILING"), lambda: daemon(toy))
    return status_of(toy, backfill_id)


def runs_of(toy: Any, backfill_id: str) -> list[dg.DagsterRun]:
    return list(toy.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id})))


def test_a_backfill_makes_one_run_a_partition_and_writes_nothing_twice_when_it_is_repeated(toy: Any) -> None:
    first = request_backfill(toy.instance, graph(), ["letter", "word"], LETTERS)
    assert finish(toy, first) == "COMPLETED_SUCCESS"
    assert sorted(run.tags.get("dagster/partition", "") for run in runs_of(toy, first)) == ["", "a", "b", "c"]
    assert "  letter: 3 done, 0 under way, 0 failed, 0 not begun" in state(toy.instance.get_backfill(first), graph())

    assert finish(toy, request_backfill(toy.instance, graph(), ["letter"], LETTERS)) == "COMPLETED_SUCCESS"

    assert sorted(note for note in toy.notes() if note.startswith("wrote")) == ["wrote a", "wrote b", "wrote c", "wrote word"]


def test_a_backfill_over_days_is_one_run(toy: Any) -> None:
    made = request_backfill(toy.instance, graph(), ["day"], Extent(("2026-09-03", "2026-09-04", "2026-09-05"), by_model=False))

    assert finish(toy, made) == "COMPLETED_SUCCESS"
    assert len(runs_of(toy, made)) == 1
    assert "days 2026-09-03 2026-09-04 2026-09-05" in toy.notes()


def test_a_cancelled_backfill_keeps_what_was_finished_and_is_completed_by_repeating_it(toy: Any) -> None:
    for name in "abc":
        (toy.root / "artifacts" / "letter" / name / "CURRENT").unlink(missing_ok=True)
    before = len(toy.notes())
    toy.hold("hold-b")
    toy.hold("hold-c")
    made = request_backfill(toy.instance, graph(), ["letter"], LETTERS)
    toy.wait_for(lambda: {"wrote a", "started b", "started c"} <= set(toy.notes()[before:]), lambda: daemon(toy))

    assert request_cancellation(toy.instance, made)
    assert finish(toy, made) == "CANCELED"
    assert not request_cancellation(toy.instance, made), "it is over"
    toy.wait_for(lambda: all(run.is_finished for run in runs_of(toy, made)))
    toy.release("hold-b")
    toy.release("hold-c")
    assert finish(toy, request_backfill(toy.instance, graph(), ["letter"], LETTERS)) == "COMPLETED_SUCCESS"

    assert sorted(note for note in toy.notes()[before:] if note.startswith("wrote")) == ["wrote a", "wrote b", "wrote c"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Dagster's home of a command."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def requested(home: Path) -> Any:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (found,) = instance.get_backfills()
        return found


@pytest.mark.usefixtures("home")
def test_the_command_asks_for_the_days_says_how_to_go_on_and_that_no_daemon_runs(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backfill(first_day=YESTERDAY - timedelta(days=1), budget_usd=2.5) == 0

    found = requested(home)
    assert [key.to_user_string() for key in found.asset_selection] == ["article_chunks", "teacher_scripts"]
    targeted = found.get_asset_backfill_data(build_defs().resolve_asset_graph()).get_partition_names()
    assert targeted == [str(YESTERDAY - timedelta(days=1)), str(YESTERDAY)]
    assert found.run_config == {"ops": {"teacher_scripts": {"config": {"max_budget_usd": 2.5}}}}
    said = capsys.readouterr().err
    assert f"newsjuice backfill --cancel {found.backfill_id}" in said
    assert "newsjuice dev" in said


def test_a_daemon_that_is_alive_is_not_asked_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_daemon_heartbeat(DaemonHeartbeat(datetime.now(UTC).timestamp(), "BACKFILL", "test"))

    backfill(models="minilm,linear")

    found = requested(home)
    targeted = found.get_asset_backfill_data(build_defs().resolve_asset_graph()).get_partition_names()
    assert targeted == ["linear", "minilm"]
    assert "No daemon" not in capsys.readouterr().err


def test_a_backfill_is_shown_and_cancelled_by_its_id(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backfill(models="linear")
    made = requested(home).backfill_id

    assert status(made) == 0
    assert "classifier_checkpoint: 0 done, 0 under way, 0 failed, 1 not begun" in capsys.readouterr().out
    assert cancel(made) == 0
    assert requested(home).status.value == "CANCELING"
    with pytest.raises(CannotBackfill, match=made):
        cancel("nosuchid")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({}, "--from and --to"),
        ({"models": "linear", "first_day": YESTERDAY}, "--from and --to"),
        ({"models": "bert"}, "roberta"),
        ({"models": "linear", "assets": ["teacher_scripts"]}, "classifier_checkpoint"),
        ({"first_day": YESTERDAY, "assets": ["classifier_checkpoint"]}, "article_chunks"),
        ({"first_day": YESTERDAY, "assets": ["no_such_asset"]}, "model_leaderboard"),
        ({"first_day": YESTERDAY, "assets": ["article_chunks"], "budget_usd": 1.0}, "teacher_scripts"),
        ({"first_day": FIRST - timedelta(days=1)}, "NEWSJUICE_FIRST_DAY"),
        ({"last_day": YESTERDAY + timedelta(days=1)}, "not over"),
        ({"first_day": YESTERDAY, "last_day": YESTERDAY - timedelta(days=1)}, "after"),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_cannot_be_backfilled_is_refused_with_what_to_give(arguments: dict[str, Any], advice: str) -> None:
    with pytest.raises(CannotBackfill, match=advice):
        backfill(**arguments)


def test_days_are_inclusive_and_end_with_the_last_finished_one() -> None:
    assert days(FIRST, FIRST + timedelta(days=2)).partitions == tuple(str(FIRST + timedelta(days=n)) for n in range(3))
    assert days(FIRST, None).partitions[-1] == str(YESTERDAY) == daily.get_partition_keys()[-1]
    assert days(None, date.fromisoformat("2026-09-20")).partitions == ("2026-09-20",)


def test_models_are_named_all_or_those_at_hand() -> None:
    assert classifiers("all").partitions == tuple(classifier_models.get_partition_keys())
    assert set(classifiers("at-hand").partitions) <= set(CLASSIFIERS)
    assert "linear" in classifiers("at-hand").partitions
    assert classifiers("minilm, linear").partitions == ("linear", "minilm")


def test_the_budget_of_a_backfill_fits_the_assets_of_its_run() -> None:
    job = build_defs().resolve_implicit_job_def_def_for_assets([dg.AssetKey("article_chunks"), dg.AssetKey("teacher_scripts")])
    assert job is not None

    assert dg.validate_run_config(job, {"ops": {"teacher_scripts": {"config": {"max_budget_usd": 2.5}}}})
