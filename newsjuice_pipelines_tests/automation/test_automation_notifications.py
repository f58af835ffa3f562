"""What people are told of runs and models, by a real webhook: once, in plain words, without secrets or article text."""

import logging
import socket
from typing import Any

import dagster as dg
import pytest

from newsjuice_pipelines.automation import notifications
from newsjuice_pipelines.automation.failures import permanent_failures
from newsjuice_pipelines.automation.notifications import LONGEST_CHARACTERS, plain, tell
from newsjuice_pipelines.automation.sensors import expensive_run, failed_run, new_promotion
from newsjuice_pipelines.automation.spending import paid_usd
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused

ARTICLE = "The mayor of Harbour Town resigned on Monday."
TOKEN = "SECRET-TOKEN"


def test_a_text_is_logged_and_posted(webhook: Any, caplog: pytest.LogCaptureFixture) -> None:
    outcome = tell("The run failed.")

    assert webhook.texts() == ["The run failed."]
    assert "The run failed." in caplog.text
    assert outcome == "Logged, and told to the webhook."


def test_without_a_webhook_a_text_is_logged_only(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NEWSJUICE_WEBHOOK_URL", raising=False)

    assert "no webhook is set" in tell("The run failed.")
    assert "The run failed." in caplog.text


@pytest.mark.parametrize(("status", "words"), [(500, "HTTP 500"), (404, "HTTP 404"), (302, "HTTP 302")])
def test_a_webhook_that_refuses_is_named_by_its_status(webhook: Any, status: int, words: str) -> None:
    webhook.status = status

    assert words in tell("The run failed.")
    assert len(webhook.posted) == 1, "no second post, and none to where it points"


def test_a_webhook_that_hangs_is_given_up(webhook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    webhook.delay_s = 300.0
    monkeypatch.setattr(notifications, "DEADLINE_S", 0.5)

    assert "no answer within" in tell("The run failed.")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["answers", "refuses", "nobody there", "not an address", "other scheme", "no host"])
def test_the_address_of_the_webhook_is_in_no_log_and_no_outcome(
    kind: str, webhook: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    webhook.status = 500 if kind == "refuses" else 200
    address = {
        "nobody there": f"http://127.0.0.1:{closed_port()}/services/{TOKEN}",
        "not an address": f"http://[{TOKEN}/services",
        "other scheme": f"ftp://127.0.0.1/{TOKEN}",
        "no host": f"https:///{TOKEN}",
    }.get(kind, webhook.url)
    monkeypatch.setenv("NEWSJUICE_WEBHOOK_URL", address)

    outcome = tell("The run failed.")

    assert TOKEN in address
    assert TOKEN not in outcome + caplog.text
    assert ("not told" in outcome) == (kind != "answers")


def test_a_text_cannot_page_everybody_hide_a_link_or_fill_the_channel() -> None:
    said = plain("<!channel> @all <http://bad|click>\n\x1b[31m & " + "x" * 5000)

    assert "<" not in said
    assert "@all" not in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert "&amp;" in said
    assert len(said) < LONGEST_CHARACTERS + 100


@dg.asset
def refused() -> None:
    with permanent_failures():
        raise TeacherRefused("check the credentials")


@dg.asset
def bad_row() -> None:
    with permanent_failures():
        raise ValueError(f"could not read {ARTICLE}")


@dg.asset
def crashed() -> None:
    raise RuntimeError(ARTICLE)


@dg.asset
def said_by_hand() -> None:
    raise dg.Failure(description="The merge gate did not pass.")


def failed_with(instance: dg.DagsterInstance, *assets: dg.AssetsDefinition) -> dg.RunFailureSensorContext:
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    return dg.build_run_status_sensor_context(
        sensor_name="failed_run",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()


def test_a_failed_run_is_told_with_its_step_and_our_own_words(instance: dg.DagsterInstance, webhook: Any) -> None:
    failed_run(failed_with(instance, refused))

    (text,) = webhook.texts()
    assert "refused: check the credentials" in text
    assert "not tried again" in text


def test_the_words_of_other_errors_are_not_told_since_they_may_hold_an_article(
    instance: dg.DagsterInstance, webhook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    context = failed_with(instance, bad_row, crashed, said_by_hand)
    caplog.clear()

    failed_run(context)

    (text,) = webhook.texts()
    assert "bad_row: ValueError" in text
    assert "crashed: RuntimeError" in text
    assert "said_by_hand: The merge gate did not pass." in text
    assert "mayor" not in text + caplog.text


def test_the_sensor_of_failed_runs_tells_each_run_once(instance: dg.DagsterInstance, webhook: Any) -> None:
    repository = dg.Definitions(assets=[crashed], sensors=[failed_run]).get_repository_def()
    cursor = None

    def tick() -> None:
        nonlocal cursor
        context = dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=repository)
        cursor = failed_run.evaluate_tick(context).cursor

    tick()
    dg.materialize([crashed], instance=instance, raise_on_error=False)
    for _ in range(3):
        tick()

    assert len(webhook.posted) == 1


def spent(instance: dg.DagsterInstance, **metadata: Any) -> dg.RunStatusSensorContext:
    """A finished run that materialised two assets, the first one with this metadata."""

    @dg.asset
    def paid() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=metadata)

    @dg.asset
    def model() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"cost_usd": 1.5, "reused": False})

    result = dg.materialize([paid, model], instance=instance)
    return dg.build_run_status_sensor_context(
        sensor_name="expensive_run",
        dagster_event=result.get_run_success_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    )


def test_a_run_above_the_limit_is_told_with_what_it_spent(
    instance: dg.DagsterInstance, webhook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWSJUICE_EXPENSIVE_RUN_USD", "4")

    this_run = {"spent_usd": 2.5, "unanswered_usd": 0.25, "batch_most_usd": 0.5}
    expensive_run(spent(instance, cost_usd=99.0, this_run=dg.MetadataValue.json(this_run)))

    (text,) = webhook.texts()
    assert "$4.75" in text


def test_a_run_below_the_limit_is_not_told(instance: dg.DagsterInstance, webhook: Any) -> None:
    expensive_run(spent(instance, cost_usd=2.0))

    assert not webhook.posted


def test_what_earlier_runs_paid_for_does_not_count(instance: dg.DagsterInstance) -> None:
    from_ledger = spent(instance, cost_usd=99.0, this_run=dg.MetadataValue.json({"rows": 7, "from_ledger": 7}))
    reused = spent(instance, cost_usd=99.0, reused=True)
    unknown = spent(instance, cost_usd="not measured")

    assert {paid_usd(instance, context.dagster_run.run_id) for context in (from_ledger, reused, unknown)} == {1.5}


def promotion(instance: dg.DagsterInstance, cursor: str | None, **metadata: Any) -> tuple[str, str | None]:
    @dg.asset
    def promoted_model() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=metadata)

    if metadata:
        dg.materialize([promoted_model], instance=instance)
    found = new_promotion.evaluate_tick(
        dg.build_sensor_context(
            instance=instance, cursor=cursor, repository_def=dg.Definitions(assets=[promoted_model]).get_repository_def()
        )
    )
    return found.skip_message or "", found.cursor


def test_a_promotion_is_told_once(instance: dg.DagsterInstance, webhook: Any) -> None:
    facts = {"merged_model": "1a2b3c", "run_id": "the-judging-run", "decision": "adopt"}

    outcome, cursor = promotion(instance, None, reused=False, **facts)
    promotion(instance, cursor)
    promotion(instance, cursor, reused=True, **facts)

    (text,) = webhook.texts()
    assert all(word in text for word in facts.values())
    assert "told to the webhook" in outcome
