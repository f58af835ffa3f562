"""The environment that every subcommand runs in: the home folder, Dagster's own home, and the settings."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.provenance import visible_gpus
from newsjuice_pipelines.settings import Settings, load_settings

# Libraries stay quiet, since a run has progress lines of its own. OpenMP threads spin briefly before they sleep: with the usual
# spinning, two training processes on one small machine slow each other down more than tenfold.
LIBRARY_DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "GOMP_SPINCOUNT": "10000",
}

PATHS = ("home", "artifacts", "huffpost_path", "external_csv")


def prepare_environment(data: Path | None = None) -> Settings:
    """Settle the home folder and Dagster's home for this process and its children, and return the settings.

    Variables of a `.env` file in the working directory count too. With `data`, the home is a folder of its own below the usual
    one, so that two collections never mix.
    """
    import yaml
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")
    settings = load_settings()
    if data is not None:
        name = collection_name(data)
        os.environ["NEWSJUICE_HOME"] = str(settings.home / "collections" / name)
        os.environ["NEWSJUICE_HUFFPOST_PATH"] = str(data.resolve() / "huffpost_sample.jsonl")
        os.environ["NEWSJUICE_DEMO"] = "false"
        if settings.artifacts is not None:
            os.environ["NEWSJUICE_ARTIFACTS"] = f"{settings.artifacts.rstrip('/')}/collections/{name}"
        settings = load_settings()
    for field in PATHS:  # absolute now, so that child processes may work in another folder
        value = getattr(settings, field)
        if value is not None:
            os.environ[f"NEWSJUICE_{field.upper()}"] = str(value)
    base_model = Path(settings.base_model).expanduser()
    if base_model.is_dir():
        os.environ["NEWSJUICE_BASE_MODEL"] = str(base_model.absolute())
        settings = load_settings()
    if data is not None or not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(settings.home / "dagster")
        home = Path(os.environ["DAGSTER_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        (home / "dagster.yaml").write_text(yaml.safe_dump(instance_config(visible_gpus())), encoding="utf-8")
    Path(os.environ["DAGSTER_HOME"]).mkdir(parents=True, exist_ok=True)  # one that the user named may not be there yet
    for variable, value in LIBRARY_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")  # between libraries, not for users
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels
    return settings


def instance_config(gpus: int) -> dict[str, Any]:
    """The Dagster instance of one machine: as many runs at once as it has GPUs, one on a laptop without.

    The project's root dagster.yaml says the same, for no more than one GPU, for commands run without DAGSTER_HOME.
    """
    purged_days = {"skipped": 7, "failure": 30, "success": -1}
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "python_logs": {"managed_python_loggers": ["newsjuice"]},
        "concurrency": {"pools": {"granularity": "op", "default_limit": 1}, "runs": {"max_concurrent_runs": max(1, gpus)}},
        "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 60},
        # A run whose process died is tried once more; a step that failed is not: its own retry policy has had its say.
        "run_retries": {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False},
        "retention": {"schedule": {"purge_after_days": purged_days}, "sensor": {"purge_after_days": dict(purged_days)}},
    }


def collection_name(data: Path) -> str:
    """A folder name for a collection: readable, and different for different paths."""
    path = str(data.resolve())
    readable = re.sub(r"[^A-Za-z0-9]+", "-", data.resolve().name).strip("-")[:30] or "data"
    return f"{readable}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
