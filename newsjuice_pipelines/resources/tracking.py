"""Weights & Biases as a Dagster resource: off-line unless a key is set, and never a condition of success."""

import os
from pathlib import Path
from typing import cast, get_args

import dagster as dg
from pydantic import Field

from newsjuice_pipelines.runtime.tracking import Mode, Tracker


class Tracking(dg.ConfigurableResource):
    """Where training curves are logged besides the artefact itself."""

    mode: str | None = Field(default=None, description="offline, online or disabled. Default: online when WANDB_API_KEY is set.")
    project: str = Field(default="newsjuice-pipelines", description="Weights & Biases project.")
    directory: str = Field(description="Folder of the off-line runs.")

    def tracker(self) -> Tracker:
        """The tracker that training functions take."""
        mode = self.mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if mode not in get_args(Mode):
            raise ValueError(f"tracking mode {mode!r} does not exist: use one of {', '.join(get_args(Mode))}.")
        return Tracker(mode=cast(Mode, mode), directory=Path(self.directory), project=self.project)
