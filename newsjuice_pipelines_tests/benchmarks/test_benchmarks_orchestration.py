"""The benchmark of Dagster's own cost, on a few days and runs."""

import pytest

from newsjuice_pipelines.benchmarks import orchestration

pytestmark = pytest.mark.whole_system


def test_a_small_run_measures_everything_on_sqlite() -> None:
    results = orchestration.run(repeats=1, days=3, queued_days=2, stored_runs=8, requests=2, storages=["SQLite"])

    assert results["definitions"]["heavy_libraries"] == []
    found = results["storages"]["SQLite"]
    assert found["days"]["days"] == 3
    assert found["queued_days"]["days"] == 2
    assert found["web"]["runs"] == 8
    assert all(times["slowest_ms"] >= times["median_ms"] > 0 for times in found["web"]["queries"].values())
    assert "8" in orchestration.table(results)
