"""How labelled rows are drawn and divided: the settings of a split, with the reasons for their defaults."""

from __future__ import annotations

from dataclasses import dataclass

PRESETS = ("balanced", "full")
GROUPINGS = ("clusters", "exact", "none")
ORDERS = ("random", "temporal")


class SplitError(ValueError):
    """The rows cannot be split as asked, or a split on disk is not whole."""


@dataclass(frozen=True)
class SplitConfig:
    """How many rows of a class are drawn and how they are divided."""

    preset: str = "balanced"
    """`balanced` draws `per_class` rows a class; `full` holds out the very same rows and trains on all others."""
    per_class: int = 1000
    """Most rows a class, drawn by seed; 0 takes every row."""
    test_fraction: float = 0.2
    """Share of a class's drawn rows held out as the test part; 0.2 is the original's 80/20."""
    validation_fraction: float = 0.1
    """Share of the training side that selects the checkpoint."""
    calibration_fraction: float = 0.1
    """Share of the training side that fits temperature and thresholds."""
    grouping: str = "clusters"
    """What stays on one side: near-duplicate `clusters`, `exact` texts but for case and punctuation, or `none` (defect D12)."""
    order: str = "random"
    """`random`, or `temporal`: in every class the past trains and the future tests; rows without a date are left out."""
    seed: int = 42
    """Seed of the draw and of the division."""

    def __post_init__(self) -> None:
        for name, known in (("preset", PRESETS), ("grouping", GROUPINGS), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise SplitError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}.")
        if self.per_class < 0:
            raise SplitError(f"per_class is {self.per_class}; it must be 0 (every row) or more.")
        for name in ("test_fraction", "validation_fraction", "calibration_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise SplitError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.validation_fraction + self.calibration_fraction >= 1:
            raise SplitError("validation_fraction and calibration_fraction together leave no training rows; lower them.")


def quotas(count: int, config: SplitConfig) -> dict[str, int]:
    """Rows of a class of `count` rows in each held-out part: rounded shares, at least one where the class can spare it."""
    test = max(1, round(count * config.test_fraction)) if count >= 2 else 0
    side = count - test
    validation = max(1, round(side * config.validation_fraction)) if side >= 2 else 0
    calibration = max(1, round(side * config.calibration_fraction)) if side - validation >= 2 else 0
    return {"test": test, "calibration": calibration, "validation": validation}
