"""Assets without any work, for `orchestration.py`: what is left of their time is Dagster's own."""

import warnings

import dagster as dg

warnings.filterwarnings("ignore", category=dg.BetaWarning)  # backfill policies are marked so

FIRST_DAY = "2025-01-01"
DAYS = 365
STEPS = 10

days = dg.DailyPartitionsDefinition(start_date=FIRST_DAY, end_date="2026-01-01", timezone="UTC")


@dg.asset(partitions_def=days, backfill_policy=dg.BackfillPolicy.multi_run(1))
def source(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """The first of two assets by day."""
    return dg.MaterializeResult(metadata={"dagster/row_count": len(context.partition_keys)})


@dg.asset(partitions_def=days, deps=[source], backfill_policy=dg.BackfillPolicy.multi_run(1))
def result(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """The second one."""
    return dg.MaterializeResult(metadata={"dagster/row_count": len(context.partition_keys)})


def _light_step(number: int) -> dg.AssetsDefinition:
    @dg.asset(name=f"step_{number}", deps=[f"step_{number - 1}"] if number else [], group_name="steps")
    def step() -> dg.MaterializeResult[None]:
        """One of a row of steps that do nothing."""
        return dg.MaterializeResult()

    return step


by_day = dg.define_asset_job("by_day", selection=[source, result], partitions_def=days)
in_one_process = dg.define_asset_job(
    "in_one_process", selection=dg.AssetSelection.groups("steps"), executor_def=dg.in_process_executor
)
a_process_a_step = dg.define_asset_job(
    "a_process_a_step",
    selection=dg.AssetSelection.groups("steps"),
    executor_def=dg.multiprocess_executor.configured({"max_concurrent": 1}),
)

defs = dg.Definitions(
    assets=[source, result, *(_light_step(number) for number in range(STEPS))],
    jobs=[by_day, in_one_process, a_process_a_step],
)
