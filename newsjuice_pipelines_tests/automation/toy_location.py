"""A small code location for tests of the daemon: what it makes, and when it waits, is seen and steered in the folder TOY_ROOT."""

import os
import time
from pathlib import Path

import dagster as dg

from newsjuice_pipelines.runtime.artifacts import ArtifactStore, Draft

ROOT = Path(os.environ.get("TOY_ROOT", "."))
LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c"])
DAYS = dg.DailyPartitionsDefinition(start_date="2026-09-01")


def note(line: str) -> None:
    with (ROOT / "notes").open("a") as stream:
        stream.write(f"{line}\n")


def wait_while(name: str) -> None:
    while (ROOT / name).exists():
        time.sleep(0.05)


@dg.asset(partitions_def=LETTERS)
def letter(context: dg.AssetExecutionContext) -> None:
    """Waits while a file `hold-LETTER` is there, then publishes an artefact; notes the start and each real write."""
    name = context.partition_key
    note(f"started {name}")
    wait_while(f"hold-{name}")

    def write(draft: Draft) -> dict[str, str]:
        note(f"wrote {name}")
        (draft.path / "letter.txt").write_text(name)
        return {"letter": name}

    ArtifactStore(str(ROOT / "artifacts"), ROOT / "cache").publish(f"letter/{name}", {"letter": name}, write)


@dg.asset(deps=[letter])
def word() -> None:
    """Depends on all letters."""
    note("wrote word")


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def day(context: dg.AssetExecutionContext) -> None:
    """All days of a backfill in one run."""
    note(f"days {' '.join(context.partition_keys)}")


@dg.asset(pool="gpu")
def held() -> None:
    """Takes a slot of the pool and waits while a file `hold` is there; its process id is in the file `pid`."""
    (ROOT / "pid.tmp").write_text(str(os.getpid()))
    (ROOT / "pid.tmp").rename(ROOT / "pid")
    wait_while("hold")


defs = dg.Definitions(
    assets=[letter, word, day, held],
    jobs=[dg.define_asset_job("hold", selection=["held"])],
    executor=dg.in_process_executor,
)
