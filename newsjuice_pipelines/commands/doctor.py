"""`newsjuice doctor`: what this machine and configuration can do, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `note` (works, could be better) or `problem` (a run would fail), with a fix."""

    subject: str
    status: str
    text: str
    fix: str = ""


def doctor(settings: Settings) -> int:
    """Print all findings; returns 1 when one of them is a problem."""
    findings = [look(settings) for look in LOOKS]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {"ok": "✓", "note": "•", "problem": "✗"}[finding.status]
        print(f"{mark} {finding.subject:<{width}}  {finding.text}")
        if finding.fix:
            print(f"  {'':<{width}}  → {finding.fix}")
    return int(any(finding.status == "problem" for finding in findings))


def python_version(_settings: Settings) -> Finding:
    """Which Python runs this."""
    return Finding("python", "ok", sys.version.split()[0])


def disk_space(settings: Settings) -> Finding:
    """Room below the home folder: the demo needs about 1 GB, a Qwen3-0.6B student about 10 GB."""
    folder = next(parent for parent in (settings.home, *settings.home.parents) if parent.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:.1f} GB free for {settings.home}"
    if free_gb < 1:
        return Finding("disk", "problem", text, "free some space, or set NEWSJUICE_HOME to another disk")
    if free_gb < 10:
        return Finding("disk", "note", text, "a Qwen3-0.6B student needs about 10 GB: set NEWSJUICE_HOME to another disk")
    return Finding("disk", "ok", text)


def compute(_settings: Settings) -> Finding:
    """The device that training will use."""
    from newsjuice_pipelines.runtime.devices import best_device

    device = best_device()
    if device.type == "cpu":
        fix = "train Qwen3-0.6B on a machine with an NVIDIA GPU (the same pins install the CUDA build there); `tiny` needs none"
        return Finding("compute", "note", f"no GPU: {device.name}, {device.dtype}", fix)
    return Finding("compute", "ok", f"{device.name}, {device.memory_gib:.0f} GiB, {device.dtype}")


def database(settings: Settings) -> Finding:
    """Whether the article database answers and has chunks."""
    import psycopg

    from newsjuice_pipelines.database.embedded import embedded_status
    from newsjuice_pipelines.resources.postgres import ArticleDatabase, DatabaseUnreachable

    if settings.articles_are_embedded and not embedded_status(settings.home / "postgres")["exists"]:
        return Finding(
            "database", "ok", "embedded PostgreSQL, not set up yet", "the first run sets it up and loads the demo corpus"
        )
    where = (
        "embedded PostgreSQL"
        if settings.articles_are_embedded
        else "NEWSJUICE_DATABASE_URL"
        if settings.database_url
        else "NEWSJUICE_CLOUD_SQL_INSTANCE"
    )
    resource = ArticleDatabase(chunks_table=settings.chunks_table, statement_timeout_s=settings.statement_timeout_s)
    from newsjuice_pipelines.podcast.sampling.chunk_table import count_chunks
    from newsjuice_pipelines.podcast.sampling.chunks import SourceTableError

    try:
        with resource.read_only() as connection:
            rows = count_chunks(connection, settings.chunks_table)
    except (DatabaseUnreachable, SourceTableError, ValueError) as error:
        return Finding("database", "problem", where, str(error))
    except psycopg.Error as error:
        return Finding("database", "problem", where, " ".join(str(error).split()))
    if rows == 0:
        return Finding("database", "problem", f"{where}: table {settings.chunks_table} is empty", "load articles first")
    return Finding("database", "ok", f"{where}: {rows:,} chunks in {settings.chunks_table}")


def ledger(settings: Settings) -> Finding:
    """Whether the database of the teacher's replies answers."""
    from newsjuice_pipelines.database.embedded import embedded_status
    from newsjuice_pipelines.podcast.teaching.ledger import LedgerUnavailable
    from newsjuice_pipelines.resources.postgres import DatabaseUnreachable, TeacherLedger

    if settings.ledger_url is None and not embedded_status(settings.home / "postgres")["exists"]:
        return Finding("ledger", "ok", "embedded PostgreSQL, not set up yet")
    where = "embedded PostgreSQL" if settings.ledger_url is None else "NEWSJUICE_LEDGER_URL"
    try:
        opened = TeacherLedger().open()
        opened.find([""])
        opened.close()
    except (DatabaseUnreachable, LedgerUnavailable, ValueError) as error:
        return Finding("ledger", "problem", where, str(error))
    return Finding("ledger", "ok", where)


def teacher(settings: Settings) -> Finding:
    """Who writes the scripts, and whether it could be called."""
    if settings.teacher == "extractive":
        fix = "NEWSJUICE_TEACHER=gemini with NEWSJUICE_GCP_PROJECT uses Gemini on Vertex AI (paid)"
        return Finding("teacher", "note", "extractive: lead sentences in a podcast frame, free", fix)
    if importlib.util.find_spec("google.genai") is None:
        return Finding(
            "teacher", "problem", "gemini, but google-genai is not installed", "pip install 'newsjuice-pipelines[gcp]'"
        )
    if settings.gcp_project is None:
        return Finding("teacher", "problem", "gemini, but no project", "set NEWSJUICE_GCP_PROJECT to a Google Cloud project")
    return _credentials(f"{settings.gemini_model} on Vertex AI, project {settings.gcp_project}")


def _credentials(text: str) -> Finding:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        google.auth.default()
    except DefaultCredentialsError:
        return Finding("teacher", "problem", f"{text}: no credentials", "run: gcloud auth application-default login")
    return Finding("teacher", "ok", text)


def base_model(settings: Settings) -> Finding:
    """Which base model the student starts from."""
    if settings.base_model == "tiny":
        fix = "NEWSJUICE_BASE_MODEL=Qwen/Qwen3-0.6B trains the real student"
        return Finding("base model", "note", "tiny: a stand-in that is built here, to exercise the chain", fix)
    return Finding("base model", "ok", settings.base_model)


def student_engine(settings: Settings) -> Finding:
    """What runs the student on this machine."""
    from newsjuice_pipelines.podcast.engines import ENGINES, QUANTISED, REMOTE
    from newsjuice_pipelines.runtime.devices import best_device

    name, extra = settings.student_engine, "pip install 'newsjuice-pipelines[cpu-engine]'"
    quantised = importlib.util.find_spec("openvino_genai") is not None
    if name not in ("auto", *ENGINES):
        fix = f"set NEWSJUICE_STUDENT_ENGINE to auto, {', '.join(ENGINES)}"
        return Finding("student engine", "problem", f"there is no engine {name!r}", fix)
    if name == REMOTE and settings.server_url is None:
        return Finding("student engine", "problem", "vllm, but no server", "set NEWSJUICE_SERVER_URL")
    if name == QUANTISED and not quantised:
        return Finding("student engine", "problem", "openvino, but it is not installed", extra)
    if name != "auto":
        return Finding("student engine", "ok", name)
    if best_device().type != "cpu":
        return Finding("student engine", "ok", "transformers on the GPU, requests batched continuously")
    if not quantised:
        return Finding(
            "student engine", "note", "transformers on the CPU", f"{extra} runs a quantised student several times as fast"
        )
    return Finding("student engine", "ok", "openvino where the quantised model passes its gate, else transformers")


def classifiers(settings: Settings) -> Finding:
    """Which classifier models have their weights here."""
    from newsjuice_pipelines.classification.training.models import available_offline, catalogue

    models = catalogue(settings.classifiers)
    here = [name for name, model in models.items() if available_offline(model)]
    away = [name for name in models if name not in here]
    if not away:
        return Finding("classifiers", "ok", ", ".join(here))
    fix = f"{', '.join(away)}: materialise the partition once with access to huggingface.co"
    return Finding("classifiers", "note", f"weights at hand: {', '.join(here)}", fix)


def quantisation(_settings: Settings) -> Finding:
    """Whether the `original` QLoRA recipe can run."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return Finding("4-bit training", "note", "bitsandbytes is not installed", "pip install 'newsjuice-pipelines[gpu]'")
    return Finding("4-bit training", "ok", "bitsandbytes is installed")


def tracking(settings: Settings) -> Finding:
    """Where training curves go."""
    mode = settings.wandb_mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    fix = "set WANDB_API_KEY to see runs on wandb.ai" if mode == "offline" else ""
    return Finding("tracking", "ok", f"Weights & Biases {mode}", fix)


LOOKS: tuple[Callable[[Settings], Finding], ...] = (
    python_version,
    disk_space,
    compute,
    database,
    ledger,
    teacher,
    base_model,
    student_engine,
    classifiers,
    quantisation,
    tracking,
)
