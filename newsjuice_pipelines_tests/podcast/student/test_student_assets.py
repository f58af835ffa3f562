"""The assets that judge the student, on a really trained micro model: what they reuse, what they tell apart, what they refuse."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from newsjuice_pipelines.assets.judging import (
    base_scripts,
    latency_report,
    podcast_decision,
    promoted_model,
    script_quality_report,
    student_scripts,
)
from newsjuice_pipelines.benchmarks.openai_server import OpenAIServer, ServerConfig
from newsjuice_pipelines.checks.podcast import student_and_base_ran_alike
from newsjuice_pipelines.podcast.engines import GATE_FILE
from newsjuice_pipelines.podcast.teaching.teacher_table import TEACHER_COLUMNS
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.runtime.artifacts import ArtifactStore, Draft

ASSETS = [student_scripts, base_scripts, latency_report, script_quality_report, podcast_decision]
SHORT = {"max_new_tokens": 24}
Materialise = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture(scope="module")
def store(
    base: Path, dataset: Path, merged: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> ArtifactStore:
    """All that the judging assets read, on the micro model."""
    home = tmp_path_factory.mktemp("store")
    store = ArtifactStore(str(home / "artifacts"), home / "cache")

    def publish(key: str, source: Path, facts: dict[str, Any]) -> None:
        def write(draft: Draft) -> dict[str, Any]:
            shutil.copytree(source, draft.path, dirs_exist_ok=True)
            return facts

        store.publish(key, {"config": {}, "inputs": {}}, write)

    folder = home / "quantised"
    folder.mkdir()
    (folder / GATE_FILE).write_text('{"passed": null}', encoding="utf-8")
    publish("base_model", base, {})
    publish("student_dataset", dataset, {})
    publish("merged_model", merged[0], merged[1])
    publish("quantised_model", folder, {"precision": None})
    publish("quantised_base", folder, {"precision": None})
    taught = home / "taught"
    taught.mkdir()
    rows = pd.DataFrame([dict.fromkeys(TEACHER_COLUMNS, "") | {"status": "ok", "model": "extractive"}])
    rows.to_csv(taught / "scripts.csv", index=False)
    publish("teacher_scripts/2026-09-01", taught, {})
    return store


@pytest.fixture
def materialise(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Materialise:
    """Materialises the judging assets with the reference engine, unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def run(*assets: Any, engine: str | None = "reference", raise_on_error: bool = True, **configured: Any) -> Any:
        config = {
            "student_scripts": {"engine": engine, **SHORT},
            "base_scripts": {"engine": engine, **SHORT},
            "latency_report": {"engine": engine, "prompts": 2, "batches": [1], **SHORT},
            "script_quality_report": {"similarity": False, "examples": 1},
        } | configured
        chosen = assets or (*ASSETS, student_and_base_ran_alike)
        names = {key.to_user_string() for asset in chosen for key in asset.keys}
        return dg.materialize(
            list(chosen),
            run_config={"ops": {name: {"config": values} for name, values in config.items() if name in names}},
            resources={"artifacts": Artifacts(root=store.root, cache=str(store.cache)), "vertex": VertexAI()},
            instance=dg.DagsterInstance.ephemeral(),
            raise_on_error=raise_on_error,
        )

    return run


def why(result: dg.ExecuteInProcessResult) -> str:
    """The reason of the step that failed."""
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    return str(failure.step_failure_data.user_failure_data.description)


def test_the_chain_ends_in_a_decision_and_a_second_run_reuses_all_of_it(materialise: Materialise, store: ArtifactStore) -> None:
    first = materialise()
    versions = {asset.key: store.current_version(asset.key.to_user_string()) for asset in ASSETS}
    second = materialise()

    assert versions == {asset.key: store.current_version(asset.key.to_user_string()) for asset in ASSETS}
    reused = [event.materialization.metadata["reused"].value for event in second.get_asset_materialization_events()]
    assert reused == [True] * len(ASSETS)
    (check,) = first.get_asset_check_evaluations()
    assert (check.passed, check.description) == (True, "Both were written by reference.")
    decision = store.open("podcast_decision").facts
    assert decision["decision"] == "do not adopt"
    assert "cost of 1,000 scripts (USD), against the teacher's" in decision["reasons"]
    columns = pd.read_csv(store.open("script_quality_report").path / "scripts.csv").columns
    assert {"gemini_podcast_text", "qwen_podcast_text", "student_podcast_text"} <= set(columns)


def test_scripts_of_one_engine_and_timings_of_another_are_no_decision(materialise: Materialise) -> None:
    materialise()
    timed = {"engine": "transformers", "prompts": 2, "batches": [1], **SHORT}

    result = materialise(latency_report, podcast_decision, latency_report=timed, raise_on_error=False)

    assert "the reports are about two students" in why(result)
    materialise()


def test_engines_that_differ_are_told_by_a_check(materialise: Materialise) -> None:
    result = materialise(base_scripts={"engine": "transformers", **SHORT})

    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.description == "The student was written by reference, the base by transformers."


def test_a_server_is_asked_for_the_student_and_never_passes_for_the_base(
    materialise: Materialise, store: ArtifactStore, merged: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(merged[0], ServerConfig(models=("tuned", "other"), token="hidden-word")) as server:
        monkeypatch.setenv("NEWSJUICE_SERVER_URL", server.url)
        monkeypatch.setenv("NEWSJUICE_SERVER_MODEL", "tuned")
        monkeypatch.setenv("NEWSJUICE_SERVER_API_KEY", "hidden-word")
        materialise(student_scripts, base_scripts, engine="vllm")
        student, base = store.open("student_scripts"), store.open("base_scripts")
        asked = len(server.received)
        materialise(student_scripts, engine="vllm")
        again = len(server.received)
        monkeypatch.setenv("NEWSJUICE_SERVER_MODEL", "other")
        materialise(student_scripts, engine="vllm")

    assert {body["model"] for body in server.received[:asked]} == {"tuned"}
    assert student.recipe["config"]["engine"] == "vllm"
    assert base.recipe["config"]["engine"] == "transformers", "the untuned model is not on that server"
    assert again == asked, "nothing is asked twice"
    assert server.received[-1]["model"] == "other"
    for artifact in (student, base):
        written = [file.read_text(encoding="utf-8", errors="replace") for file in artifact.path.iterdir()]
        assert not any("hidden-word" in text for text in written)


def test_a_student_that_was_not_to_be_adopted_is_served_only_when_a_person_insists(
    materialise: Materialise, store: ArtifactStore
) -> None:
    resources = {"artifacts": Artifacts(root=store.root, cache=str(store.cache)), "vertex": VertexAI()}
    with dg.DagsterInstance.ephemeral() as instance:
        materialise()
        decided = dg.materialize([podcast_decision], resources=resources, instance=instance)

        def promote(**config: Any) -> dg.ExecuteInProcessResult:
            return dg.materialize(
                [promoted_model],
                run_config={"ops": {"promoted_model": {"config": {"run_id": decided.run_id, **config}}}},
                resources=resources,
                instance=instance,
                raise_on_error=False,
            )

        refused, insisted = promote(), promote(against_the_decision=True)

    assert "'do not adopt'" in why(refused)
    assert insisted.success
    assert (store.open("promoted_model").path / "model" / "model.safetensors").is_file()
