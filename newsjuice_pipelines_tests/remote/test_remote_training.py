"""Training in a container elsewhere: the real asset, the real container command, an object store between them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from newsjuice_pipelines.assets.classification import classifier_checkpoint
from newsjuice_pipelines.benchmarks.object_store_server import ObjectStore, object_store
from newsjuice_pipelines.benchmarks.vertex_jobs_server import VertexJobsServer
from newsjuice_pipelines.classification.training.models import BASE_MODELS
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig
from newsjuice_pipelines.podcast.training.finetune_config import PRESETS
from newsjuice_pipelines.remote.jobs import JobNotUnderstood, TrainingJob, classifier_settings, train
from newsjuice_pipelines.resources import training
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.tracking import Tracking
from newsjuice_pipelines.resources.vertex import VertexNotConfigured
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactStore, Draft
from newsjuice_pipelines.settings import Settings

KEY = "classifier_checkpoint/linear"
TOPICS = {
    "FOOD": ["a soup of beans", "the chef bakes bread", "apples and cheese for lunch", "a kitchen with salt", "sweet cake"],
    "SPACE": ["the rocket flies", "a planet far away", "stars over the telescope", "moon dust in orbit", "a comet with a tail"],
}
SECRETS = {
    "NEWSJUICE_DATABASE_URL": "postgresql://u:hunter2@h/db",
    "NEWSJUICE_SERVER_API_KEY": "hunter3",
    "NEWSJUICE_WEBHOOK_URL": "https://hooks.example/hunter4",
    "WANDB_API_KEY": "hunter5",
}


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    pytest.importorskip("moto", reason="the object store of these tests is moto's server: pip install 'moto[server]' s3fs")
    pytest.importorskip("s3fs", reason="the tests reach the object store by s3fs: pip install s3fs")
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def service_account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key file of a service account that exists nowhere."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("account") / "key.json"
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": key.private_bytes(*formats).decode(),
        "client_email": "pipeline@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:9/token",
    }
    path.write_text(json.dumps(account), encoding="utf-8")
    return path


@dataclass
class Project:
    """A pipeline whose artefacts are on the object store, and the jobs that it starts."""

    root: str
    folder: Path
    server: VertexJobsServer

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.root, self.folder / "cache")

    def put_split(self, rows: int = 5) -> Artifact:
        """A split of so many headlines a topic."""

        def write(draft: Draft) -> dict[str, Any]:
            frame = pd.DataFrame(
                [
                    {"row_id": f"{label}{number}", "text": text, "label": label, "label_id": position}
                    for position, (label, texts) in enumerate(TOPICS.items())
                    for number, text in enumerate(texts[:rows])
                ],
                columns=["row_id", "text", "label", "label_id"],
            )
            for part in ("train", "validation"):
                frame.to_parquet(draft.path / f"{part}.parquet")
            (draft.path / "split.json").write_text(json.dumps({"classes": list(TOPICS)}), encoding="utf-8")
            return {"row_count": len(frame)}

        return self.store.publish("balanced_split", {"rows": rows}, write)

    def materialize(self) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [classifier_checkpoint],
            partition_key="linear",
            resources={
                "artifacts": Artifacts(root=self.root, cache=str(self.folder / "cache")),
                "tracking": Tracking(mode="disabled", directory=str(self.folder / "tracking")),
            },
            instance=dg.DagsterInstance.ephemeral(),
            raise_on_error=False,
        )

    def everything(self) -> str:
        """All that a job stores or prints."""
        jobs = self.server.jobs.values()
        return "".join(json.dumps(job.resource) + self.server.log(job) for job in jobs)


@pytest.fixture
def project(objects: ObjectStore, service_account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    environment = {**objects.environment, "NEWSJUICE_HOME": str(tmp_path / "container"), "OMP_NUM_THREADS": "1"}
    with VertexJobsServer(tmp_path / "output", environment) as server:
        settings = {
            "ARTIFACTS": objects.uri(tmp_path.name),
            "HOME": str(tmp_path / "home"),
            "TRAINING_ON": "vertex",
            "GCP_PROJECT": "p",
            "VERTEX_IMAGE": "europe-docker.pkg.dev/p/newsjuice/code:1",
            "VERTEX_JOBS_URL": server.url,
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"NEWSJUICE_{name}", value)
        for name, value in {**SECRETS, "GOOGLE_APPLICATION_CREDENTIALS": str(service_account)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(training, "POLL_S", 0.2)
        monkeypatch.setattr(training, "CHUNK_S", 0.2)
        yield Project(objects.uri(tmp_path.name), tmp_path, server)


def test_a_classifier_is_trained_in_a_container_and_comes_back_as_an_artifact(project: Project) -> None:
    split = project.put_split()

    result = project.materialize()

    assert result.success
    artifact = project.store.open(KEY)
    (materialization,) = result.asset_materializations_for_node("classifier_checkpoint")
    (job,) = project.server.jobs.values()
    assert materialization.metadata["version"].value == artifact.version
    assert materialization.metadata["dagster/uri"].value == f"{project.root}/{KEY}/{artifact.version}"
    assert artifact.recipe["inputs"] == {"balanced_split": split.version}
    assert artifact.facts["train_rows"] == 10
    assert job.resource["labels"]["application"] == "newsjuice"
    assert "hunter" not in project.everything()

    again = project.materialize()

    assert again.asset_materializations_for_node("classifier_checkpoint")[0].metadata["reused"].value is True
    assert len(project.server.jobs) == 1, "what is there already needs no machine"


def test_bad_rows_in_a_container_are_told_as_in_the_step_itself(project: Project) -> None:
    project.put_split(rows=0)

    result = project.materialize()

    (event,) = [event for event in result.all_events if event.is_step_failure]
    description = event.step_failure_data.user_failure_data.description
    assert "training needs rows of at least 2" in description
    assert [job.state for job in project.server.jobs.values()] == ["JOB_STATE_FAILED"]


@pytest.fixture
def job() -> TrainingJob:
    settings = classifier_settings(BASE_MODELS["linear"], ClassifierConfig())
    return TrainingJob(KEY, {"inputs": {"balanced_split": "0123"}}, settings)


@pytest.fixture
def configured() -> Settings:
    return Settings(training_on="vertex", gcp_project="p", vertex_image="image:1", _env_file=None)


def local(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def shared(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "cache")


def test_a_folder_of_this_machine_cannot_be_trained_on_elsewhere(configured: Settings, job: TrainingJob, tmp_path: Path) -> None:
    with pytest.raises(VertexNotConfigured, match="set NEWSJUICE_ARTIFACTS to gs://bucket/prefix"):
        training.check_vertex(configured, local(tmp_path), job)


@pytest.mark.parametrize("name", ["gcp_project", "vertex_image"])
def test_a_setting_that_is_missing_is_named(configured: Settings, job: TrainingJob, tmp_path: Path, name: str) -> None:
    with pytest.raises(VertexNotConfigured, match=f"needs NEWSJUICE_{name.upper()}"):
        training.check_vertex(configured.model_copy(update={name: None}), shared(tmp_path), job)


def test_a_base_model_in_a_folder_of_this_machine_is_refused(configured: Settings, job: TrainingJob, tmp_path: Path) -> None:
    settings = classifier_settings(replace(BASE_MODELS["minilm"], folder="/models/mine"), ClassifierConfig())

    with pytest.raises(VertexNotConfigured, match="cannot reach the base model in /models/mine"):
        training.check_vertex(configured, shared(tmp_path), replace(job, settings=settings))


def test_a_container_gets_the_settings_it_needs_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NEWSJUICE_WANDB_MODE", "disabled")

    env = training.container_env(Settings(_env_file=None), shared(tmp_path))

    assert sorted(env) == ["NEWSJUICE_ARTIFACTS", "NEWSJUICE_WANDB_MODE", "NEWSJUICE_WANDB_PROJECT"]
    assert "hunter" not in json.dumps(env)


@pytest.mark.parametrize("settings", [vars(PRESETS["original"]), classifier_settings(BASE_MODELS["minilm"], ClassifierConfig())])
def test_a_job_travels_as_json(settings: dict[str, Any]) -> None:
    job = TrainingJob("lora_adapter", {"inputs": {"base_model": "0123"}, "config": dict(settings)}, settings, force=True)

    assert TrainingJob.from_values(json.loads(json.dumps(asdict(job)))) == job


def test_an_image_of_another_release_says_so(job: TrainingJob) -> None:
    with pytest.raises(JobNotUnderstood, match=r"comes from release 0\.0\.0 .*build the image"):
        TrainingJob.from_values({**asdict(job), "release": "0.0.0"})


Change = Callable[[TrainingJob], TrainingJob]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: replace(job, key="poem"), "there is no training for 'poem'"),
        (lambda job: replace(job, settings={**job.settings, "config": {"speed": 9}}), "ClassifierConfig has no speed"),
    ],
)
def test_a_job_that_is_not_known_is_refused(job: TrainingJob, change: Change, message: str, tmp_path: Path) -> None:
    split = Artifact("balanced_split", "0123", tmp_path, str(tmp_path), {}, {})

    with pytest.raises(JobNotUnderstood, match=message):
        train(change(job), {"balanced_split": split}, Draft(tmp_path, tmp_path), None)


def test_the_container_command_alone_says_what_it_is_for() -> None:
    done = subprocess.run([sys.executable, "-m", "newsjuice_pipelines.remote"], capture_output=True, text=True, check=False)

    assert done.returncode == 64
    assert "set NEWSJUICE_TRAINING_ON=vertex" in done.stderr
