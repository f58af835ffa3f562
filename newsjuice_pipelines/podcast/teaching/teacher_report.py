"""What became of the rows that a teacher was asked for: counts, a page, a plot, and whether some sections are blocked more.

A block that hits one section more than others biases the student. The table itself is `teacher_table.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.teaching.script_filters import PROBLEMS
from newsjuice_pipelines.podcast.teaching.teacher import STATUSES
from newsjuice_pipelines.runtime.reports import NOT_MEASURED, PALETTE, markdown_table, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NO_SECTION = "(none)"
SIGNIFICANCE = 0.05
PLOTTED_SECTIONS = 12
_BLOCKED = ("blocked_prompt", "blocked_output")
_NOT_ANSWERED = ("failed", "not_asked")  # whether these would have been blocked is not known
_COLORS = {"ok": PALETTE[2], "rejected": PALETTE[1], "blocked_prompt": PALETTE[4], "blocked_output": PALETTE[4]}
_Z = 1.959964  # 97.5th percentile of the normal distribution
_RESAMPLES = 9999
_LABEL_CHARACTERS = 24


def block_rate_by_section(scripts: pd.DataFrame, sections: Mapping[str, str]) -> list[dict[str, Any]]:
    """How often the service refused, by section, highest rate first.

    Args:
        scripts: the teacher's table; rows that were not answered (failed, not asked) do not count.
        sections: the section of each `chunk_id`; rows without one come under "(none)".

    Returns:
        One entry a section: `section`, `rows`, `blocked_prompt`, `blocked_output`, `rate` between 0 and 1, and `low` and
        `high`, its 95 % Wilson interval (E. B. Wilson, 1927).
    """
    counts: dict[str, Counter[str]] = {}
    for chunk_id, status in zip(scripts["chunk_id"], scripts["status"], strict=True):
        if status not in _NOT_ANSWERED:
            counts.setdefault(sections.get(chunk_id) or NO_SECTION, Counter())[status] += 1
    entries = [_section_entry(section, found) for section, found in counts.items()]
    return sorted(entries, key=lambda entry: (-entry["rate"], -entry["rows"], entry["section"]))


def block_rate_difference(entries: Sequence[Mapping[str, Any]], seed: int = 42) -> dict[str, Any]:
    """Whether the block rates of `block_rate_by_section` differ by more than chance: `p_value` (or None) and a `sentence`.

    A chi-square statistic of blocked and other rows by section; its p-value comes from 9,999 random tables with the same
    totals, since blocked rows are few. Rows without a section are left out.
    """
    import numpy as np
    from scipy import stats

    named = [entry for entry in entries if entry["section"] != NO_SECTION]
    blocked = [entry["blocked_prompt"] + entry["blocked_output"] for entry in named]
    others = [entry["rows"] - count for entry, count in zip(named, blocked, strict=True)]
    if len(named) < 2:
        return {"p_value": None, "sentence": "Fewer than two sections are known, so that block rates cannot be compared."}
    if not sum(blocked):
        return {"p_value": None, "sentence": f"None of {sum(others):,} answered rows with a section was blocked."}
    if not sum(others):
        return {"p_value": None, "sentence": f"All of {sum(blocked):,} answered rows with a section were blocked."}
    method = stats.MonteCarloMethod(n_resamples=_RESAMPLES, rng=np.random.default_rng(seed))
    p_value = float(stats.chi2_contingency([blocked, others], correction=False, method=method).pvalue)
    differ = p_value < SIGNIFICANCE
    verdict = (
        "Block rates differ between sections, so that the student sees less of some"
        if differ
        else "The rows do not show that block rates differ between sections"
    )
    p_text = f"p < {1 / _RESAMPLES:.1g}" if p_value <= 1 / _RESAMPLES else f"p = {p_value:.2g}"
    return {"p_value": p_value, "sentence": f"{verdict} (chi-square over {_RESAMPLES:,} random tables, {p_text})."}


def plot_outcomes(scripts: pd.DataFrame, path: Path, sections: Mapping[str, str] | None = None) -> None:
    """Write a PNG: rows by status, and beside it the block rates of the largest sections when there are sections."""
    entries = block_rate_by_section(scripts, sections) if sections else []
    shown = sorted(entries, key=lambda entry: -entry["rows"])[:PLOTTED_SECTIONS]
    columns = 2 if shown else 1
    figure, axes = new_figure(width_in=6.5 * columns, height_in=1.2 + 0.32 * max(6, len(shown)), columns=columns)
    _draw_statuses(axes[0], Counter(scripts["status"]))
    if shown:
        _draw_sections(axes[1], sorted(shown, key=lambda entry: (entry["rate"], entry["rows"])), len(entries))
    save_figure(figure, path)


def outcome_page(scripts: pd.DataFrame, sections: Mapping[str, str]) -> str:
    """The outcomes as a Markdown page: statuses, reasons, cost and time, block rates by section."""
    total = len(scripts)
    statuses = Counter(scripts["status"])
    reasons = Counter(
        (status, reason) for status, reason in zip(scripts["status"], scripts["finish_reason"], strict=True) if status != "ok"
    )
    entries = block_rate_by_section(scripts, sections)
    parts = [
        "# Outcomes of the teacher's scripts",
        f"{total:,} rows, of which {statuses['ok']:,} go into training.",
        markdown_table(
            ["outcome", "rows", "share"],
            [[status, statuses[status], _percent(statuses[status], total)] for status in STATUSES if statuses[status]],
        ),
    ]
    if reasons:
        lines = [[reason, status, PROBLEMS.get(reason, ""), count] for (status, reason), count in reasons.most_common()]
        parts += ["## Why rows are left out", markdown_table(["reason", "outcome", "meaning", "rows"], lines)]
    parts += ["## Cost and time", markdown_table(["measure", "value"], _cost_lines(scripts)), "## Block rate by section"]
    parts.append(block_rate_difference(entries)["sentence"])
    if entries:
        header = ["section", "answered rows", "blocked prompts", "blocked outputs", "block rate", "95 % interval"]
        parts.append(markdown_table(header, [_section_line(entry) for entry in entries]))
    return "\n\n".join(parts) + "\n"


def _section_entry(section: str, found: Counter[str]) -> dict[str, Any]:
    rows, blocked = found.total(), sum(found[status] for status in _BLOCKED)
    low, high = _wilson(blocked, rows)
    by_kind = {status: found[status] for status in _BLOCKED}
    return {"section": section, "rows": rows, **by_kind, "rate": blocked / rows, "low": low, "high": high}


def _section_line(entry: Mapping[str, Any]) -> list[Any]:
    interval = f"{entry['low']:.1%} to {entry['high']:.1%}"
    return [entry["section"], entry["rows"], *(entry[status] for status in _BLOCKED), f"{entry['rate']:.1%}", interval]


def _wilson(hits: int, rows: int) -> tuple[float, float]:
    share = hits / rows
    center = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z * math.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2)) / (1 + _Z**2 / rows)
    return (max(0.0, center - half) if hits else 0.0), (min(1.0, center + half) if hits < rows else 1.0)


def _cost_lines(scripts: pd.DataFrame) -> list[list[Any]]:
    lines: list[list[Any]] = []
    for name in ("input_tokens", "cached_tokens", "output_tokens", "thought_tokens"):
        known = scripts[name].dropna()
        lines.append([name.replace("_", " "), int(known.sum()) if len(known) else None])
    cost, latency = scripts["cost_usd"].dropna(), scripts["latency_s"].dropna()
    lines.append(["cost, US dollars", f"{cost.sum():,.4f}" if len(cost) else NOT_MEASURED])
    lines.append(["rows of unknown cost", len(scripts) - len(cost)])
    for name, share in (("median", 0.5), ("95th percentile", 0.95)):
        lines.append([f"latency, {name}, s", float(latency.quantile(share)) if len(latency) else None])
    return lines


def _draw_statuses(axis: Axes, statuses: Counter[str]) -> None:
    present = [status for status in STATUSES if statuses[status]][::-1]
    counts = [statuses[status] for status in present]
    total = sum(counts)
    bars = axis.barh(present, counts, color=[_COLORS.get(status, PALETTE[5]) for status in present], height=0.65)
    axis.bar_label(bars, [f"{count:,} ({_percent(count, total)})" for count in counts], padding=4)
    axis.set_xlim(0, max(counts, default=1) * 1.3)
    _lay_down(axis, f"What became of {total:,} rows", "rows")


def _draw_sections(axis: Axes, entries: Sequence[Mapping[str, Any]], sections: int) -> None:
    rates = [100 * entry["rate"] for entry in entries]
    below = [100 * (entry["rate"] - entry["low"]) for entry in entries]
    above = [100 * (entry["high"] - entry["rate"]) for entry in entries]
    places = list(range(len(entries)))
    axis.errorbar(rates, places, xerr=[below, above], fmt="o", color=PALETTE[4], ecolor=PALETTE[5], capsize=3, markersize=5)
    axis.set_yticks(places, [f"{_label(entry['section'])} ({entry['rows']:,})" for entry in entries])
    axis.set_ylim(-0.6, len(entries) - 0.4)
    axis.set_xlim(left=0)
    largest = f", the {len(entries)} largest of {sections}" if sections > len(entries) else ""
    _lay_down(axis, f"Blocked by section (rows){largest}", "percent of answered rows, 95 % interval")


def _lay_down(axis: Axes, title: str, label: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(label)
    axis.grid(visible=False, axis="y")
    axis.grid(visible=True, axis="x", color="#e5e7eb", linewidth=0.8)


def _label(section: str) -> str:
    """A section's name as plot text: one line, not too long, no formula."""
    line = " ".join(section.split()).replace("$", r"\$")
    return line if len(line) <= _LABEL_CHARACTERS else line[: _LABEL_CHARACTERS - 1] + "…"


def _percent(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else NOT_MEASURED
