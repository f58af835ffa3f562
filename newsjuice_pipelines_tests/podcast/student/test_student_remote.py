"""The student trained in a container elsewhere: the real asset and the real training, on the micro base model."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from newsjuice_pipelines.assets.student import lora_adapter
from newsjuice_pipelines.benchmarks.vertex_jobs_server import VertexJobsServer
from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig
from newsjuice_pipelines.resources import training
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.tracking import Tracking
from newsjuice_pipelines.runtime.artifacts import ArtifactStore, Draft


def put(store: ArtifactStore, key: str, folder: Path) -> None:
    """Publish a folder as it is."""

    def write(draft: Draft) -> dict[str, object]:
        shutil.copytree(folder, draft.path, dirs_exist_ok=True)
        return {}

    store.publish(key, {"config": {"name": "micro"}}, write)


def test_an_adapter_is_trained_in_a_container_with_its_progress_in_the_log(
    base: Path,
    dataset: Path,
    tuning: FinetuneConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    google_credentials = pytest.importorskip("google.oauth2.credentials", reason="needs the gcp extra")
    root = (tmp_path / "artifacts").as_uri()
    store = ArtifactStore(root, tmp_path / "cache")
    put(store, "base_model", base)
    put(store, "student_dataset", dataset)
    form = {**vars(tuning), "epochs": 1, "preset": "recommended"}
    environment = {"NEWSJUICE_HOME": str(tmp_path / "container"), "OMP_NUM_THREADS": "1"}
    with VertexJobsServer(tmp_path / "output", environment) as server:
        settings = {"TRAINING_ON": "vertex", "GCP_PROJECT": "p", "VERTEX_IMAGE": "image:1", "VERTEX_JOBS_URL": server.url}
        for name, value in settings.items():
            monkeypatch.setenv(f"NEWSJUICE_{name}", value)
        monkeypatch.setattr("google.auth.default", lambda **_: (google_credentials.Credentials("token"), "p"))
        monkeypatch.setattr(training, "POLL_S", 0.2)

        result = dg.materialize(
            [lora_adapter],
            run_config={"ops": {"lora_adapter": {"config": form}}},
            resources={
                "artifacts": Artifacts(root=root, cache=str(tmp_path / "cache")),
                "tracking": Tracking(mode="disabled", directory=str(tmp_path / "tracking")),
            },
            instance=dg.DagsterInstance.ephemeral(),
            raise_on_error=False,
        )

        assert result.success, "".join(server.log(job) for job in server.jobs.values())
    artifact = store.open("lora_adapter")
    assert artifact.facts["train_rows"] == 16
    assert artifact.recipe["config"]["epochs"] == 1
    assert (artifact.path / "adapter_model.safetensors").exists()
    assert "the first training row" in capfd.readouterr().err
