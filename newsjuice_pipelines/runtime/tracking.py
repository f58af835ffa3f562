"""Experiment tracking with Weights & Biases: offline, online or off. A failure of the tracker never fails the work."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger("newsjuice.tracking")

INIT_TIMEOUT_S = 20

Mode = Literal["offline", "online", "disabled"]


class TrackedRun:
    """One run of the tracker, or of none: `log` numbers to it; `url` is its page, when it has one; `active` when it is real."""

    def __init__(self, run: Any | None = None) -> None:
        self._run = run

    @property
    def active(self) -> bool:
        """Whether numbers go anywhere."""
        return self._run is not None

    @property
    def url(self) -> str | None:
        """The run's web page; None when offline or not tracked."""
        return None if self._run is None else (self._run.url or None)

    @property
    def folder(self) -> str | None:
        """The run's local folder, which `wandb sync` sends later; None when not tracked."""
        return None if self._run is None else str(Path(self._run.dir).parent)

    def log(self, values: Mapping[str, Any]) -> None:
        """Send numbers; after a failure the run goes on untracked."""
        if self._run is None:
            return
        try:
            self._run.log(dict(values))
        except Exception as error:  # whatever the tracker raises, the work goes on
            logger.warning("tracking stopped: %s: %s", type(error).__name__, error)
            self._run = None


@dataclass(frozen=True)
class Tracker:
    """Where runs are tracked: `offline` writes below `directory`, `online` needs an API key, `disabled` does nothing."""

    mode: Mode
    directory: Path
    project: str = "newsjuice"

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any]) -> Iterator[TrackedRun]:
        """Track the work inside the `with` block as one run. What goes wrong in the tracker is logged as a warning."""
        handle = self._start(name, config)
        try:
            yield TrackedRun(handle)
        except BaseException:
            self._finish(handle, exit_code=1)
            raise
        self._finish(handle, exit_code=0)

    def _start(self, name: str, config: Mapping[str, Any]) -> Any | None:
        if self.mode == "disabled":
            return None
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            self.directory.mkdir(parents=True, exist_ok=True)
            return wandb.init(
                project=self.project,
                name=name,
                config=dict(config),
                dir=str(self.directory),
                mode=self.mode,
                reinit="finish_previous",
                settings=wandb.Settings(
                    init_timeout=INIT_TIMEOUT_S, console="off", disable_git=True, save_code=False, x_disable_stats=True
                ),
            )
        except Exception as error:  # see above: tracking is never worth a failed run
            logger.warning("%s is not tracked (%s): %s: %s", name, self.mode, type(error).__name__, error)
            return None

    def _finish(self, handle: Any | None, exit_code: int) -> None:
        if handle is None:
            return
        try:
            handle.finish(exit_code=exit_code)
        except Exception as error:  # see above
            logger.warning("the tracker did not close cleanly: %s: %s", type(error).__name__, error)
