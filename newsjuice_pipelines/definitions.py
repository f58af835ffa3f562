"""The one place where everything is put together: `build_defs()` for tests and tools, `defs` for Dagster."""

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg

from newsjuice_pipelines.assets import ALL_ASSETS
from newsjuice_pipelines.automation.executors import executor_for
from newsjuice_pipelines.automation.freshness import with_freshness
from newsjuice_pipelines.automation.jobs import JOBS
from newsjuice_pipelines.automation.schedules import SCHEDULES
from newsjuice_pipelines.automation.sensors import SENSORS
from newsjuice_pipelines.automation.terminal import terminal_logger
from newsjuice_pipelines.checks import ALL_CHECKS
from newsjuice_pipelines.resources.artifacts import Artifacts
from newsjuice_pipelines.resources.postgres import ArticleDatabase, TeacherLedger
from newsjuice_pipelines.resources.tracking import Tracking
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.runtime.leased_gpu import lease_in
from newsjuice_pipelines.settings import Settings, load_settings


def build_resources(settings: Settings) -> dict[str, Any]:
    """The resources as the settings describe them. Secrets are not among their fields: they are read when they are used."""
    return {
        "database": ArticleDatabase(chunks_table=settings.chunks_table, statement_timeout_s=settings.statement_timeout_s),
        "ledger": TeacherLedger(),
        "artifacts": Artifacts(root=settings.artifact_root, cache=str(settings.cache)),
        "vertex": VertexAI(
            project=settings.gcp_project,
            location=settings.gcp_location,
            registry_location=settings.registry_location,
            registry_url=settings.registry_url,
        ),
        "tracking": Tracking(mode=settings.wandb_mode, project=settings.wandb_project, directory=str(settings.home / "tracking")),
    }


def build_defs(settings: Settings | None = None, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions.

    Args:
        settings: default: from the environment.
        resources: replacements by name, for tests and tools.
    """
    settings = settings or load_settings()
    lease_in(settings.gpu_leases)
    return dg.Definitions(
        assets=with_freshness(ALL_ASSETS),
        asset_checks=ALL_CHECKS,
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources={**build_resources(settings), **(resources or {})},
        executor=executor_for(settings),
        loggers={"console": dg.colored_console_logger, "terminal": terminal_logger},
    )


# Dagster captures this logger (`managed_python_loggers`) from the level at which it speaks: progress lines are INFO.
logging.getLogger("newsjuice").setLevel(logging.INFO)

defs = build_defs()
