"""The benchmarks behind `newsjuice bench`, at a size that takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks import ledger, teacher
from newsjuice_pipelines.commands import bench


def test_the_teacher_is_measured_beside_the_loop() -> None:
    pytest.importorskip("google.genai")
    results = teacher.run(rows=24, latency_s=0.05, concurrency=8, repeats=1, loop_calls=2)
    assert results["ok"] == 24
    assert results["wall_s"] >= results["ideal_s"] == pytest.approx(24 * 0.05 / 8)
    assert results["loop_s"] >= 24 * 0.05
    assert "24 scripts at concurrency 8" in teacher.table(results)


def test_the_ledger_is_measured() -> None:
    results = ledger.run(rows=300, repeats=1)
    assert results["unanswered"] == 15
    assert min(results[name] for name in ("open_s", "find_s", "table_s", "csv_s")) > 0
    assert "300 rows" in ledger.table(results)


def test_a_benchmark_leaves_its_figures_and_the_command_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.BENCHMARKS, "small", ("ledger",))
    whole: Any = ledger.run
    monkeypatch.setattr(ledger, "run", lambda: whole(rows=100, repeats=1))
    assert bench.bench("small", tmp_path / "out", ["newsjuice", "bench", "small"]) == 0
    assert json.loads((tmp_path / "out" / "small.json").read_text())["ledger"]["rows"] == 100
    page = (tmp_path / "out" / "small.md").read_text()
    assert "Made by `newsjuice bench small` on " in page
    assert "| a ledger of 100 rows |" in page
    assert "| a ledger of 100 rows |" in capsys.readouterr().out
