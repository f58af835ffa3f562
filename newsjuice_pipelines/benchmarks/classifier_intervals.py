"""95 % intervals of what was found on test rows, where rows of one group belong together; and what choosing on them is worth.

Which rows and what they are worth to the ledger is `classifier_defects.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HALVINGS = 500

# The rows of one side of a comparison: `values` (1.0 is right, say) and `groups` (which text a row is).
Side = dict[str, list[Any]]


def clustered_mean(side: Side) -> dict[str, float]:
    """Mean of the values with a 95 % interval for other groups of rows; exact over groups where all are 0 or all are 1."""
    import numpy as np
    from scipy.stats import binomtest

    values = np.asarray(side["values"], dtype=float)
    mean, groups = float(values.mean()), len(set(side["groups"]))
    if mean in (0.0, 1.0):
        exact = binomtest(round(mean * groups), groups).proportion_ci()
        return {"value": mean, "low": float(exact.low), "high": float(exact.high)}
    half = _half_width([(values - mean) / len(values)], [side["groups"]])
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}


def difference(original: Side, right: Side) -> dict[str, float]:
    """Mean of `right` less that of `original`, both shares, with a 95 % interval for other groups of rows.

    Rows of a group belong together, also across the two sides: a test row that both sides judged is a pair. The variance is
    the sum of the groups' squared contributions (Liang and Zeger 1986, with the small-sample factor of its number of groups).
    """
    import numpy as np

    sides = [np.asarray(side["values"], dtype=float) for side in (right, original)]
    means = [float(values.mean()) for values in sides]
    parts = [sign * (values - mean) / len(values) for sign, values, mean in zip((1, -1), sides, means, strict=True)]
    half, value = _half_width(parts, [right["groups"], original["groups"]]), means[0] - means[1]
    return {"value": value, "low": max(-1.0, value - half), "high": min(1.0, value + half)}


def ratio(original: Side, right: Side) -> dict[str, float]:
    """Mean of `right` over that of `original`, which must not be 0, with a 95 % interval made on the logarithm."""
    import numpy as np

    sides = [np.asarray(side["values"], dtype=float) for side in (right, original)]
    means = [float(values.mean()) for values in sides]
    parts = [sign * (values / mean - 1) / len(values) for sign, values, mean in zip((1, -1), sides, means, strict=True)]
    half, value = _half_width(parts, [right["groups"], original["groups"]]), means[0] / means[1]
    return {"value": value, "low": value * float(np.exp(-half)), "high": value * float(np.exp(half))}


def picked_on_half(
    right: NDArray[np.float64], groups: Sequence[str], *, halvings: int = HALVINGS, seed: int = 42
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choosing the best of several checkpoints on one half of the test rows, many times.

    Args:
        right: checkpoints x rows, 1.0 where a checkpoint is right about a row.
        groups: of each row; rows of a group stay together.
        halvings: how often; each half chooses once.
        seed: of the halves.

    Returns:
        For each row, how often the chosen checkpoint is right about it when the row was among those that chose, and when it
        was not.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    _, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.zeros((2, right.shape[1])), np.zeros((2, right.shape[1]))
    for _ in range(halvings):
        side = generator.random(int(group_of_row.max()) + 1) < 0.5
        for choosing in (side[group_of_row], ~side[group_of_row]):
            if not choosing.any() or choosing.all():
                continue
            chosen = right[int(right[:, choosing].mean(axis=1).argmax())]
            for place, rows in enumerate((choosing, ~choosing)):
                sums[place, rows] += chosen[rows]
                counts[place, rows] += 1
    reported, honest = sums / np.maximum(counts, 1)
    return reported, honest


def flattery_deviation(
    matrices: Sequence[NDArray[np.float64]], groups: Sequence[str], *, draws: int = 200, halvings: int = 100, seed: int = 42
) -> float:
    """Standard deviation, over bootstrap draws of whole groups of rows, of how much picking on a half flatters.

    Args:
        matrices: of each training, checkpoints x rows, as `picked_on_half` takes them; a draw is the same for all.
        groups: of each row.
        draws: of the bootstrap.
        halvings: in each draw.
        seed: of draws and halves.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    _, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group_of_row.max()) + 1
    found = []
    for _ in range(draws):
        weights = np.bincount(generator.integers(count, size=count), minlength=count)
        side = generator.random((halvings, count)) < 0.5
        halves = [(half * weights)[:, group_of_row] for half in (side, ~side)]
        kept = (halves[0].sum(1) > 0) & (halves[1].sum(1) > 0)
        first, second = (half[kept] / half[kept].sum(1, keepdims=True) for half in halves)
        gaps = []
        for right in matrices:
            for picking, other in ((first, second), (second, first)):
                accuracy, unseen = right @ picking.T, right @ other.T
                best, columns = accuracy.argmax(axis=0), np.arange(accuracy.shape[1])
                gaps.append(float((accuracy[best, columns] - unseen[best, columns]).mean()))
        found.append(sum(gaps) / len(gaps))
    return float(np.std(found, ddof=1))


def _half_width(parts: Sequence[NDArray[np.float64]], groups: Sequence[Sequence[str]]) -> float:
    """Half of a 95 % interval of a sum of rows' contributions; those of one group are summed first."""
    import numpy as np
    from scipy.stats import t

    names = np.concatenate([np.asarray(some, dtype=str) for some in groups])
    _, number = np.unique(names, return_inverse=True)
    by_group = np.bincount(number, weights=np.concatenate(list(parts)))
    count = len(by_group)
    if count < 2:
        return 0.0
    return float(t.ppf(0.975, count - 1) * np.sqrt(count / (count - 1) * (by_group**2).sum()))
