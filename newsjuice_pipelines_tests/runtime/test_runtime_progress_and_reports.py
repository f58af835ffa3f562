"""Progress lines, durations, and what report files may hold."""

import logging
from pathlib import Path

import pytest

from newsjuice_pipelines.runtime.progress import Progress, format_duration
from newsjuice_pipelines.runtime.reports import cell, markdown_table, write_json


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_says_rate_and_remaining_time_of_this_process_only(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress("training", 100, "steps", done=40, interval_s=5, clock=clock)

    with caplog.at_level(logging.INFO, "newsjuice"):
        clock.now = 10
        progress.advance(20)

    assert caplog.messages == ["training: 60/100 steps, 2 steps/s, 20 s left"]


def test_progress_is_silent_between_its_lines_and_always_says_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress("training", 3, "steps", interval_s=5, clock=clock)

    with caplog.at_level(logging.INFO, "newsjuice"):
        for _ in range(3):
            clock.now += 1
            progress.advance()

    assert caplog.messages == ["training: 3/3 steps, 1 steps/s, done in 3 s"]


@pytest.mark.parametrize(
    ("done", "per_minute", "rate"),
    [
        (8, False, "3.2 scripts/min"),
        (150, False, "1 scripts/s"),
        (600, False, "4 scripts/s"),
        (600, True, "240 scripts/min"),
        (9000, True, "3,600 scripts/min"),
        (0, False, "0 scripts/s"),
    ],
)
def test_slow_work_is_counted_by_the_minute(done: int, per_minute: bool, rate: str) -> None:
    clock = Clock()
    progress = Progress("base scripts", 10_000, "scripts", per_minute=per_minute, clock=clock)
    progress.done = done

    assert progress.line(150).startswith(f"base scripts: {done}/10000 scripts, {rate}")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations_read_like_a_person_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_article_text_cannot_break_out_of_a_table_cell() -> None:
    table = markdown_table(["text"], [["a | b\n\n# <script>alert(1)</script> [x](javascript:y)"]])

    assert "<script>" not in table
    assert table.count("\n") == 2
    assert r"a \| b" in table
    assert r"\[x\](javascript:y)" in table


def test_none_reads_not_measured_and_nan_is_refused(tmp_path: Path) -> None:
    assert cell(None) == "not measured"
    with pytest.raises(ValueError, match="nan"):
        cell(float("nan"))
    with pytest.raises(ValueError):
        write_json(tmp_path / "results.json", {"accuracy": float("nan")})
