"""`newsjuice run`: every asset of both pipelines, in this process, through Dagster; or those that were selected."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.runtime.progress import format_duration

if TYPE_CHECKING:
    import dagster as dg

    from newsjuice_pipelines.settings import Settings

COMMAND_TAG = "newsjuice/command"
PID_TAG = "newsjuice/pid"
# What `--sample N` bounds: the chunks that are drawn, and the headlines a class.
SAMPLED = {"article_chunks": "sample_size", "balanced_split": "per_class"}
# What a dry run looks at.
PRICED = ("article_chunks", "teacher_scripts")


class RunFailed(RuntimeError):
    """A step failed; the message names it and says why."""


@dataclass(frozen=True)
class Stage:
    """Assets that one Dagster run can hold: those of one partition, of a range of days, or of none."""

    name: str
    assets: tuple[str, ...]
    partition: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def run(
    settings: Settings,
    data: Path | None = None,
    select: Sequence[str] = (),
    sample: int | None = None,
    models: Sequence[str] = (),
    config: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Load the articles, materialise the assets stage by stage, and print what came out. Returns the exit status.

    A dry run samples the chunks and says what their scripts would cost; no teacher is asked.
    """
    started = time.monotonic()
    days = _load(settings, data)

    import dagster as dg

    from newsjuice_pipelines.commands.summary import summary
    from newsjuice_pipelines.definitions import build_defs

    defs = build_defs(settings)
    selected = _selected(defs, PRICED if dry_run else select)
    configured = _op_config(config, sample, selected, _selected(defs, ()) if dry_run else selected, dry_run)
    stages = plan(defs, selected, days, _checked_models(models))
    for stage in stages:
        _validate(defs, stage, configured)
    with dg.DagsterInstance.get() as instance:
        _close_abandoned_runs(instance)
        for stage in stages:
            _say(f"── {stage.name}: {', '.join(stage.assets)}")
            _materialize(defs, instance, stage, configured)
    if dry_run:
        return 0
    _say("")
    print(summary(settings))
    _say(f"\nDone in {format_duration(time.monotonic() - started)}. Everything is below {settings.home}")
    _say(
        f"Open the web UI: newsjuice dev{f' --data {data}' if data else ''}   (in a clone: make dev), then http://127.0.0.1:3000"
    )
    return 0


def plan(defs: dg.Definitions, selected: set[str], days: tuple[str, str] | None, models: Sequence[str]) -> list[Stage]:
    """Order the selected assets into stages: days, then unpartitioned assets, then a stage a model, then what compares models."""
    from newsjuice_pipelines.automation.partitions import classifier_models, daily

    graph = defs.resolve_asset_graph()
    order = [key.to_user_string() for key in graph.toposorted_asset_keys]
    partitions = {key.to_user_string(): graph.get(key).partitions_def for key in graph.get_all_asset_keys()}
    by_day = tuple(name for name in order if name in selected and partitions[name] == daily)
    by_model = tuple(name for name in order if name in selected and partitions[name] == classifier_models)
    after_models = {
        child.to_user_string()
        for key in graph.get_all_asset_keys()
        if partitions[key.to_user_string()] == classifier_models
        for child in _descendants(graph, key)
    }
    rest = [name for name in order if name in selected and partitions[name] is None]
    stages = []
    if by_day:
        if days is None:
            raise RunFailed("no chunk lies in a finished daily partition: check fetched_at and NEWSJUICE_FIRST_DAY.")
        tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[1]}
        stages.append(Stage(f"days {days[0]} to {days[1]}", by_day, tags=tags))
    stages.append(Stage("data, student, reports", tuple(name for name in rest if name not in after_models)))
    stages += [Stage(f"classifier {model}", by_model, partition=model) for model in models]
    stages.append(Stage("comparison", tuple(name for name in rest if name in after_models)))
    return [stage for stage in stages if stage.assets]


def _load(settings: Settings, data: Path | None) -> tuple[str, str] | None:
    """Load `data` into the embedded database when it is given; returns the first and last finished day that has chunks."""
    from newsjuice_pipelines.database.load import load_articles
    from newsjuice_pipelines.podcast.sampling.chunk_table import finished_days
    from newsjuice_pipelines.resources.postgres import ArticleDatabase, connect, embedded_url

    if data is not None:
        if not settings.articles_are_embedded:
            raise RunFailed(
                "--data fills the embedded database, but NEWSJUICE_DATABASE_URL or NEWSJUICE_CLOUD_SQL_INSTANCE names "
                "another one: unset one of them."
            )
        from newsjuice_pipelines.database.embedded import start_embedded
        from newsjuice_pipelines.database.migrate import migrate

        with connect(start_embedded(settings.home / "postgres"), "NEWSJUICE_DATABASE_URL") as connection:
            migrate(connection, "source")
            summary = load_articles(connection, data / "bbc_articles.jsonl", replace=True)
        _say(f"{data}: {summary.articles_read:,} articles read, {summary.articles_written:,} new or changed")
    elif settings.articles_are_embedded:
        embedded_url(settings)
    database = ArticleDatabase(chunks_table=settings.chunks_table, statement_timeout_s=settings.statement_timeout_s)
    today = datetime.now(UTC).date()
    days = database.read(lambda found: finished_days(found, settings.chunks_table, settings.first_day, today))
    return (days[0].isoformat(), days[1].isoformat()) if days else None


def _selected(defs: dg.Definitions, select: Sequence[str]) -> set[str]:
    """Names of the assets that the selection strings name, in Dagster's own selection syntax.

    Without one: all but those that only a person materialises.
    """
    import dagster as dg

    from newsjuice_pipelines.automation.jobs import BY_HAND

    graph = defs.resolve_asset_graph()
    everything = {key.to_user_string() for key in graph.get_all_asset_keys()}
    if not select:
        return everything - set(BY_HAND)
    chosen: set[str] = set()
    for text in (part for argument in select for part in argument.split(",")):
        try:
            keys = dg.AssetSelection.from_string(text.strip()).resolve(graph)
        except dg.DagsterInvalidSubsetError:
            keys = set()
        except (dg.DagsterError, ValueError) as error:
            raise RunFailed(f"--select {text}: {error}") from None
        if not keys:
            raise RunFailed(f"--select {text}: no such asset. There are: {', '.join(sorted(everything))}.")
        chosen |= {key.to_user_string() for key in keys}
    return chosen


def _op_config(
    path: Path | None, sample: int | None, selected: set[str], allowed: set[str], dry_run: bool = False
) -> dict[str, Any]:
    """Configuration by asset: from a file of Dagster run configuration, with `--sample` and `--dry-run` on top.

    The file may name any asset of `allowed`: for a dry run it is that of the whole run.
    """
    import yaml

    ops: dict[str, Any] = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise RunFailed(f"--config {path}: {error}") from None
        if not isinstance(content, dict) or set(content) != {"ops"} or not isinstance(content["ops"], dict):
            raise RunFailed(f"--config {path}: it should hold `ops:` with `<asset>: {{config: …}}` below it.")
        ops = {name: given or {} for name, given in content["ops"].items()}
        unknown = sorted(set(ops) - allowed)
        if unknown:
            raise RunFailed(f"--config {path}: {', '.join(unknown)} is not among the assets of this run.")
    flags: dict[str, dict[str, Any]] = {"teacher_scripts": {"dry_run": True}} if dry_run else {}
    if sample is not None:
        flags |= {name: {field_name: sample} for name, field_name in SAMPLED.items() if name in selected}
    for name, values in flags.items():
        given = (ops.get(name) or {}).get("config") or {}
        ops[name] = {"config": {**given, **values}}
    return ops


def _descendants(graph: dg.AssetGraph, key: dg.AssetKey) -> set[dg.AssetKey]:
    found: set[dg.AssetKey] = set()
    waiting = [key]
    while waiting:
        children = graph.get(waiting.pop()).child_keys - found
        found |= children
        waiting += children
    return found


def _checked_models(names: Sequence[str]) -> list[str]:
    """The classifier models that were asked for, or those of our recipe whose weights are on this machine."""
    from newsjuice_pipelines.automation.partitions import CLASSIFIERS
    from newsjuice_pipelines.classification.training.models import OURS, available_offline

    unknown = [name for name in names if name not in CLASSIFIERS]
    if unknown:
        raise RunFailed(f"--models: there is no classifier {', '.join(unknown)}. There are: {', '.join(CLASSIFIERS)}.")
    return list(names) or [name for name, model in CLASSIFIERS.items() if model.recipe == OURS and available_offline(model)]


def _job(defs: dg.Definitions, stage: Stage) -> dg.JobDefinition:
    import dagster as dg

    job = defs.resolve_implicit_job_def_def_for_assets([dg.AssetKey(name) for name in stage.assets])
    assert job is not None, "assets of one stage share their partitions"
    return job


def _run_config(stage: Stage, configured: Mapping[str, Any]) -> dict[str, Any]:
    ops = {name: configured[name] for name in stage.assets if name in configured}
    return {"ops": ops, "loggers": {"terminal": {}}}


def _validate(defs: dg.Definitions, stage: Stage, configured: Mapping[str, Any]) -> None:
    """Refuse a wrong configuration before the first stage runs, not hours later."""
    import dagster as dg

    subset = _job(defs, stage).get_subset(asset_selection={dg.AssetKey(name) for name in stage.assets})
    try:
        dg.validate_run_config(subset, _run_config(stage, configured))
    except dg.DagsterInvalidConfigError as error:
        raise RunFailed("--config: " + "; ".join(found.message for found in error.errors)) from None


def _materialize(defs: dg.Definitions, instance: dg.DagsterInstance, stage: Stage, configured: Mapping[str, Any]) -> None:
    import dagster as dg

    result = _job(defs, stage).execute_in_process(
        run_config=_run_config(stage, configured),
        instance=instance,
        partition_key=stage.partition,
        asset_selection=[dg.AssetKey(name) for name in stage.assets],
        tags={COMMAND_TAG: "run", PID_TAG: str(os.getpid()), **stage.tags},
        raise_on_error=False,
    )
    if not result.success:
        failed_checks = _failed_checks(result.all_events)
        reasons = [_reason(event, failed_checks) for event in result.all_events if event.is_step_failure]
        lines = list(dict.fromkeys(reasons)) or ["the run failed before its first step"]
        raise RunFailed("\n".join(lines) + "\nWhat is finished is kept: run the same command again after the cause is mended.")


def _failed_checks(events: Sequence[dg.DagsterEvent]) -> dict[str, str]:
    """By step: the checks that failed and stopped it, each with its finding."""
    import dagster as dg

    found: dict[str, str] = {}
    for event in events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if check.blocking and not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
                finding = f"{check.check_name} of {check.asset_key.to_user_string()}: {check.description}"
                step = event.step_key or ""
                found[step] = f"{found[step]} {finding}" if step in found else finding
    return found


def _reason(event: dg.DagsterEvent, failed_checks: Mapping[str, str]) -> str:
    """Which step failed and why, in the words of the error that our code raised."""
    data = event.step_failure_data
    error = data.error
    if error is not None and error.cls_name == "DagsterAssetCheckFailedError":
        finding = failed_checks.get(event.step_key or "", event.step_key)
        return f"The check failed and what depends on it was not run: {finding}"
    if data.user_failure_data is not None and data.user_failure_data.description:
        return f"{event.step_key} failed: {data.user_failure_data.description}"
    while error is not None and error.cause is not None:  # Dagster wraps what our code raised
        error = error.cause
    return f"{event.step_key} failed: {error.message.strip() if error else 'no reason given'}"


def _close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Cancel runs of this command whose process was killed, and free the pool slots of all runs that are over.

    A web UI's daemon would free them too, but none need be running, and a slot that nobody frees blocks every later run.
    """
    import dagster as dg
    import psutil

    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={COMMAND_TAG: "run"}))
    for abandoned in started:
        if not psutil.pid_exists(int(abandoned.tags.get(PID_TAG, "0"))):
            instance.report_run_canceled(abandoned, message="The process of this run was killed.")
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        held = storage.get_concurrency_info(pool)
        for run_id in held.active_run_ids | held.pending_run_ids | held.assigned_run_ids:
            holder = instance.get_run_by_id(run_id)
            if holder is None or holder.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
