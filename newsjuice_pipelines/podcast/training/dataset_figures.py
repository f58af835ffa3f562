"""The plot of the student's data set. Its numbers come from `dataset.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from newsjuice_pipelines.runtime.reports import PALETTE, new_figure, save_figure

LENGTHS_FILE = "token_lengths.png"
_BINS = 32  # up to the budget, so that the budget is the edge of a bin


def write_token_lengths(tokens: Mapping[str, Sequence[int]], budget_tokens: int, path: Path) -> None:
    """Histograms of the rows' token counts, one panel for each name in `tokens`, the budget as a line in the last one.

    Args:
        tokens: counts of all rows by name; the panels share their horizontal axis, so that widths compare.
        budget_tokens: most tokens of a row; not drawn where the rows are far below it.
        path: the PNG.
    """
    longest = max(max(values) for values in tokens.values())
    in_sight = budget_tokens < 3 * longest
    width = (budget_tokens if in_sight else longest) / _BINS
    edges = [width * number for number in range(max(_BINS, math.ceil(longest / width)) + 1)]
    figure, axes = new_figure(9.0, 3.2, columns=len(tokens))
    titles = [f"{name}: median {statistics.median_low(values):,}" for name, values in tokens.items()]
    titles[-1] += f"\n(dashed: budget {budget_tokens:,})" if in_sight else f"\n(budget {budget_tokens:,}, not in sight)"
    for axis, title, values, color in zip(axes, titles, tokens.values(), PALETTE, strict=False):
        axis.hist(values, bins=edges, color=color)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tokens")
        axis.set_xlim(0, edges[-1] * 1.03)
    axes[0].set_ylabel("rows")
    if in_sight:
        axes[-1].axvline(budget_tokens, color=PALETTE[4], linestyle="--", linewidth=1.4)
    save_figure(figure, path)
