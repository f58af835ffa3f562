"""What a run paid for, as its materialisations tell it."""

from typing import Any

import dagster as dg


def paid_usd(instance: dg.DagsterInstance, run_id: str) -> float:
    """The most that the paid calls of a run may have cost, US dollars; 0 where no price is known.

    Replies that an earlier run paid for, and artefacts that were reused, cost nothing. A step that failed reports no cost.
    """
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    # A run over several days has an event a day, all with the figures of the whole run.
    of_asset = {found.asset_key: found.metadata for record in records if (found := record.asset_materialization) is not None}
    return sum(_paid({name: value.value for name, value in metadata.items()}) for metadata in of_asset.values())


def _paid(metadata: dict[str, Any]) -> float:
    this_run = metadata.get("this_run")
    if isinstance(this_run, dict):  # of the teacher, whose `cost_usd` is that of the rows, whichever run paid for them
        return sum(_number(this_run.get(name)) for name in ("spent_usd", "unanswered_usd", "batch_most_usd"))
    return 0.0 if metadata.get("reused") else _number(metadata.get("cost_usd"))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
