"""What the classification reports share: shares and intervals as text, and heat maps. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from newsjuice_pipelines.runtime.reports import NOT_MEASURED, new_figure, save_figure


def percent(share: float | None) -> str:
    """A share as a percentage, or "not measured"."""
    return NOT_MEASURED if share is None else f"{100 * share:.2f} %"


def interval(bounds: Sequence[float] | None) -> str:
    """An interval of shares as percentages."""
    return NOT_MEASURED if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def heatmap(
    values: Sequence[Sequence[float]], classes: Sequence[str], path: Path, title: str, x_name: str = "", y_name: str = ""
) -> None:
    """A square heat map with a name on every row and column."""
    side = max(5.0, 0.26 * len(classes) + 2.5)
    figure, (axis,) = new_figure(side + 0.6, side)
    image = axis.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0)
    axis.grid(False)
    ticks = range(len(classes))
    labels = [name.replace("$", r"\$") for name in classes]  # a dollar sign would start a formula
    axis.set_xticks(ticks, labels, rotation=90, fontsize=7)
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.set_xlabel(x_name)
    axis.set_ylabel(y_name)
    figure.colorbar(image, ax=axis, shrink=0.7, label=title)
    save_figure(figure, path)
