"""The student's assets: what is refused before any work, and when a model is uploaded."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from newsjuice_pipelines.assets.forms import DatasetForm, FinetuneForm, MergeForm
from newsjuice_pipelines.assets.launchpad import chosen_preset, from_overrides
from newsjuice_pipelines.assets.student import merged_model, upload
from newsjuice_pipelines.podcast.training.dataset import DATASET_PRESETS
from newsjuice_pipelines.podcast.training.finetune import PRESETS
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.runtime.artifacts import Artifact


def merged(tmp_path: Path, *, passed: bool) -> Artifact:
    facts = {"gate": {"passed": passed}, "base_identity": "0" * 16}
    return Artifact("merged_model", "0123abcd", tmp_path, str(tmp_path), {}, facts)


def test_an_upload_that_cannot_work_stops_before_the_merge(tmp_path: Path) -> None:
    resources = {
        "artifacts": Artifacts(root=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache")),
        "vertex": VertexAI(project="p"),
    }
    config = {"ops": {"merged_model": {"config": {"register_with_image": "image:1"}}}}

    result = dg.materialize(
        [merged_model], run_config=config, resources=resources, raise_on_error=False, instance=dg.DagsterInstance.ephemeral()
    )

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    description = failure.step_failure_data.user_failure_data.description
    assert "set NEWSJUICE_ARTIFACTS to gs://bucket/prefix" in description
    assert not (tmp_path / "artifacts").exists()


def test_nothing_is_uploaded_unasked_or_past_a_gate_that_failed(tmp_path: Path) -> None:
    vertex = VertexAI()  # without a project, so that every attempt would raise

    unasked = upload(MergeForm(), merged(tmp_path, passed=True), vertex)
    failed = upload(MergeForm(register_with_image="image:1"), merged(tmp_path, passed=False), vertex)

    assert (unasked.passed, unasked.sentence) == (True, "No upload was asked for.")
    assert (failed.passed, failed.sentence) == (False, "Not uploaded: the merge gate did not pass.")


@pytest.mark.parametrize(("form", "presets"), [(DatasetForm, DATASET_PRESETS), (FinetuneForm, PRESETS)])
def test_every_field_of_every_preset_can_be_changed(form: Any, presets: dict[str, Any]) -> None:
    for name, preset in presets.items():
        for field, value in vars(preset).items():
            if isinstance(value, bool):
                assert getattr(from_overrides(form(preset=name, **{field: not value}), preset), field) is not value
        assert form.model_fields[next(iter(vars(preset)))].description
        assert chosen_preset(presets, name) is preset


def test_a_preset_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"there is no preset 'best': use one of recommended, original"):
        chosen_preset(DATASET_PRESETS, "best")
