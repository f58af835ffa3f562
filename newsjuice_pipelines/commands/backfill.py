"""`newsjuice backfill`: days or classifier models made up for by Dagster's daemon, in the background; their state; and stopping.

The command only writes the request. A daemon (`newsjuice dev`, or the one of a deployment) takes it up within half a minute.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.execution.backfill import PartitionBackfill

DAY_ASSETS = ("article_chunks", "teacher_scripts")
MODEL_ASSETS = ("classifier_checkpoint", "classifier_eval_report", "exported_classifier", "external_predictions")
ALL, AT_HAND = "all", "at-hand"

_HEARTBEAT_S = 120  # a daemon that is alive writes one every 30 seconds
_LONGEST_TITLE = 100


class CannotBackfill(ValueError):
    """A backfill that cannot be asked for, or that is not there; the message says what to give instead."""


@dataclass(frozen=True)
class Extent:
    """The partitions of a backfill, in order: names of models, or consecutive days."""

    partitions: tuple[str, ...]
    by_model: bool

    def __str__(self) -> str:
        if self.by_model or len(self.partitions) == 1:
            return ", ".join(self.partitions)
        return f"{self.partitions[0]} to {self.partitions[-1]} ({len(self.partitions)} days)"


def backfill(
    assets: Sequence[str] = (),
    first_day: date | None = None,
    last_day: date | None = None,
    models: str | None = None,
    budget_usd: float | None = None,
) -> int:
    """Ask for a backfill and say how to watch and stop it. Returns the exit status.

    Args:
        assets: names; default: the chunks and scripts of days, or all that is made of a model.
        first_day, last_day: the days, both included; the last finished day by default.
        models: names, comma-separated; `all` of the table; or `at-hand`, those whose weights are on this machine.
        budget_usd: the most that the teacher may spend on all of these days, US dollars.

    Raises:
        CannotBackfill: unknown assets, days or models, or none at all.
    """
    import dagster as dg

    from newsjuice_pipelines.definitions import build_defs

    if (first_day is None and last_day is None) == (models is None):
        raise CannotBackfill("say which: days by --from and --to, or classifiers by --models.")
    extent = days(first_day, last_day) if models is None else classifiers(models)
    names = tuple(assets) or (DAY_ASSETS if models is None else MODEL_ASSETS)
    graph = build_defs().resolve_asset_graph()
    _check(graph, names, extent)
    config = _budgeted(names, budget_usd)
    _say(f"{', '.join(names)}: {extent}. {_what_it_takes(names, extent, budget_usd)}")
    with dg.DagsterInstance.get() as instance:
        backfill_id = request_backfill(instance, graph, names, extent, config)
        _say(f"Backfill {backfill_id} is requested. What is unchanged is reused, so that the same command may be given again.")
        _say(f"Watch it:  newsjuice backfill --status {backfill_id}   or /runs/b/{backfill_id} in the web UI")
        _say(f"Cancel it: newsjuice backfill --cancel {backfill_id}   what is finished by then is kept")
        _warn_without_daemon(instance)
    return 0


def status(backfill_id: str) -> int:
    """Print the state of a backfill. Returns the exit status: 1 when it has failed."""
    import dagster as dg

    from newsjuice_pipelines.definitions import build_defs

    with dg.DagsterInstance.get() as instance:
        found = _found(instance, backfill_id)
        for line in state(found, build_defs().resolve_asset_graph()):
            print(line)
        if not _is_over(found):
            _warn_without_daemon(instance)
        return int(found.status.value in ("FAILED", "FAILING", "COMPLETED_FAILED"))


def cancel(backfill_id: str) -> int:
    """Stop a backfill: queued runs are dropped, running ones interrupted, finished partitions stay. Returns the exit status."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        if not request_cancellation(instance, backfill_id):
            _say(f"Backfill {backfill_id} is over already: {_found(instance, backfill_id).status.value.lower()}.")
            return 0
        _say(f"Backfill {backfill_id} is being cancelled. Watch it: newsjuice backfill --status {backfill_id}")
        _warn_without_daemon(instance)
    return 0


def request_backfill(
    instance: dg.DagsterInstance,
    graph: dg.AssetGraph,
    assets: Sequence[str],
    extent: Extent,
    run_config: Mapping[str, Any] | None = None,
) -> str:
    """Write the request of a backfill for the daemon; returns its id.

    The command line of Dagster has none for assets; this is what its web server writes too.
    """
    import dagster as dg
    from dagster._core.execution.backfill import PartitionBackfill
    from dagster._core.utils import make_new_backfill_id

    request = PartitionBackfill.from_asset_partitions(
        backfill_id=make_new_backfill_id(),
        asset_graph=graph,
        partition_names=extent.partitions,
        asset_selection=[dg.AssetKey(name) for name in assets],
        backfill_timestamp=time.time(),
        tags={"newsjuice/command": "backfill"},
        dynamic_partitions_store=instance,
        all_partitions=False,
        title=f"{assets[0]}: {extent}"[:_LONGEST_TITLE],
        description=None,
        run_config=run_config,
    )
    instance.add_backfill(request)
    return request.backfill_id


def request_cancellation(instance: dg.DagsterInstance, backfill_id: str) -> bool:
    """Ask the daemon to stop a backfill; False when it is over.

    Raises:
        CannotBackfill: there is none with this id.
    """
    from dagster._core.execution.backfill import BulkActionStatus

    found = _found(instance, backfill_id)
    if _is_over(found):
        return False
    instance.update_backfill(found.with_status(BulkActionStatus.CANCELING))  # type: ignore[no-untyped-call]
    return True


def state(found: PartitionBackfill, graph: dg.AssetGraph) -> list[str]:
    """The status of a backfill, and of each of its assets how many partitions are done, under way, failed and waiting."""
    from dagster._core.execution.asset_backfill import AssetBackfillStatus, PartitionedAssetBackfillStatus

    lines = [f"Backfill {found.backfill_id}: {found.status.value.replace('_', ' ').lower()}."]
    if not found.is_asset_backfill:
        return lines
    for asset in found.get_asset_backfill_data(graph).get_backfill_status_per_asset_key(graph):
        name = asset.asset_key.to_user_string()
        if isinstance(asset, PartitionedAssetBackfillStatus):
            counts = asset.partitions_counts_by_status
            done, failed = counts[AssetBackfillStatus.MATERIALIZED], counts[AssetBackfillStatus.FAILED]
            running = counts[AssetBackfillStatus.IN_PROGRESS]
            waiting = asset.num_targeted_partitions - done - failed - running
            lines.append(f"  {name}: {done} done, {running} under way, {failed} failed, {waiting} not begun")
        else:
            lines.append(f"  {name}: {asset.backfill_status.value.lower() if asset.backfill_status else 'not begun'}")
    return lines


def days(first: date | None, last: date | None) -> Extent:
    """The daily partitions from `first` to `last`, both included; by default to the last finished day, or only `last`.

    Raises:
        CannotBackfill: a day that is not over, is before the first one, or comes after the last.
    """
    from newsjuice_pipelines.automation.partitions import daily

    finished = daily.get_partition_keys()
    if not finished:
        raise CannotBackfill("no day is over since NEWSJUICE_FIRST_DAY: there is nothing to make up for.")
    end = last.isoformat() if last else finished[-1]
    begin = first.isoformat() if first else end
    for day in (begin, end):
        if day < finished[0]:
            raise CannotBackfill(f"{day} is before the first day {finished[0]}: give a later one, or set NEWSJUICE_FIRST_DAY.")
        if day > finished[-1]:
            raise CannotBackfill(f"{day} is not over yet: the last finished day (UTC) is {finished[-1]}.")
    if begin > end:
        raise CannotBackfill(f"--from {begin} is after --to {end}.")
    return Extent(tuple(day for day in finished if begin <= day <= end), by_model=False)


def classifiers(text: str) -> Extent:
    """The classifiers that `--models` names, in the order of the table.

    Raises:
        CannotBackfill: a name that the table does not have, or none.
    """
    from newsjuice_pipelines.automation.partitions import CLASSIFIERS, models_at_hand

    if text == ALL:
        return Extent(tuple(CLASSIFIERS), by_model=True)
    asked = models_at_hand() if text == AT_HAND else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in CLASSIFIERS]
    if unknown or not asked:
        raise CannotBackfill(
            f"--models {text}: there is no classifier {', '.join(unknown) or 'here'}. "
            f"There are: {', '.join(CLASSIFIERS)}; or say {ALL}, or {AT_HAND} for those whose weights are on this machine."
        )
    return Extent(tuple(name for name in CLASSIFIERS if name in asked), by_model=True)


def _check(graph: dg.AssetGraph, names: Sequence[str], extent: Extent) -> None:
    """Stop at assets that are not there, and at a selection in which nothing has such partitions."""
    import dagster as dg

    from newsjuice_pipelines.automation.partitions import classifier_models, daily

    every = {key.to_user_string() for key in graph.get_all_asset_keys()}
    unknown = sorted(set(names) - every)
    if unknown:
        raise CannotBackfill(f"there is no asset {', '.join(unknown)}. There are: {', '.join(sorted(every))}.")
    wanted, other = (classifier_models, daily) if extent.by_model else (daily, classifier_models)
    partitioned = {name: graph.get(dg.AssetKey(name)).partitions_def for name in names}
    if other in partitioned.values() or wanted not in partitioned.values():
        have = sorted(key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).partitions_def == wanted)
        raise CannotBackfill(
            f"{', '.join(names)}: {'--models' if extent.by_model else '--from and --to'} need one of {', '.join(have)}."
        )


def _budgeted(names: Sequence[str], budget_usd: float | None) -> dict[str, Any] | None:
    from newsjuice_pipelines.automation.jobs import within_budget

    if budget_usd is None:
        return None
    if "teacher_scripts" not in names:
        raise CannotBackfill("--budget-usd limits the teacher, and teacher_scripts is not among the assets.")
    return within_budget(budget_usd)


def _what_it_takes(names: Sequence[str], extent: Extent, budget_usd: float | None) -> str:
    """How many runs there will be, and what they may cost."""
    from newsjuice_pipelines.settings import load_settings

    if extent.by_model:
        return f"{len(extent.partitions)} runs, one a model."
    if "teacher_scripts" not in names or load_settings().teacher == "extractive":
        return "One run, free of charge."
    limit = f"at most ${budget_usd:,.2f}" if budget_usd is not None else "without a limit: give one by --budget-usd"
    return f"One run with paid calls, {limit}."


def _found(instance: dg.DagsterInstance, backfill_id: str) -> PartitionBackfill:
    found = instance.get_backfill(backfill_id)
    if found is None:
        latest = ", ".join(each.backfill_id for each in instance.get_backfills(limit=5)) or "none"
        raise CannotBackfill(f"there is no backfill {backfill_id!r} in {os.environ.get('DAGSTER_HOME')}. The latest: {latest}.")
    return found


def _is_over(found: PartitionBackfill) -> bool:
    from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES

    return found.status in BULK_ACTION_TERMINAL_STATUSES


def _warn_without_daemon(instance: dg.DagsterInstance) -> None:
    heartbeat = instance.get_daemon_heartbeats().get("BACKFILL")
    if heartbeat is None or time.time() - heartbeat.timestamp > _HEARTBEAT_S:
        _say("No daemon is running here, and it does nothing without one. Start it: newsjuice dev")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
