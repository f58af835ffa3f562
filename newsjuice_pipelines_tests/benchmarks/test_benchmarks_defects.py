"""The defect ledger, at a size that takes seconds."""

from pathlib import Path

import numpy as np
import pytest

from newsjuice_pipelines.benchmarks import defects
from newsjuice_pipelines.benchmarks.defect_run import RunSettings
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig

MICRO = TinyConfig(
    vocab_size=384, hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=1, steps=5, sequence_tokens=64
)
SHORT = RunSettings(chunk_words=60, body_words=40, max_tokens=500, epochs=1, max_new_tokens=8)


def test_variants_are_trained_and_measured_once_and_shown_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "VARIANTS", {defects.RIGHT: (), "D6": ("D6",)})
    sizes = {"articles": 10, "held_out": 6, "seeds": (1, 2), "tiny": MICRO, "settings": SHORT, "workers": 1, "work": tmp_path}

    results = defects.run(**sizes)

    right, leaky = results["variants"][defects.RIGHT], results["variants"]["D6"]
    assert right["leaked_rows"]["value"] == 0 < leaky["leaked_rows"]["value"]
    assert right["answer_loss"]["low"] <= right["answer_loss"]["value"] <= right["answer_loss"]["high"]
    assert right["effect_kept"]["value"] == pytest.approx(1, abs=0.01)
    assert right["change"] == {}
    assert leaky["against"] == defects.RIGHT
    assert "| D6: random draws, split by row |" in defects.table(results)
    defects.write_plot(results, tmp_path / "ledger.png")
    assert (tmp_path / "ledger.png").stat().st_size > 5000

    def work(*_: object) -> None:
        raise AssertionError("finished runs are kept")

    monkeypatch.setattr(defects, "run_variant", work)
    assert defects.run(**sizes) == results


def test_an_interval_covers_articles_and_seeds() -> None:
    by_seed = np.array([[1.0] * 50, [2.0] * 50, [3.0] * 50])
    by_article = np.array([list(range(50))] * 3, dtype=float)

    assert defects.two_way_interval(np.ones((3, 50))) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert defects.two_way_interval(by_seed)["low"] < 1.5
    interval = defects.two_way_interval(by_article)
    assert 18 < interval["low"] < 24.5 < interval["high"] < 31


def test_too_few_articles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="48 different articles are not enough for 40 to train on and 20 held out"):
        defects.run(articles=40, held_out=20, work=tmp_path)


def test_a_folder_without_articles_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no bbc_articles\.jsonl"):
        defects.run(tmp_path)
