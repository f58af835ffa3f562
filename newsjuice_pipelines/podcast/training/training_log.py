"""What a training run reports while it works, and when it stops: progress, losses, speed, padding, its loss curve."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.reports import PALETTE, new_figure, save_figure
from newsjuice_pipelines.runtime.tracking import TrackedRun

FIRST_STEPS = 10  # whose mean loss is the start that a rising loss is held against
RISING_STEPS = 20  # whose mean loss must be above it
RISING_SHARE, RISING_NATS = 1.25, 1.0  # a quarter and a nat: noise of single steps does not get there
Validation = tuple[int, float, float]


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number, or rises."""


class TrainingLog:
    """Watches one trainer. `tracked` may be set before training starts; numbers of the trainer go to it as they come.

    Args:
        patience_epochs: epochs without a lower validation loss before training stops; None never stops.
        checkpoint_steps: steps between checkpoints within an epoch; 0 makes none.
    """

    def __init__(self, patience_epochs: int | None = None, checkpoint_steps: int = 0) -> None:
        self.tracked = TrackedRun()
        self.first_step = 0
        self._patience_epochs, self._checkpoint_steps = patience_epochs, checkpoint_steps
        self._first_tokens = 0
        self._step_s = 0.0
        self._padding = 0
        self._positions = 0

    def callback(self) -> Any:
        """A transformers callback that feeds this log, saves within epochs, and ends a run that is over."""
        from transformers import TrainerCallback

        log = self

        class LogCallback(TrainerCallback):  # type: ignore[misc]  # untyped base
            loss = math.nan

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                log.first_step, log._first_tokens = state.global_step, state.num_input_tokens_seen
                self.progress = Progress("tuning", state.max_steps, "steps", done=state.global_step)

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.started = time.monotonic()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                _wait_for(args.device)
                log._step_s += time.monotonic() - self.started
                if state.is_world_process_zero:
                    self.progress.advance(note="" if math.isnan(self.loss) else f"loss {self.loss:.3f}")
                # Not at the end of an epoch, whose own checkpoint also holds its validation loss.
                ends_epoch = state.global_step % max(1, state.max_steps // int(args.num_train_epochs)) == 0
                if log._checkpoint_steps and state.global_step % log._checkpoint_steps == 0 and not ends_epoch:
                    control.should_save = True

            def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
                values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
                self.loss = values.get("loss", self.loss)
                log.tracked.log({**values, "step": state.global_step})
                check_losses(state.log_history)

            def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if log._patience_epochs is not None and patience_is_over(state.log_history, log._patience_epochs):
                    control.should_training_stop = True

        return LogCallback()

    def count(self, batch: Mapping[str, Any]) -> None:
        """Count the positions and the padding of a training batch."""
        self._positions += batch["input_ids"].numel()
        if "attention_mask" in batch:
            self._padding += int((batch["attention_mask"] == 0).sum())

    @property
    def padding_share(self) -> float | None:
        """Share of the positions trained on that held padding; None before the first batch."""
        return self._padding / self._positions if self._positions else None

    def tokens_per_s(self, tokens_seen: int) -> float | None:
        """Training tokens a second in the optimiser steps of this run, of all processes; None when it made none."""
        return (tokens_seen - self._first_tokens) / self._step_s if self._step_s else None

    @staticmethod
    def history(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Loss by step and by epoch as JSON values, the validation loss before training and the best, and its epoch."""
        train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
        validation = _validation(log_history)
        before = next((loss for step, _, loss in validation if step == 0), None)
        best = _best(validation)
        return {
            "unit": "nats a token",
            "train_step": [step for step, _ in train],
            "train_loss": [loss for _, loss in train],
            "validation_step": [step for step, _, _ in validation],
            "validation_epoch": [epoch for _, epoch, _ in validation],
            "validation_loss": [loss for _, _, loss in validation],
            "validation_loss_before": before,
            "best_validation_loss": best[2] if best else None,
            "best_epoch": best[1] if best else None,
            "best_step": best[0] if best else None,
        }


def check_losses(log_history: Sequence[Mapping[str, Any]]) -> None:
    """Raise `TrainingDiverged` when the last loss is not finite, or the training loss has risen well above its start.

    It has when the mean of the last `RISING_STEPS` steps is above `RISING_SHARE` times that of the first `FIRST_STEPS`, and
    by more than `RISING_NATS`.
    """
    entry = log_history[-1] if log_history else {}
    for name in ("loss", "eval_loss"):
        if not math.isfinite(entry.get(name, 0.0)):
            raise TrainingDiverged(
                f"{name} became {entry[name]} at step {entry['step']}: lower the learning rate, or train in another dtype; "
                "earlier checkpoints are kept in the scratch folder."
            )
    losses = [logged["loss"] for logged in log_history if "loss" in logged]
    if "loss" not in entry or len(losses) < FIRST_STEPS + RISING_STEPS:
        return
    start, now = fmean(losses[:FIRST_STEPS]), fmean(losses[-RISING_STEPS:])
    if now > max(start * RISING_SHARE, start + RISING_NATS):
        raise TrainingDiverged(
            f"the training loss rises: {start:.2f} nats a token over the first {FIRST_STEPS} steps, {now:.2f} over the last "
            f"{RISING_STEPS}, up to step {entry['step']}. Lower the learning rate, or raise warmup_share."
        )


def check_improvement(history: Mapping[str, Any]) -> None:
    """Raise `TrainingDiverged` when no epoch reached a lower validation loss than the untrained model."""
    before, best = history["validation_loss_before"], history["best_validation_loss"]
    if before is not None and best is not None and best >= before:
        raise TrainingDiverged(
            f"training made the model worse: the best validation loss is {best:.3f} nats a token, before training it was "
            f"{before:.3f}. Lower the learning rate, or give more and better teacher scripts."
        )


def patience_is_over(log_history: Sequence[Mapping[str, Any]], patience_epochs: int) -> bool:
    """Whether the last `patience_epochs` epochs brought no lower validation loss.

    It is read off the history, which a checkpoint keeps, so that a resumed run stops where an unbroken one does.
    """
    losses = [loss for step, _, loss in _validation(log_history) if step > 0]
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience_epochs


def write_loss_curve(history: Mapping[str, Any], path: Path) -> None:
    """Training loss (thin, and smoothed) and validation loss over steps as a PNG; the kept checkpoint is marked."""
    figure, (axis,) = new_figure()
    steps, losses = history["train_step"], history["train_loss"]
    axis.plot(steps, losses, color=PALETTE[5], linewidth=0.6, alpha=0.5, label="training")
    if len(losses) > 2:
        axis.plot(steps, _smoothed(losses), color=PALETTE[5], linewidth=1.6, label="training, smoothed")
    axis.plot(history["validation_step"], history["validation_loss"], color=PALETTE[0], marker="o", label="validation")
    if history["best_step"] is not None:
        best = f"kept: epoch {history['best_epoch']:g}, {history['best_validation_loss']:.3f}"
        axis.scatter(
            [history["best_step"]], [history["best_validation_loss"]], s=130, facecolors="none", edgecolors=PALETTE[1],
            linewidths=2, zorder=3, label=best,
        )  # fmt: skip
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("loss (nats a token)")
    axis.legend(frameon=False)
    save_figure(figure, path)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Centred moving average over a tenth of the steps."""
    reach = max(1, len(losses) // 20)
    return [fmean(losses[max(0, position - reach) : position + reach + 1]) for position in range(len(losses))]


def _validation(log_history: Sequence[Mapping[str, Any]]) -> list[Validation]:
    return [
        (entry["step"], round(entry.get("epoch") or 0.0, 3), entry["eval_loss"]) for entry in log_history if "eval_loss" in entry
    ]


def _best(validation: Sequence[Validation]) -> Validation | None:
    return min((point for point in validation if point[0] > 0), key=lambda point: point[2], default=None)


def _wait_for(device: Any) -> None:
    """Let the GPU finish what it was given, so that a step's time is its own."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
