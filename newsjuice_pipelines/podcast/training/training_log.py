"""What a training run reports while it works: progress lines, loss history, token speed, padding, and its loss curve."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.reports import PALETTE, new_figure, save_figure
from newsjuice_pipelines.runtime.tracking import TrackedRun


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


class TrainingLog:
    """Watches one trainer. `tracked` may be set before training starts; numbers of the trainer go to it as they come."""

    def __init__(self) -> None:
        self.tracked = TrackedRun()
        self.first_step = 0
        self._first_tokens = 0
        self._step_s = 0.0
        self._padding = 0
        self._positions = 0

    def callback(self) -> Any:
        """A transformers callback that feeds this log."""
        from transformers import TrainerCallback

        log = self

        class LogCallback(TrainerCallback):  # type: ignore[misc]  # untyped base
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                log.first_step, log._first_tokens = state.global_step, state.num_input_tokens_seen
                self.progress = Progress("tuning", state.max_steps, "steps", done=state.global_step)
                self.loss = math.nan

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.started = time.monotonic()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                log._step_s += time.monotonic() - self.started
                self.progress.advance(note="" if math.isnan(self.loss) else f"loss {self.loss:.3f}")

            def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
                values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
                for name in ("loss", "eval_loss"):
                    if not math.isfinite(values.get(name, 0.0)):
                        raise TrainingDiverged(
                            f"{name} became {values[name]} at step {state.global_step}: lower the learning rate, or train in "
                            "another dtype; earlier checkpoints are kept in the scratch folder."
                        )
                self.loss = values.get("loss", self.loss)
                log.tracked.log({**values, "step": state.global_step})

        return LogCallback()

    def counting(self, collate: Any) -> Any:
        """The collator `collate`, with the padding of its batches (training and validation) counted."""

        def collate_and_count(rows: list[dict[str, Any]]) -> Any:
            batch = collate(rows)
            self._positions += batch["input_ids"].numel()
            if "attention_mask" in batch:
                self._padding += int((batch["attention_mask"] == 0).sum())
            return batch

        return collate_and_count

    @property
    def padding_share(self) -> float | None:
        """Share of the positions computed that held padding; None before the first batch."""
        return self._padding / self._positions if self._positions else None

    def tokens_per_s(self, tokens_seen: int) -> float | None:
        """Training tokens a second in optimiser steps of this process; None when it made none."""
        return (tokens_seen - self._first_tokens) / self._step_s if self._step_s else None

    @staticmethod
    def history(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Loss by step and by epoch as JSON values, the best validation loss and the epoch that reached it."""
        train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
        validation = [
            (entry["step"], round(entry["epoch"], 3), entry["eval_loss"]) for entry in log_history if "eval_loss" in entry
        ]
        best = min(validation, key=lambda point: point[2], default=(None, None, None))
        return {
            "unit": "nats a token",
            "train_step": [step for step, _ in train],
            "train_loss": [loss for _, loss in train],
            "validation_step": [step for step, _, _ in validation],
            "validation_epoch": [epoch for _, epoch, _ in validation],
            "validation_loss": [loss for _, _, loss in validation],
            "best_validation_loss": best[2],
            "best_epoch": best[1],
        }


def write_loss_curve(history: Mapping[str, Any], path: Path) -> None:
    """Training and validation loss over steps as a PNG."""
    figure, (axis,) = new_figure()
    axis.plot(history["train_step"], history["train_loss"], color=PALETTE[5], linewidth=1, label="training")
    axis.plot(history["validation_step"], history["validation_loss"], color=PALETTE[0], marker="o", label="validation")
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats a token)")
    axis.legend(frameon=False)
    save_figure(figure, path)
