"""Bootstrap intervals that draw whole groups of near-duplicate texts. What is measured in every draw is not known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DRAWS = 1_000
INTERVAL = (0.025, 0.975)

Statistic = Callable[["np.ndarray"], Mapping[str, float]]
"""Named values of rows with weights; NaN where a draw leaves nothing to measure."""


def group_draws(groups: np.ndarray, seed: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """Weights of the rows, one array a draw: how often the row's group was drawn with replacement."""
    import numpy as np

    _, group_of_row = np.unique(groups, return_inverse=True)
    count = int(group_of_row.max()) + 1
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(generator.integers(count, size=count), minlength=count)[group_of_row].astype(float)


def bootstrap(statistic: Statistic, groups: np.ndarray, seed: int, draws: int = DRAWS) -> dict[str, list[float] | None]:
    """Percentile 95 % intervals of every value of `statistic`; None where no draw could measure it.

    Rows of a group stay together, since texts that are nearly equal are not independent.
    """
    drawn = bootstrap_values(statistic, groups, seed, draws)
    return {name: percentile_interval(values) for name, values in drawn.items()}


def bootstrap_values(statistic: Statistic, groups: np.ndarray, seed: int, draws: int = DRAWS) -> dict[str, np.ndarray]:
    """Every value of `statistic`, one number a draw."""
    import numpy as np

    measured = [statistic(weights) for weights in group_draws(groups, seed, draws)]
    return {name: np.array([draw[name] for draw in measured]) for name in measured[0]}


def percentile_interval(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of what draws measured; None where none could."""
    import numpy as np

    known = values[~np.isnan(values)]
    return [float(bound) for bound in np.quantile(known, INTERVAL)] if len(known) else None
