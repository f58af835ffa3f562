from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.teaching.script_filters import PROBLEMS
from newsjuice_pipelines.podcast.teaching.teacher_report import (
    block_rate_by_section,
    block_rate_difference,
    outcome_page,
    plot_outcomes,
)


def table(*groups: tuple[str, str, int, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Teacher rows and their sections from `(section, status, rows, finish reason)`."""
    rows: list[dict[str, Any]] = []
    sections: dict[str, str] = {}
    for section, status, count, reason in groups:
        for _ in range(count):
            chunk_id = f"a{len(rows)}:0"
            if section:
                sections[chunk_id] = section
            rows.append({"chunk_id": chunk_id, "status": status, "finish_reason": reason, "cost_usd": 0.001, "latency_s": 0.5})
    frame = pd.DataFrame(rows, columns=["chunk_id", "status", "finish_reason", "cost_usd", "latency_s"])
    for name in ("input_tokens", "cached_tokens", "output_tokens", "thought_tokens"):
        frame[name] = pd.array([10] * len(frame), dtype="Int64")
    return frame, sections


UNEVEN = (
    ("world", "ok", 60, "STOP"),
    ("world", "blocked_prompt", 15, "PROHIBITED_CONTENT"),
    ("world", "blocked_output", 5, "SAFETY"),
    ("sport", "ok", 99, "STOP"),
    ("sport", "blocked_output", 1, "RECITATION"),
    ("", "ok", 9, "STOP"),
    ("", "rejected", 3, "unsupported_name"),
    ("tiny", "blocked_output", 1, "SAFETY"),
    ("sport", "failed", 7, "ERROR"),
    ("sport", "not_asked", 20, "BUDGET"),
)


def test_block_rates_count_answered_rows_of_each_section() -> None:
    entries = {entry["section"]: entry for entry in block_rate_by_section(*table(*UNEVEN))}
    assert list(entries) == ["tiny", "world", "sport", "(none)"]
    assert entries["world"] == {
        "section": "world",
        "rows": 80,
        "blocked_prompt": 15,
        "blocked_output": 5,
        "rate": 0.25,
        "low": pytest.approx(0.168, abs=0.001),
        "high": pytest.approx(0.355, abs=0.001),
    }
    assert entries["sport"]["rows"] == 100
    assert entries["(none)"]["rows"] == 12


def test_an_interval_of_a_single_row_is_wide_and_stays_between_0_and_1() -> None:
    tiny = block_rate_by_section(*table(*UNEVEN))[0]
    assert (tiny["rate"], tiny["high"]) == (1.0, 1.0)
    assert tiny["low"] == pytest.approx(0.207, abs=0.001)


def test_a_clear_difference_between_sections_is_told() -> None:
    result = block_rate_difference(block_rate_by_section(*table(*UNEVEN)))
    assert result["p_value"] < 0.001
    assert "Block rates differ between sections" in result["sentence"]


def test_equal_rates_are_no_difference() -> None:
    groups = [(section, status, rows, "X") for section in "ab" for status, rows in (("ok", 95), ("blocked_output", 5))]
    result = block_rate_difference(block_rate_by_section(*table(*groups)))
    assert result["p_value"] > 0.5
    assert "do not show" in result["sentence"]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([("a", "ok", 5, "STOP"), ("b", "ok", 5, "STOP")], "None of 10 answered rows with a section was blocked."),
        (
            [("a", "blocked_prompt", 5, "X"), ("b", "blocked_prompt", 5, "X")],
            "All of 10 answered rows with a section were blocked.",
        ),
        ([("a", "ok", 5, "STOP"), ("", "blocked_prompt", 5, "X")], "Fewer than two sections are known"),
        ([], "Fewer than two sections are known"),
    ],
)
def test_what_cannot_be_compared_is_said_plainly(groups: list[tuple[str, str, int, str]], sentence: str) -> None:
    result = block_rate_difference(block_rate_by_section(*table(*groups)))
    assert result["p_value"] is None
    assert sentence in result["sentence"]


def test_the_page_tells_counts_reasons_cost_and_sections() -> None:
    page = outcome_page(*table(*UNEVEN))
    assert "220 rows, of which 168 go into training." in page
    assert "| blocked\\_prompt | 15 | 6.8% |" in page
    assert f"| unsupported\\_name | rejected | {PROBLEMS['unsupported_name']} | 3 |" in page
    assert "| world | 80 | 15 | 5 | 25.0% | 16.8% to 35.5% |" in page
    assert "| input tokens | 2,200 |" in page
    assert "| cost, US dollars | 0.2200 |" in page


def test_section_names_cannot_break_out_of_the_page() -> None:
    page = outcome_page(*table(("a|b\n# <script>", "ok", 2, "STOP")))
    assert "<script>" not in page
    assert "| a\\|b # &lt;script&gt; | 2 |" in page


def test_a_page_without_rows_or_measurements_can_be_written() -> None:
    empty, sections = table()
    assert "0 rows" in outcome_page(empty, sections)
    unmeasured, sections = table(("a", "empty", 2, "NO_COMPLETE_SENTENCE"))
    for name in ("cost_usd", "latency_s", "input_tokens"):
        unmeasured[name] = None
    assert "| input tokens | not measured |" in outcome_page(unmeasured, sections)


@pytest.mark.parametrize("with_sections", [True, False])
def test_the_plot_is_a_picture_and_equal_for_equal_rows(tmp_path: Path, with_sections: bool) -> None:
    scripts, sections = table(*UNEVEN, ("$x$ \\frac{", "ok", 4, "STOP"))
    for name in ("one.png", "two.png"):
        plot_outcomes(scripts, tmp_path / name, sections if with_sections else None)
    assert (tmp_path / "one.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_plot_of_no_rows_can_be_drawn(tmp_path: Path) -> None:
    plot_outcomes(*table()[:1], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0
