"""Putting a model into service: what was judged is what is served, whole, and what was there before can come back."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from newsjuice_pipelines.assets.judging import promoted_model
from newsjuice_pipelines.podcast.judging.promotion import PromotionRefused, judged_model, one_student, promote, roll_back
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactMissing, ArtifactStore, Draft


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def judged_run(
    store: ArtifactStore, weights: str, decision: str = "adopt", *, gate: bool = True, engine: str = "openvino"
) -> Artifact:
    """A model, its quantised form, its scripts, both reports and a decision on them; returns the decision."""

    def publish(key: str, facts: dict[str, Any], files: dict[str, str], *inputs: Artifact) -> Artifact:
        def write(draft: Draft) -> dict[str, Any]:
            for name, text in files.items():
                (draft.path / name).write_text(text, encoding="utf-8")
            return facts

        recipe = {"inputs": {one.key: one.version for one in inputs}, "weights": weights, "config": {"engine": engine}}
        return store.publish(key, recipe, write, force=True)

    model = publish("merged_model", {"gate": {"passed": gate}}, {"model.safetensors": weights})
    quantised = publish("quantised_model", {"passed": True}, {"model-q8_0.gguf": weights[:1]}, model)
    scripts = publish("student_scripts", {}, {}, model, quantised)
    quality = publish("script_quality_report", {}, {}, scripts)
    latency = publish("latency_report", {}, {}, model, quantised)
    return publish("podcast_decision", {"decision": decision, "reasons": ["format passes"]}, {}, latency, quality)


def test_the_model_that_was_judged_is_served_and_not_a_later_one(store: ArtifactStore) -> None:
    decision = judged_run(store, "first")
    judged_run(store, "second")

    served = promote(store, judged_model(store, decision.version), "run-1")

    assert (served.path / "model" / "model.safetensors").read_text() == "first"
    assert (served.path / "quantised_model" / "model-q8_0.gguf").read_text() == "f"
    record = json.loads((served.path / "promotion.json").read_text())
    assert (record["run_id"], record["decision"], record["replaces"]) == ("run-1", "adopt", None)


def test_promoting_the_same_run_again_changes_nothing(store: ArtifactStore) -> None:
    judged = judged_model(store, judged_run(store, "first").version)

    once, again = promote(store, judged, "run-1"), promote(store, judged, "run-1")

    assert (again.version, again.reused) == (once.version, True)


def test_a_roll_back_serves_what_was_replaced_and_can_go_back_twice(store: ArtifactStore) -> None:
    versions = [
        promote(store, judged_model(store, judged_run(store, weights).version), f"run-{weights}").version for weights in "abc"
    ]

    assert roll_back(store).version == versions[1]
    assert (store.open("promoted_model").path / "model" / "model.safetensors").read_text() == "b"
    assert roll_back(store).version == versions[0]
    with pytest.raises(PromotionRefused, match="nothing to go back to"):
        roll_back(store)


def test_without_a_model_in_service_there_is_nothing_to_roll_back(store: ArtifactStore) -> None:
    with pytest.raises(PromotionRefused, match="no model is in service"):
        roll_back(store)


def test_a_model_not_to_be_adopted_needs_a_person_to_insist(store: ArtifactStore) -> None:
    judged = judged_model(store, judged_run(store, "first", "do not adopt").version)

    with pytest.raises(PromotionRefused, match="'do not adopt' \\(format passes\\)"):
        promote(store, judged, "run-1")
    served = promote(store, judged, "run-1", against_the_decision=True)

    assert served.facts["decision"] == "do not adopt"


def test_a_model_whose_merge_failed_is_never_served(store: ArtifactStore) -> None:
    judged = judged_model(store, judged_run(store, "first", gate=False).version)

    with pytest.raises(PromotionRefused, match="merge gate"):
        promote(store, judged, "run-1", against_the_decision=True)


def test_a_failed_promotion_leaves_the_served_model_alone(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    served = promote(store, judged_model(store, judged_run(store, "first").version), "run-1")
    judged = judged_model(store, judged_run(store, "second").version)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("newsjuice_pipelines.podcast.judging.promotion.shutil.copytree", full)
    with pytest.raises(Exception, match="no room left"):
        promote(store, judged, "run-2")

    assert store.open("promoted_model").version == served.version


def test_a_damaged_model_in_service_can_be_replaced(store: ArtifactStore) -> None:
    served = promote(store, judged_model(store, judged_run(store, "first").version), "run-1")
    (served.path / "model" / "model.safetensors").write_text("torn")

    again = promote(store, judged_model(store, judged_run(store, "second").version), "run-2")

    assert (again.path / "model" / "model.safetensors").read_text() == "second"
    assert again.recipe["replaces"] is None


def test_a_damaged_model_in_service_can_be_rolled_back_and_hands_on_its_way_back(store: ArtifactStore) -> None:
    def serve(weights: str) -> Artifact:
        return promote(store, judged_model(store, judged_run(store, weights).version), f"run-{weights}")

    first, second = serve("a"), serve("b")
    (second.path / "model" / "model.safetensors").write_text("torn")

    assert serve("c").recipe["replaces"] == first.version
    assert roll_back(store).version == first.version
    third = serve("d")
    (third.path / "model" / "model.safetensors").unlink()
    assert roll_back(store).version == first.version


def test_what_was_rolled_back_to_is_not_pruned_by_the_next_promotion(store: ArtifactStore) -> None:
    def serve(weights: str) -> Artifact:
        return promote(store, judged_model(store, judged_run(store, weights).version), f"run-{weights}")

    first = serve("a")
    serve("b")
    serve("c")
    roll_back(store)
    roll_back(store)
    assert serve("d").recipe["replaces"] == first.version

    assert roll_back(store).version == first.version


@pytest.mark.parametrize(("weights", "engine"), [("other", "openvino"), ("first", "transformers")])
def test_reports_on_two_students_are_no_judgement_of_either(store: ArtifactStore, weights: str, engine: str) -> None:
    judged_run(store, "first")
    latency = store.open("latency_report")
    judged_run(store, weights, engine=engine)

    with pytest.raises(PromotionRefused, match="about two students: latency_report timed"):
        one_student(store, latency, store.open("script_quality_report"))


def test_a_decision_whose_model_is_gone_says_what_to_do(store: ArtifactStore) -> None:
    decision = judged_run(store, "first")
    for weights in "abcd":
        judged_run(store, weights)

    with pytest.raises(ArtifactMissing, match=r"no version .* any more .*materialise 'podcast_decision' again"):
        judged_model(store, decision.version)


def test_in_dagster_a_run_id_names_the_decision(tmp_path: Path, store: ArtifactStore) -> None:
    decision = judged_run(store, "first")
    resources = {"artifacts": Artifacts(root=store.root, cache=str(store.cache))}

    @dg.asset(name="podcast_decision")
    def decided() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"version": decision.version})

    def ask(**config: Any) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [promoted_model],
            run_config={"ops": {"promoted_model": {"config": config}}},
            resources=resources,
            raise_on_error=False,
            instance=instance,
        )

    with dg.DagsterInstance.ephemeral() as instance:
        made = dg.materialize([decided], instance=instance)
        promoted = ask(run_id=made.run_id)
        refused = [ask(), ask(run_id="unknown"), ask(run_id=made.run_id, roll_back=True)]

    assert promoted.success
    assert store.open("promoted_model").facts["run_id"] == made.run_id
    reasons = [
        event.step_failure_data.user_failure_data.description
        for result in refused
        for event in result.all_events
        if event.is_step_failure
    ]
    assert ["say which model" in reasons[0], "made no podcast_decision" in reasons[1], "say which model" in reasons[2]] == [
        True
    ] * 3
