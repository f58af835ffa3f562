"""How a classifier is trained: the settings a user may change, and the recipes that give the values of those left empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from newsjuice_pipelines.classification.training.models import ORIGINAL, OURS, BaseModel

POOLINGS = ("model", "mean")
CLASS_WEIGHTINGS = ("none", "balanced", "effective")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained. Fields are for encoders unless they say otherwise; empty ones come from the model's recipe."""

    epochs: float | None = None
    """Passes over the training part at most; early stopping may end sooner. Empty: the recipe's."""
    learning_rate: float | None = None
    """Peak learning rate of the encoder's top layer. Empty: the model's own from the table."""
    head_learning_rate_factor: float | None = None
    """How many times the learning rate the fresh classification head learns with. Empty: the recipe's."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one below it, at most 1. Empty: the recipe's."""
    batch_size: int | None = None
    """Texts a training step. Empty: the recipe's."""
    max_length: int | None = None
    """Longest text in tokens; longer ones are cut, and counted. Empty: the recipe's, within what the model allows."""
    warmup_fraction: float | None = None
    """Share of the steps in which the learning rate rises. Empty: the recipe's."""
    weight_decay: float | None = None
    """AdamW weight decay of matrices. Empty: the recipe's."""
    gradient_clipping: float | None = None
    """Largest norm of the gradient; 0 does not clip. Empty: the recipe's."""
    label_smoothing: float | None = None
    """Probability mass spread over the other classes in the training targets. Empty: the recipe's."""
    class_weighting: str = "none"
    """Weight of a class in the loss: `none`, `balanced` (one over its rows) or `effective` (less steep: one over its effective
    number of rows). For the `full` split; the linear model knows `none` and `balanced`."""
    pooling: str | None = None
    """What the head sees: `model` (the model's own pooling) or `mean` (the mean of all tokens; for sentence encoders). Empty: the
    model's own from the table."""
    precision: str | None = None
    """Number format of the products: `float32`, `bfloat16`, `float16` (GPU), or `auto`, the best of the device. Empty: the
    recipe's."""
    early_stopping_patience: int | None = None
    """Epochs without a better validation score before training ends; 0 never ends early. Empty: the recipe's."""
    max_steps: int = 0
    """Training steps at most; 0 means no limit but the epochs."""
    seed: int = 42
    """Seed of initialisation, dropout and order; also used by the linear model."""
    base_path: str = ""
    """A folder with the base model's files instead of the table's source, for machines without a network."""
    revision: str = ""
    """Hub revision instead of the pinned one."""
    linear_c: float = 0.3
    """Inverse regularisation strength of the linear model; unused by encoders."""
    pad_to_max_length: bool | None = None
    """Pad every text to `max_length`, as the original did; only for measuring what that costs. Empty: the recipe's."""
    select_on_test: bool | None = None
    """Let the test part pick the checkpoint, as the original did; only for measuring how optimistic that is. Empty: the
    recipe's."""

    def __post_init__(self) -> None:
        above_zero = (
            "epochs",
            "learning_rate",
            "head_learning_rate_factor",
            "layer_decay",
            "batch_size",
            "max_length",
            "linear_c",
        )
        for name in above_zero:
            self._check(name, "must be above 0", lambda value: value > 0)
        for name in ("warmup_fraction", "label_smoothing"):
            self._check(name, "must be at least 0 and below 1", lambda value: 0 <= value < 1)
        for name in ("max_steps", "weight_decay", "gradient_clipping", "early_stopping_patience"):
            self._check(name, "must be 0 or more", lambda value: value >= 0)
        self._check("layer_decay", "must be at most 1", lambda value: value <= 1)
        self._check("max_length", "must be at least 4, to hold a word between the two marks", lambda value: value >= 4)
        for name, known in (("pooling", POOLINGS), ("class_weighting", CLASS_WEIGHTINGS), ("precision", PRECISIONS)):
            self._check(name, f"must be one of {', '.join(known)}", known.__contains__)

    def _check(self, name: str, demand: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} is {value!r}; it {demand}.")


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training with its value; the names are those of `ClassifierConfig`.

    `selection_metric` is what the selection part judges checkpoints by, `group_by_length` whether texts of a batch are of like
    length, `keeps_best` whether the best checkpoint comes back at the end.
    """

    epochs: float
    learning_rate: float
    head_learning_rate_factor: float
    layer_decay: float
    batch_size: int
    max_length: int
    warmup_fraction: float
    weight_decay: float
    gradient_clipping: float
    label_smoothing: float
    class_weighting: str
    pooling: str
    precision: str
    early_stopping_patience: int
    max_steps: int
    seed: int
    pad_to_max_length: bool
    select_on_test: bool
    selection_metric: str
    group_by_length: bool

    @property
    def selected_on(self) -> str:
        """The part of the split that picked the checkpoint."""
        return "test" if self.select_on_test else "validation"


RECIPES: Mapping[str, Recipe] = {
    OURS: Recipe(
        epochs=6.0,
        learning_rate=0.0,  # the model's own
        head_learning_rate_factor=10.0,
        layer_decay=0.9,
        batch_size=32,
        max_length=128,
        warmup_fraction=0.1,
        weight_decay=0.01,
        gradient_clipping=1.0,
        label_smoothing=0.1,
        class_weighting="none",
        pooling="model",
        precision="auto",
        early_stopping_patience=2,
        max_steps=0,
        seed=42,
        pad_to_max_length=False,
        select_on_test=False,
        selection_metric="loss",
        group_by_length=True,
    ),
    ORIGINAL: Recipe(
        epochs=3.0,
        learning_rate=0.0,  # the model's own, which the table sets to the original's
        head_learning_rate_factor=1.0,
        layer_decay=1.0,
        batch_size=16,
        max_length=512,
        warmup_fraction=0.0,
        weight_decay=0.01,
        gradient_clipping=1.0,
        label_smoothing=0.0,
        class_weighting="none",
        pooling="model",
        precision="float32",  # 38 texts/s at evaluation on a T4 is what fp32 gives there
        early_stopping_patience=0,
        max_steps=0,
        seed=42,
        pad_to_max_length=True,
        select_on_test=True,
        selection_metric="accuracy",
        group_by_length=False,
    ),
}


def recipe_for(entry: BaseModel, config: ClassifierConfig) -> Recipe:
    """The recipe of a model with the settings that were filled in."""
    recipe = replace(RECIPES[entry.recipe], learning_rate=entry.learning_rate, pooling=entry.pooling)
    names = {field.name for field in fields(Recipe)}
    filled = {field.name: getattr(config, field.name) for field in fields(ClassifierConfig) if field.name in names}
    return replace(recipe, **{name: value for name, value in filled.items() if value is not None})
