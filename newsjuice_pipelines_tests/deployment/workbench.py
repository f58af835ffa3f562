"""A code location with quick work for the tests of the topology: it reports to, and takes orders from, the folder WORKBENCH."""

import os
import time
from pathlib import Path

import dagster as dg

FOLDER = Path(os.environ["WORKBENCH"])
LONGEST_WAIT_S = 120
kinds = dg.StaticPartitionsDefinition(["one", "two", "three"])


def note(context: dg.AssetExecutionContext, what: str) -> None:
    with (FOLDER / f"{context.asset_key.to_user_string()}.log").open("a") as file:
        file.write(f"{what} {context.run.run_id} {time.time()} {context.partition_key if context.has_partition_key else ''}\n")


@dg.asset(partitions_def=kinds, pool="gpu")
def model(context: dg.AssetExecutionContext) -> None:
    """A moment of work that needs a slot of the pool `gpu`."""
    note(context, "start")
    time.sleep(0.5)
    note(context, "end")


@dg.asset(pool="vertex")
def patient(context: dg.AssetExecutionContext) -> None:
    """Work that lasts until the file `release` is there; it needs the only slot of the pool `vertex`."""
    note(context, "start")
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not (FOLDER / "release").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody released this step")
        time.sleep(0.1)
    note(context, "end")


@dg.asset
def minute(context: dg.AssetExecutionContext) -> None:
    """What the schedule makes."""
    note(context, "end")


patient_job = dg.define_asset_job("patient_job", [patient])
minute_job = dg.define_asset_job("minute_job", [minute])
every_minute = dg.ScheduleDefinition(name="every_minute", job=minute_job, cron_schedule="* * * * *", execution_timezone="UTC")

defs = dg.Definitions(
    assets=[model, patient, minute],
    jobs=[patient_job, minute_job],
    schedules=[every_minute],
    executor=dg.in_process_executor,
)
