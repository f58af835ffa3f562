"""Both pipelines through the `newsjuice` command in a temporary home: every asset twice, failures, and recovery."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from newsjuice_pipelines.automation.jobs import BY_HAND
from newsjuice_pipelines.definitions import build_defs

# A smaller stand-in and a few steps: the chain is what is tested here, not what it learns.
CONFIG = {
    "ops": {
        "base_model": {
            "config": {
                "vocab_size": 1536,
                "hidden_size": 96,
                "intermediate_size": 192,
                "layers": 2,
                "heads": 4,
                "key_value_heads": 2,
                "steps": 400,
                "batch_size": 8,
                "sequence_tokens": 64,
                "learning_rate": 0.006,
            }
        },
        "lora_adapter": {"config": {"epochs": 1}},
        "student_scripts": {"config": {"max_new_tokens": 40}},
        "base_scripts": {"config": {"max_new_tokens": 40}},
        "latency_report": {"config": {"prompts": 1, "max_new_tokens": 20, "rounds": 1}},
        "quantised_model": {"config": {"gate_prompts": 2, "max_new_tokens": 16}},
        "quantised_base": {"config": {"gate_prompts": 2, "max_new_tokens": 16}},
        "classifier_checkpoint": {"config": {"max_steps": 4}},
    }
}


class Home:
    """A home folder, and the `newsjuice` command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEWSJUICE_", "DAGSTER", "WANDB"))}
        self.variables = {**kept, "NEWSJUICE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "newsjuice_pipelines.cli", *arguments]
        environment = {**self.variables, **variables}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=600, check=False)

    def versions(self) -> dict[str, str]:
        """The version in force of every artefact."""
        root = self.folder / "home" / "artifacts"
        return {str(pointer.parent.relative_to(root)): pointer.read_text() for pointer in sorted(root.rglob("CURRENT"))}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="nje2e", dir="/tmp"))
    yield Home(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def first_run(home: Home) -> subprocess.CompletedProcess[str]:
    return home("run", "--sample", "14", "--config", str(home.config))


@pytest.mark.end_to_end
def test_one_command_materialises_every_asset_and_prints_the_results(
    home: Home, first_run: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_run.returncode == 0, first_run.stderr
    assert "pre-training the stand-in model: 400/400 steps" in first_run.stderr, "long work must show its progress"
    assert "podcast decision" in first_run.stdout
    assert "classifier decision" in first_run.stdout
    assert "http://127.0.0.1:3000" in first_run.stderr

    monkeypatch.setenv("DAGSTER_HOME", str(home.folder / "home" / "dagster"))
    with dg.DagsterInstance.get() as instance:
        materialised = {key for key in instance.all_asset_keys() if instance.get_latest_materialization_event(key)}
        by_hand = {dg.AssetKey(name) for name in BY_HAND}
        assert materialised == {spec.key for spec in build_defs().resolve_all_asset_specs()} - by_hand
        assert instance.get_materialized_partitions(dg.AssetKey("classifier_checkpoint")) == {"linear", "minilm"}
        event = instance.get_latest_materialization_event(dg.AssetKey("merged_model"))
        tags = event.asset_materialization.tags
        assert tags["dagster/data_version"] == home.versions()["merged_model"]


@pytest.mark.end_to_end
def test_a_dry_run_takes_the_configuration_of_the_whole_run_and_writes_nothing(
    home: Home, first_run: subprocess.CompletedProcess[str]
) -> None:
    before = home.versions()
    done = home("run", "--dry-run", "--sample", "14", "--config", str(home.config))
    assert done.returncode == 0, done.stderr
    assert "Dry run: No call would be made: 14 answers are in the ledger." in done.stderr
    assert home.versions() == before


@pytest.mark.end_to_end
def test_a_second_run_reuses_everything(home: Home, first_run: subprocess.CompletedProcess[str]) -> None:
    before = home.versions()

    second = home("run", "--sample", "14", "--config", str(home.config))

    assert second.returncode == 0, second.stderr
    assert home.versions() == before
    ended = [line for line in second.stderr.splitlines() if " ✓ " in line and not line.startswith(" ")]
    assert len(ended) == 23 + 4, "23 assets, four of them once for each of two models"
    assert all(line.endswith("✓ unchanged") for line in ended)


@pytest.mark.end_to_end
def test_a_damaged_artifact_is_named_and_mended_by_materialising_it_again(
    home: Home, first_run: subprocess.CompletedProcess[str]
) -> None:
    def weights() -> Path:
        return home.folder / "home" / "artifacts" / "merged_model" / home.versions()["merged_model"] / "model.safetensors"

    whole = weights().read_bytes()
    weights().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    broken = home("run", "--select", "student_scripts", "--config", str(only(home, "student_scripts")))
    assert broken.returncode == 1
    assert "student_scripts failed: merged_model: checksum error in model.safetensors" in broken.stderr
    assert "Traceback" not in broken.stderr

    mended = home("run", "--select", "merged_model")
    assert "merged_model is damaged and will be written again" in mended.stderr
    assert mended.returncode == 0
    assert weights().read_bytes() == whole, "the same recipe gives the same weights"


@pytest.mark.end_to_end
def test_a_run_killed_while_training_goes_on_from_its_checkpoint(home: Home, first_run: subprocess.CompletedProcess[str]) -> None:
    config = home.folder / "long.yaml"
    config.write_text(yaml.safe_dump({"ops": {"lora_adapter": {"config": {"epochs": 12, "patience_epochs": 12}}}}))
    command = [sys.executable, "-m", "newsjuice_pipelines.cli", "run", "--select", "lora_adapter", "--config", str(config)]
    scratch = home.folder / "home" / "cache" / "scratch" / "lora_adapter"
    before = home.versions()["lora_adapter"]

    process = subprocess.Popen(command, env=home.variables, cwd=home.folder, stderr=subprocess.DEVNULL)
    while not list(scratch.glob("*/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert home.versions()["lora_adapter"] == before, "a killed run must not change what is in force"

    resumed = home("run", "--select", "lora_adapter", "--config", str(config))

    assert resumed.returncode == 0, resumed.stderr
    assert "going on from checkpoint-" in resumed.stderr
    assert home.versions()["lora_adapter"] != before
    assert not list((home.folder / "home" / "artifacts" / "lora_adapter").glob(".tmp-*"))
    assert home("run", "--select", "lora_adapter", "--config", str(only(home, "lora_adapter"))).returncode == 0


def only(home: Home, asset: str) -> Path:
    """A configuration file for one asset."""
    path = home.folder / f"{asset}.yaml"
    path.write_text(yaml.safe_dump({"ops": {asset: CONFIG["ops"][asset]}}))
    return path


@pytest.mark.end_to_end
def test_a_headline_and_a_file_are_answered(home: Home, first_run: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,title\n1,Senate passes budget bill\n2,\n", encoding="utf-8")

    said = home("classify", "Senate passes budget bill")
    done = home("classify", "--model", "linear", "--file", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"))

    assert said.returncode == 0, said.stderr
    assert "first three:" in said.stdout
    assert "Treat the answers as a trial" in said.stderr
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["id"] for row in rows] == ["1", "2"]
    assert rows[0]["predicted_category"]
    assert not rows[1]["predicted_category"]
    assert rows[1]["reason"]


@pytest.mark.end_to_end
def test_the_report_command_repeats_the_table_and_every_report_exists(
    home: Home, first_run: subprocess.CompletedProcess[str]
) -> None:
    done = home("report")

    assert done.returncode == 0
    paths = [Path(line.split()[-1]) for line in done.stdout.split("Reports\n")[1].splitlines()]
    assert len(paths) == 13, "twelve reports, and the site of them all"
    assert all(path.is_file() for path in paths)


@pytest.mark.end_to_end
def test_results_hold_no_invented_numbers(home: Home, first_run: subprocess.CompletedProcess[str]) -> None:
    root = home.folder / "home" / "artifacts"
    latency = json.loads((root / "latency_report" / home.versions()["latency_report"] / "results.json").read_text())

    assert latency["teacher"]["latency_p50_s"] is None, "the extractive teacher makes no calls to time"


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["run", "--select", "no_such_asset"], {}, "no such asset"),
        (["run", "--select", "promoted_model"], {}, "say which model: either the run_id"),
        (["run", "--select", "lora_adapter"], {"NEWSJUICE_HOME": "{new}"}, "materialise the asset 'student_dataset' first"),
        (
            ["run"],
            {"NEWSJUICE_DATABASE_URL": "postgresql://u:hidden-word@127.0.0.1:9/db"},
            "no PostgreSQL answers at 127.0.0.1:9/db",
        ),
        (["run"], {"NEWSJUICE_DATABASE_URL": "postgresql//u:hidden-word@nowhere"}, "is not a PostgreSQL URL"),
        (
            ["run", "--select", "huffpost_articles"],
            {"NEWSJUICE_HUFFPOST_PATH": "/nowhere/file.json"},
            "cannot read /nowhere/file.json",
        ),
        (["run", "--select", "teacher_scripts"], {"NEWSJUICE_TEACHER": "gemini"}, "needs NEWSJUICE_GCP_PROJECT"),
        (["run", "--select", "article_chunks"], {"NEWSJUICE_CHUNKS_TABLE": "no_table"}, "no_table"),
        (["run"], {"NEWSJUICE_TEACHER": "gpt"}, "teacher"),
        (["run", "taxonomy"], {}, "say --select taxonomy"),
        (["run", "--select", "taxonomy", "no_such_asset"], {}, "no_such_asset: no such asset"),
        (["run", "--models", "linear,nosuch"], {}, "there is no classifier nosuch"),
        (["run", "--config", "{wrong}"], {}, "no_such_field"),
    ],
)
def test_a_failing_step_names_itself_and_says_why_without_a_traceback_or_a_password(
    home: Home, first_run: subprocess.CompletedProcess[str], arguments: list[str], variables: dict[str, str], message: str
) -> None:
    new_home = str(home.folder / "new")
    wrong = home.folder / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({"ops": {"lora_adapter": {"config": {"no_such_field": 1}}}}))
    filled = [text.replace("{wrong}", str(wrong)) for text in arguments]
    done = home(*filled, **{name: value.replace("{new}", new_home) for name, value in variables.items()})

    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden-word" not in done.stdout + done.stderr


@pytest.mark.end_to_end
def test_the_doctor_finds_everything_in_order(home: Home, first_run: subprocess.CompletedProcess[str]) -> None:
    done = home("doctor")

    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout
    assert "67 chunks in chunks_vector" in done.stdout


@pytest.mark.end_to_end
def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(home: Home, first_run: subprocess.CompletedProcess[str]) -> None:
    done = home("doctor", NEWSJUICE_TEACHER="gemini", NEWSJUICE_DATABASE_URL="postgresql://u:hidden-word@127.0.0.1:9/db")

    assert done.returncode == 1
    assert "set NEWSJUICE_GCP_PROJECT" in done.stdout
    assert "no PostgreSQL answers at 127.0.0.1:9/db" in done.stdout
    assert "hidden-word" not in done.stdout + done.stderr
