"""How far a merge moved the weights: by transformer block and projection, as numbers and as a picture."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.reports import new_figure, save_figure

WEIGHT_CHANGE_FILE = "weight_change.json"
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # in the order of the computation; other names come after them
NUMBERED_BLOCKS = 8  # up to so many columns the cells of the picture have room for their numbers
_PLACE = re.compile(r"\.layers\.(\d+)\.(?:.*\.)?(\w+?)(?:_proj)?$")


def measure_weight_change(adapted: Any, written: Any) -> list[dict[str, Any]]:
    """The change of every weight matrix that the adapter touches, one row a matrix.

    Args:
        adapted: the PEFT model on full-precision weights, not merged.
        written: the merged model as it was written.

    Returns:
        rows with `block`, `projection`, `relative_change` |D| / |W| of the adapter's change D, `written_change` |W' - W| / |W|
        of the weights as written, and `kept` <W' - W, D> / |D|^2, the part of D that is in them (None where D is zero).
        Rounding makes the second larger than the first without making the third smaller.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    rows = []
    with torch.inference_mode():
        for name, module in adapted.base_model.model.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            weight: Any = module.get_base_layer().weight
            delta = module.get_delta_weight(module.active_adapters[0])
            moved = written.get_submodule(name).weight.to(weight) - weight
            norm, delta_square = float(weight.norm()), float(delta.square().sum())
            found = _PLACE.search(name)
            rows.append(
                {
                    "block": int(found.group(1)) if found else None,
                    "projection": found.group(2) if found else name,
                    "relative_change": math.sqrt(delta_square) / norm,
                    "written_change": float(moved.norm()) / norm,
                    "kept": float((moved * delta).sum()) / delta_square if delta_square else None,
                    "weight_norm": norm,
                }
            )
    return rows


def change_by_block(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Relative change |D| / |W| of each block's matrices together, by the block's number."""
    changed: dict[str, float] = defaultdict(float)
    whole: dict[str, float] = defaultdict(float)
    for row in rows:
        block = "other" if row["block"] is None else str(row["block"])
        changed[block] += (row["relative_change"] * row["weight_norm"]) ** 2
        whole[block] += row["weight_norm"] ** 2
    return {block: float(f"{math.sqrt(changed[block] / whole[block]):.4g}") for block in whole}


def plot_weight_change(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a heat map of the relative change: a column a block, a row a projection."""
    placed = {(row["projection"], row["block"]): 100 * row["relative_change"] for row in rows if row["block"] is not None}
    blocks = sorted({block for _, block in placed})
    names = sorted({name for name, _ in placed}, key=lambda name: (PROJECTIONS.index(name) if name in PROJECTIONS else 99, name))
    cells = [[placed.get((name, block), math.nan) for block in blocks] for name in names]
    figure, (axis,) = new_figure(height_in=3.0)
    axis.grid(visible=False)
    image = axis.imshow(cells, aspect="auto", cmap="Blues", vmin=0)
    axis.set_yticks(range(len(names)), names)
    step = max(1, len(blocks) // 14)
    axis.set_xticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
    axis.set_xlabel("transformer block")
    axis.set_title("Change of the weights by the adapter", loc="left", fontsize=10)
    if len(blocks) <= NUMBERED_BLOCKS:
        middle = max(placed.values(), default=0.0) / 2
        for y, line in enumerate(cells):
            for x, value in enumerate(line):
                axis.text(
                    x, y, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if value > middle else "#111827"
                )
    figure.colorbar(image, ax=axis, label="|ΔW| / |W|, %", pad=0.02)
    save_figure(figure, path)
