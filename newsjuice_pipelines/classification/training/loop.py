"""The training loop of an encoder: steps, validation, early stopping, going on after a crash or with less memory, progress.

Which data and where the result goes: `finetune.py`. The files of a state: `saved_state.py`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from newsjuice_pipelines.classification.training.batches import TokenisedTexts, collate, epoch_batches, sorted_batches
from newsjuice_pipelines.classification.training.encoder import build_optimizer
from newsjuice_pipelines.classification.training.recipe import Recipe
from newsjuice_pipelines.classification.training.saved_state import load_best, load_state, save_best, save_state
from newsjuice_pipelines.runtime.devices import free_unused_memory, is_out_of_memory
from newsjuice_pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from newsjuice_pipelines.runtime.devices import Device
    from newsjuice_pipelines.runtime.tracking import TrackedRun

logger = logging.getLogger("newsjuice.classification")
T = TypeVar("T")

LOGGING_STEPS = 10
EVALUATION_BATCH_TEXTS = 128
SAVE_EVERY_S = 300.0  # beside the end of each epoch: what a crash can cost


class TrainingFailed(RuntimeError):
    """Training ended in a way that a second try with the same settings cannot mend."""


@dataclass
class Course:
    """Where a training stands. `best_score` is of the recipe's metric, `seconds` were spent in training steps."""

    step: int = 0
    texts: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    best_score: float | None = None
    best_step: int = 0
    worse_epochs: int = 0
    stopped_early: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class EncoderTrainer:
    """Trains one network by one recipe on one device."""

    def __init__(
        self, network: Any, pad_id: int, recipe: Recipe, device: Device, width: int | None, weights: np.ndarray | None = None
    ) -> None:
        """
        Args:
            network: a sequence classifier; it is moved to the device.
            pad_id: the token that fills shorter texts.
            recipe: how to train.
            device: where.
            width: tokens that every batch is padded to; None: to its longest text.
            weights: weight of each class in the loss; None: all the same.

        Raises:
            ValueError: a precision that the device cannot compute in.
        """
        import torch

        self.network = network.to(device.torch_name)
        self.recipe, self.device, self.width, self._pad_id = recipe, device, width, pad_id
        self.parts = 1
        """Computations that a batch is cut into: 2 once memory has run out."""
        self.precision = chosen_precision(recipe.precision, device)
        self.optimizer = build_optimizer(network, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")
        self._class_weights = weights
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device.torch_name)

    def step(self, texts: TokenisedTexts, batch: np.ndarray, rate_factor: float) -> Any:
        """One optimiser step at this share of the peak learning rate; returns the batch's loss, still on the device.

        Weights are not touched before the gradients are whole, so that a step which memory cut off is simply done again.
        """
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor
        loss = self._within_memory(lambda: self._gradients(texts, batch))
        if self.recipe.gradient_clipping:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, texts: TokenisedTexts, batch: np.ndarray) -> Any:
        """Add up the gradients of the batch's mean loss, part by part; returns that loss, still on the device."""
        import numpy as np
        import torch

        loss = torch.zeros((), device=self.device.torch_name)
        for part in np.array_split(batch, min(self.parts, len(batch))):
            logits, labels = self._logits(texts, part)
            mean = torch.nn.functional.cross_entropy(
                logits, labels, weight=self._weights, label_smoothing=self.recipe.label_smoothing
            )
            share = mean * (self._mass(texts, part) / self._mass(texts, batch))  # of the whole batch's mean
            self.scaler.scale(share).backward()
            loss += share.detach()
        return loss

    def _mass(self, texts: TokenisedTexts, batch: np.ndarray) -> float:
        """What the mean loss of a batch is divided by: its texts, or the sum of their classes' weights."""
        return len(batch) if self._class_weights is None else float(self._class_weights[texts.labels[batch]].sum())

    def _within_memory(self, work: Callable[[], T]) -> T:
        """Do this work; when memory runs out for the first time, once more with half of the texts at a time, from then on."""
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or self.parts > 1 or self.recipe.batch_size == 1:
                raise
        # After the handler: the error's traceback would keep what filled the memory.
        self.parts = 2
        self.optimizer.zero_grad(set_to_none=True)
        free_unused_memory()
        logger.warning(
            "out of memory on %s with %d texts at a time: going on with %d at a time and two computations a step; a step still "
            "learns from %d",
            *(self.device.name, self.recipe.batch_size, self.texts_at_a_time, self.recipe.batch_size),
        )
        return work()

    @property
    def texts_at_a_time(self) -> int:
        """Texts that a step computes together."""
        return math.ceil(self.recipe.batch_size / self.parts)

    def evaluate(self, texts: TokenisedTexts) -> dict[str, float]:
        """Mean cross-entropy (without smoothing and class weights) and accuracy on these texts."""
        return self._within_memory(lambda: self._scores(texts))

    def _scores(self, texts: TokenisedTexts) -> dict[str, float]:
        import torch

        self.network.eval()
        loss = torch.zeros((), device=self.device.torch_name, dtype=torch.float64)
        right = torch.zeros((), device=self.device.torch_name, dtype=torch.int64)
        size = EVALUATION_BATCH_TEXTS if self.width is None else self.recipe.batch_size * 2
        with torch.inference_mode():
            for batch in sorted_batches(texts.lengths, math.ceil(size / self.parts)):
                logits, labels = self._logits(texts, batch)
                loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                right += (logits.argmax(dim=1) == labels).sum()
        self.network.train()
        return {"loss": float(loss) / len(texts), "accuracy": int(right) / len(texts)}

    def _logits(self, texts: TokenisedTexts, batch: np.ndarray) -> tuple[Any, Any]:
        """Scores of a batch in fp32, and its labels, both on the device."""
        import torch

        inputs = collate(texts, batch, self._pad_id, self.width)
        if self.device.type == "cuda":
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        on_device = {name: tensor.to(self.device.torch_name, non_blocking=True) for name, tensor in inputs.items()}
        labels = on_device.pop("labels")
        with torch.autocast(self.device.type, dtype=getattr(torch, self.precision), enabled=self.precision != "float32"):
            return self.network(**on_device).logits.float(), labels

    def fit(
        self, name: str, train: TokenisedTexts, selection: TokenisedTexts, scratch: Path, run: TrackedRun | None = None
    ) -> tuple[Course, int]:
        """Train from the newest state in `scratch`, or from the start; the best weights are in the network at the end.

        Returns:
            Where training ended, and the step it went on from (0: from the start).

        Raises:
            TrainingFailed: the loss is no number any more, in training or on `selection`, or the memory is too small even for
                half of a batch at a time.
        """
        state = load_state(scratch, self.network, self.optimizer, self.scaler)
        course = Course(**state) if state else Course()
        first = course.step
        if first:
            logger.info("%s: going on from step %d", name, first)
        try:
            self._run(name, course, train, selection, scratch, run)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            retried = f", and for {self.texts_at_a_time} at a time" if self.parts > 1 else ""
            raise TrainingFailed(
                f"{name}: the memory of {self.device.name} is too small for {self.recipe.batch_size} texts of up to "
                f"{self.recipe.max_length} tokens{retried}: lower batch_size or max_length."
            ) from error
        load_best(scratch, course.best_step, self.network)
        return course, first

    def _run(
        self,
        name: str,
        course: Course,
        train: TokenisedTexts,
        selection: TokenisedTexts,
        scratch: Path,
        run: TrackedRun | None,
    ) -> None:
        """The epochs from where `course` stands to the last step, or until the score on `selection` gets no better."""
        recipe = self.recipe
        epoch_steps = math.ceil(len(train) / recipe.batch_size)
        steps = recipe.max_steps or math.ceil(recipe.epochs * epoch_steps)
        progress = Progress(f"training {name}", round(steps / epoch_steps * len(train)), "texts", done=course.texts)
        report = _Report(name, course, progress, run, epoch_steps, recipe.selected_on)
        self.network.train()
        saved = time.monotonic()
        while course.step < steps and not course.stopped_early:
            epoch, position = divmod(course.step, epoch_steps)
            batches = epoch_batches(train.lengths, recipe.batch_size, recipe.seed, epoch, group_by_length=recipe.group_by_length)[
                position : position + steps - course.step
            ]
            for number, batch in enumerate(batches, 1):
                started = time.monotonic()
                rate = schedule(course.step, steps, recipe.warmup_fraction)
                loss = self.step(train, batch, rate)
                is_last = number == len(batches)
                report.add(loss, len(batch), rate * recipe.learning_rate, tell=is_last)
                course.seconds += time.monotonic() - started
                if time.monotonic() - saved > SAVE_EVERY_S and not is_last:
                    report.settle()
                    save_state(scratch, course.step, self.network, self.optimizer, self.scaler, asdict(course))
                    saved = time.monotonic()
            self._judge(name, course, self.evaluate(selection), epoch_steps, scratch)
            report.evaluated()
            save_state(scratch, course.step, self.network, self.optimizer, self.scaler, asdict(course))
            saved = time.monotonic()

    def _judge(self, name: str, course: Course, scores: dict[str, float], epoch_steps: int, scratch: Path) -> None:
        """Note the scores of an epoch, keep its weights when they are the best, and stop when patience has run out."""
        if not math.isfinite(scores["loss"]):  # nothing is better than a score that is no number, so it would stay the best
            raise TrainingFailed(
                f"{name}: the loss on the {self.recipe.selected_on} part is {scores['loss']} at step {course.step}: lower "
                "learning_rate, or set precision to float32."
            )
        rounded = {measure: round(value, 5) for measure, value in scores.items()}
        course.history.append({"step": course.step, "epoch": round(course.step / epoch_steps, 3), **rounded})
        score = -scores["loss"] if self.recipe.selection_metric == "loss" else scores["accuracy"]
        if course.best_score is None or score > course.best_score:
            course.best_score, course.best_step, course.worse_epochs = score, course.step, 0
            save_best(scratch, course.step, self.network)
            return
        course.worse_epochs += 1
        course.stopped_early = 0 < self.recipe.early_stopping_patience <= course.worse_epochs


class _Report:
    """Progress lines, tracked numbers, and the watch over the loss. Losses stay on the device between two readings."""

    def __init__(
        self, name: str, course: Course, progress: Progress, run: TrackedRun | None, epoch_steps: int, part: str
    ) -> None:
        self._name, self._course, self._progress, self._run, self._epoch_steps = name, course, progress, run, epoch_steps
        self._part = part
        self._losses: list[Any] = []
        self._unsaid = 0

    def add(self, loss: Any, texts: int, learning_rate: float, *, tell: bool) -> None:
        """Count a step; at every few steps, and when asked to tell, read the losses."""
        self._losses.append(loss)
        self._unsaid += texts
        self._course.step += 1
        self._course.texts += texts
        if len(self._losses) >= LOGGING_STEPS or tell:
            mean = self.settle()
            self._progress.advance(self._unsaid, f"loss {mean:.3f}")
            self._unsaid = 0
            if self._run is not None:
                epoch = self._course.step / self._epoch_steps
                self._run.log({"loss": mean, "learning_rate": learning_rate, "epoch": epoch, "step": self._course.step})

    def settle(self) -> float:
        """Read the losses since the last time into the course; returns their mean.

        Raises:
            TrainingFailed: one is not a number.
        """
        import torch

        if not self._losses:
            return 0.0
        losses = torch.stack(self._losses).tolist()
        self._losses.clear()
        if not math.isfinite(sum(losses)):
            raise TrainingFailed(
                f"{self._name}: the loss is {sum(losses)} at step {self._course.step}: lower learning_rate, or set precision to "
                "float32."
            )
        self._course.loss_sum += sum(losses)
        return float(sum(losses) / len(losses))

    def evaluated(self) -> None:
        """Log and track the newest scores of the part that selects, under its name and as `eval_*`."""
        scores = self._course.history[-1]
        logger.info(
            "%s: epoch %.2f, %s loss %.4f, accuracy %.4f",
            self._name,
            scores["epoch"],
            self._part,
            scores["loss"],
            scores["accuracy"],
        )
        if self._run is not None:
            tracked = {f"{who}_{name}": scores[name] for who in ("eval", self._part) for name in ("loss", "accuracy")}
            self._run.log({**tracked, "epoch": scores["epoch"], "step": self._course.step})


def schedule(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate at a step (from 0): rising in the warm-up, then falling in a straight line to 0."""
    warmup = math.ceil(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def chosen_precision(wanted: str, device: Device) -> str:
    """The number format to compute in: as wanted, or the best of the device.

    Raises:
        ValueError: fp16 on a CPU, which has no fast products in it.
    """
    if wanted == "float16" and device.type == "cpu":
        raise ValueError("precision is 'float16', which is for GPUs: set 'auto', 'float32' or 'bfloat16' on a CPU.")
    return device.dtype if wanted == "auto" else wanted
