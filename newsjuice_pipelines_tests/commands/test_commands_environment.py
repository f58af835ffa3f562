"""Settings and the environment of the command: paths, collections, and what children inherit."""

import os
from pathlib import Path

import dagster as dg
import pytest
import yaml

from newsjuice_pipelines.automation.op_tags import GPU_POOL
from newsjuice_pipelines.commands.dev import _open_gpu_pool
from newsjuice_pipelines.commands.environment import collection_name, instance_config, prepare_environment
from newsjuice_pipelines.runtime import provenance
from newsjuice_pipelines.settings import Settings, load_settings

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and none of our variables; whatever a test sets is undone."""
    for name in [name for name in os.environ if name.startswith(("NEWSJUICE_", "DAGSTER_HOME"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.chdir(tmp_path)


def test_without_variables_all_state_is_below_the_working_directory(tmp_path: Path) -> None:
    settings = prepare_environment()

    assert settings.home == tmp_path / ".newsjuice"
    assert os.environ["DAGSTER_HOME"] == str(tmp_path / ".newsjuice" / "dagster")
    assert settings.demo


def test_a_collection_has_a_home_artifacts_and_headlines_of_its_own_and_no_demo(tmp_path: Path) -> None:
    os.environ["NEWSJUICE_ARTIFACTS"] = "gs://bucket/prefix"
    data = tmp_path / "my data"
    data.mkdir()

    settings = prepare_environment(data)

    assert settings.home == tmp_path / ".newsjuice" / "collections" / collection_name(data)
    assert settings.artifact_root == f"gs://bucket/prefix/collections/{collection_name(data)}"
    assert settings.huffpost_path == data / "huffpost_sample.jsonl"
    assert not settings.demo


def test_two_folders_with_the_same_name_are_two_collections(tmp_path: Path) -> None:
    assert collection_name(tmp_path / "a" / "data") != collection_name(tmp_path / "b" / "data")
    assert collection_name(tmp_path / "данные").startswith("data-")


def test_relative_paths_become_absolute_for_child_processes(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    os.environ |= {"NEWSJUICE_HUFFPOST_PATH": "h.json", "NEWSJUICE_BASE_MODEL": "model", "NEWSJUICE_ARTIFACTS": "out"}

    prepare_environment()

    assert os.environ["NEWSJUICE_HUFFPOST_PATH"] == str(tmp_path / "h.json")
    assert os.environ["NEWSJUICE_BASE_MODEL"] == str(tmp_path / "model")
    assert os.environ["NEWSJUICE_ARTIFACTS"] == str(tmp_path / "out")


def test_a_dotenv_file_counts_for_us_and_for_libraries_and_real_variables_win(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NEWSJUICE_TEACHER=gemini\nNEWSJUICE_GCP_PROJECT=from-file\nWANDB_API_KEY=key\n")
    os.environ["NEWSJUICE_GCP_PROJECT"] = "from-environment"

    settings = prepare_environment()

    assert (settings.teacher, settings.gcp_project) == ("gemini", "from-environment")
    assert os.environ["WANDB_API_KEY"] == "key"


def test_an_empty_variable_counts_as_unset() -> None:
    os.environ["NEWSJUICE_DATABASE_URL"] = ""

    assert load_settings().database_url is None


def test_a_secret_is_not_shown_with_the_settings() -> None:
    os.environ["NEWSJUICE_DATABASE_URL"] = "postgresql://u:hidden-word@host/db"

    assert "hidden-word" not in repr(load_settings())


def test_the_example_file_lists_every_setting() -> None:
    text = (PROJECT / ".env.example").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"NEWSJUICE_{name.upper()}=" not in text] == []


@pytest.mark.parametrize("name", ["a.b.c", "a..b", ""])
def test_a_table_name_that_cannot_be_one_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ValueError, match=r"public\.chunks_vector"):
        Settings(chunks_table=name)


def test_a_machine_with_two_gpus_runs_two_gpu_steps_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
        (tmp_path / "gpus" / str(number) / "information").write_text("Model: \t NVIDIA L4\n", encoding="utf-8")
    monkeypatch.setattr(provenance, "NVIDIA_DEVICES", tmp_path / "gpus")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert provenance.visible_gpus() == 2
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance_config(provenance.visible_gpus())), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    _open_gpu_pool(2)

    with dg.DagsterInstance.get() as instance:
        assert instance.event_log_storage.get_concurrency_info(GPU_POOL).slot_count == 2
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 2

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert provenance.visible_gpus() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert provenance.visible_gpus() == 0
