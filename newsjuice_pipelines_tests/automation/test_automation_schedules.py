"""What the schedules request: yesterday within a budget, and a training only when there is enough to learn."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from newsjuice_pipelines.automation.failures import PERMANENT_TAG
from newsjuice_pipelines.automation.freshness import POLICIES, with_freshness
from newsjuice_pipelines.automation.retraining import new_scripts
from newsjuice_pipelines.automation.schedules import NEW_SCRIPTS_TAG, SCHEDULES, SCRIPTS_TAG, every_night, every_week
from newsjuice_pipelines.definitions import build_defs
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.runtime.artifacts import ArtifactStore, Draft
from newsjuice_pipelines.settings import load_settings


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(root=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache"))


def publish(store: ArtifactStore, key: str, inputs: Mapping[str, str], **facts: int) -> str:
    def write(draft: Draft) -> Mapping[str, int]:
        (draft.path / "rows.txt").write_text(str(facts))
        return facts

    return store.publish(key, {"inputs": dict(inputs), "facts": facts}, write).version


def add_day(store: ArtifactStore, day: str, ok: int) -> None:
    publish(store, f"teacher_scripts/{day}", {}, ok=ok)


def train(store: ArtifactStore) -> None:
    """Publish a data set of all days and an adapter trained on it."""
    days = {
        f"teacher_scripts/{day}": store.current_version(f"teacher_scripts/{day}") for day in store.partitions("teacher_scripts")
    }
    dataset = publish(store, "student_dataset", {key: version or "" for key, version in days.items()})
    publish(store, "lora_adapter", {"student_dataset": dataset})


def tick(artifacts: Artifacts, instance: dg.DagsterInstance | None = None) -> dg.RunRequest | dg.SkipReason:
    with dg.build_schedule_context(instance=instance, resources={"artifacts": artifacts}) as context:
        return every_week(context)


def test_the_night_takes_yesterday_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWSJUICE_NIGHTLY_BUDGET_USD", "1.25")
    tick_at = datetime(2026, 9, 11, 2, 0, tzinfo=UTC)

    request = every_night(dg.build_schedule_context(scheduled_execution_time=tick_at))

    assert (request.partition_key, request.run_key) == ("2026-09-10", "2026-09-10")
    assert request.run_config["ops"]["teacher_scripts"]["config"] == {"max_budget_usd": 1.25}
    assert dg.validate_run_config(build_defs().resolve_job_def("daily_scripts"), request.run_config)


def test_the_night_before_the_first_day_has_nothing_to_do() -> None:
    first = datetime.combine(load_settings().first_day, datetime.min.time(), UTC)

    skipped = every_night(dg.build_schedule_context(scheduled_execution_time=first + timedelta(hours=2)))

    assert isinstance(skipped, dg.SkipReason)


def test_before_the_first_training_all_usable_scripts_are_new(artifacts: Artifacts) -> None:
    add_day(artifacts.store(), "2026-09-10", ok=70)
    add_day(artifacts.store(), "2026-09-11", ok=30)

    assert new_scripts(artifacts.store()).count == 100


def test_after_a_training_only_new_days_and_what_was_added_to_others_are_new(artifacts: Artifacts) -> None:
    store = artifacts.store()
    add_day(store, "2026-09-10", ok=70)
    add_day(store, "2026-09-11", ok=30)
    train(store)
    assert new_scripts(store).count == 0

    add_day(store, "2026-09-11", ok=34)
    add_day(store, "2026-09-12", ok=50)

    assert new_scripts(store).count == 54


def test_a_day_whose_earlier_version_is_no_longer_kept_counts_whole(artifacts: Artifacts) -> None:
    store = artifacts.store()
    add_day(store, "2026-09-10", ok=70)
    train(store)

    for more in range(1, 5):
        add_day(store, "2026-09-10", ok=70 + more)

    assert new_scripts(store).count == 74


def test_the_week_skips_and_says_how_many_scripts_are_wanted(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWSJUICE_RETRAIN_AFTER_SCRIPTS", "60")
    add_day(artifacts.store(), "2026-09-10", ok=59)

    skipped = tick(artifacts)

    assert isinstance(skipped, dg.SkipReason)
    assert "59 new scripts" in (skipped.skip_message or "")
    assert "60 are wanted" in (skipped.skip_message or "")


def test_the_week_trains_when_enough_scripts_came(
    artifacts: Artifacts, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWSJUICE_RETRAIN_AFTER_SCRIPTS", "60")
    add_day(artifacts.store(), "2026-09-10", ok=60)

    request = tick(artifacts, instance)

    assert isinstance(request, dg.RunRequest)
    assert request.tags[NEW_SCRIPTS_TAG] == "60"


@pytest.mark.parametrize(("permanent", "asked_again"), [("true", False), ("false", True)])
def test_the_week_asks_again_after_a_failure_unless_it_was_for_good(
    artifacts: Artifacts, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, permanent: str, asked_again: bool
) -> None:
    monkeypatch.setenv("NEWSJUICE_RETRAIN_AFTER_SCRIPTS", "60")
    add_day(artifacts.store(), "2026-09-10", ok=60)
    tags = {SCRIPTS_TAG: new_scripts(artifacts.store()).state, PERMANENT_TAG: permanent}
    job = build_defs().resolve_job_def("train_student")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE, tags=tags)

    assert isinstance(tick(artifacts, instance), dg.RunRequest) is asked_again
    add_day(artifacts.store(), "2026-09-11", ok=60)
    assert isinstance(tick(artifacts, instance), dg.RunRequest), "other scripts are another try"


def test_every_schedule_says_what_a_tick_costs() -> None:
    words = ("Free", "Costs", "costs", "seconds of CPU")

    assert all(any(word in (schedule.description or "") for word in words) for schedule in SCHEDULES)
    assert {schedule.default_status for schedule in SCHEDULES} == {dg.DefaultScheduleStatus.STOPPED}


def test_assets_that_people_rely_on_become_late() -> None:
    assets = with_freshness([asset for asset in build_defs().assets or [] if isinstance(asset, dg.AssetsDefinition)])

    late = {spec.key.to_user_string(): spec.freshness_policy for asset in assets for spec in asset.specs}
    assert {name: policy for name, policy in late.items() if policy is not None} == POLICIES
    assert len(late) == len(assets), "no asset is lost"
