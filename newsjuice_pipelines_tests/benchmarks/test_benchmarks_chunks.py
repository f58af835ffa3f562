"""The benchmark of chunk sampling, on tables small enough for a test."""

from pathlib import Path

import pytest

from newsjuice_pipelines.benchmarks import chunks


def test_a_small_run_measures_both_ways_and_leaves_nothing_behind(short_folder: Path) -> None:
    results = chunks.run(sizes=(60,), sample_size=10, draws=3, folder=short_folder)

    [size] = results["sizes"]
    assert size["rows"] == size["counts"]["rows_read"] == 60
    assert size["counts"]["sampled"] == 10, "the texts pass all filters"
    assert size["original_s"] == pytest.approx(10 * size["original_draw_s"])
    assert size["ratio"] == size["original_s"] / size["ours_s"] > 0
    assert chunks.table(results).splitlines()[0].count("scaled from 3") == 1
    assert len(chunks.table(results).splitlines()) == 3
    assert list(short_folder.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"draws": 2}, {"sizes": ()}, {"sizes": (0,)}])
def test_a_run_that_would_measure_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need at least 3 draws"):
        chunks.run(**wrong)
