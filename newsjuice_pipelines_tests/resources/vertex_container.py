"""What the container of a custom job runs in the tests: it opens Pipes, waits until it may end, and ends as it was told."""

import os
import signal
import sys
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes

from newsjuice_pipelines.remote.messages import ObjectContextLoader, ObjectMessageWriter

with open_dagster_pipes(context_loader=ObjectContextLoader(), message_writer=ObjectMessageWriter()) as pipes:
    told = pipes.extras
    pipes.log.info("the training begins")
    with Path(told["folder"], "starts").open("a") as starts:
        starts.write("x")
    while not Path(told["folder"], "go on").exists():
        time.sleep(0.05)
    if "error" in told:
        raise ValueError(told["error"])
    if "signal" in told:
        os.kill(os.getpid(), getattr(signal, told["signal"]))
    pipes.log.info("the training ends")
    pipes.report_asset_materialization(metadata={"rows": 7})
    pipes.report_custom_message({"saw": sorted(name for name in os.environ if name.startswith(("NEWSJUICE_", "MY_")))})
sys.exit(int(told.get("status", 0)))
