"""What a run looks like in the terminal: a line when an asset starts and ends, its checks, and the progress between them."""

import logging
import sys
import time
from collections.abc import Collection

import dagster as dg

from newsjuice_pipelines.runtime.progress import format_duration


class TerminalHandler(logging.Handler):
    """Prints `newsjuice` log lines, the beginning and end of each asset, and check results; leaves Dagster's engine talk out."""

    def __init__(self, assets: Collection[str]) -> None:
        super().__init__(logging.DEBUG)
        self._assets = assets
        self._started: dict[str, float] = {}
        self._unchanged: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, when it is worth a line."""
        meta = getattr(record, "dagster_meta", {})
        event = meta.get("dagster_event")
        if event is not None:
            self._emit_event(event)
        elif record.levelno >= logging.INFO and not self._is_engine_talk(meta.get("orig_message", "")):
            message = meta.get("orig_message") or record.getMessage()
            self._print(f"  {message}" if record.levelno < logging.WARNING else f"  {record.levelname.lower()}: {message}")

    def _emit_event(self, event: dg.DagsterEvent) -> None:
        step = event.step_key or ""
        kind = event.event_type
        if kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            mark = "✓" if check.passed else "✗" if check.severity == dg.AssetCheckSeverity.ERROR else "!"
            self._print(f"  {mark} {check.check_name}: {check.description}")
        elif kind == dg.DagsterEventType.ASSET_MATERIALIZATION:
            reused = event.step_materialization_data.materialization.metadata.get("reused")
            if reused is not None and reused.value:
                self._unchanged.add(step)
        elif step not in self._assets:
            return
        elif kind == dg.DagsterEventType.STEP_START:
            self._started[step] = time.monotonic()
            self._print(f"{step} …")
        elif kind == dg.DagsterEventType.STEP_SUCCESS:
            took = format_duration(time.monotonic() - self._started[step])
            self._print(f"{step} ✓ {'unchanged' if step in self._unchanged else took}")
        elif kind == dg.DagsterEventType.STEP_UP_FOR_RETRY:
            self._print(f"{step} failed and is tried again in {event.step_retry_data.seconds_to_wait or 0:.0f} s")
        elif kind == dg.DagsterEventType.STEP_FAILURE:
            self._print(f"{step} ✗ failed")

    @staticmethod
    def _is_engine_talk(message: str) -> bool:
        """Dagster's lines on steps that it left out; the failed step itself has its own line."""
        return message.startswith("Dependencies for step")

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@dg.logger(None, description="Short lines for a person at a terminal.")
def terminal_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """A logger that only has the `TerminalHandler`."""
    logger = logging.Logger("newsjuice.terminal", logging.DEBUG)
    job = init_context.job_def
    assets = {key.to_python_identifier() for key in job.asset_layer.asset_graph.get_all_asset_keys()} if job else set()
    logger.addHandler(TerminalHandler(assets))
    return logger
