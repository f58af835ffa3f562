"""The defect ledger, at a size that takes seconds."""

import json
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
    monkeypatch.setattr(defects, "VARIANTS", {defects.RIGHT: (), "D6": ("D6",), defects.RIGHT_4BIT: (), "D5": ("D5",)})
    sizes = {"articles": 10, "held_out": 6, "seeds": (1,), "tiny": MICRO, "settings": SHORT, "workers": 1, "work": tmp_path}

    results = defects.run(**sizes)

    right, leaky = results["variants"][defects.RIGHT], results["variants"]["D6"]
    assert right["leaked_rows"]["value"] == 0 < leaky["leaked_rows"]["value"]
    assert right["answer_loss"]["low"] <= right["answer_loss"]["value"] <= right["answer_loss"]["high"]
    assert right["effect_kept"]["value"] == pytest.approx(1, abs=0.01)
    assert right["change"] == {}
    merged_right, merged_wrong = (results["variants"][name]["effect_kept_gentle"] for name in (defects.RIGHT_4BIT, "D5"))
    assert merged_right["value"] == pytest.approx(1, abs=0.01)
    assert merged_wrong["value"] < 0.9
    assert leaky["against"] == defects.RIGHT
    assert "| D6: random draws, split by row |" in defects.table(results)
    defects.write_plot(results, tmp_path / "ledger.png")
    assert (tmp_path / "ledger.png").stat().st_size > 5000

    def work(*_: object) -> None:
        raise AssertionError("finished runs are kept")

    monkeypatch.setattr(defects, "run_variant", work)
    assert defects.run(**sizes) == results


def test_an_interval_covers_other_seeds_and_other_articles() -> None:
    by_seed = np.array([[1.0] * 50, [2.0] * 50, [3.0] * 50])
    by_article = np.array([list(range(50))] * 3, dtype=float)

    assert defects.seeds_and_articles(np.ones((3, 50))) == {"value": 1.0, "low": 1.0, "high": 1.0}
    of_seeds = defects.seeds_and_articles(by_seed)
    assert of_seeds["low"] == pytest.approx(2 - 4.303 / np.sqrt(3), abs=0.01)  # Student's t with two degrees of freedom
    of_articles = defects.seeds_and_articles(by_article)
    assert of_articles["high"] == pytest.approx(24.5 + 2.01 * 14.577 / np.sqrt(50), abs=0.01)  # and with 49


def test_a_rate_that_never_happened_is_not_certain_to_be_zero() -> None:
    assert defects.seeds_and_articles(np.zeros((3, 64)), rate=True) == {
        "value": 0,
        "low": 0,
        "high": pytest.approx(0.056, abs=0.001),
    }
    assert defects.seeds_and_articles(np.ones((3, 64)), rate=True)["low"] == pytest.approx(0.944, abs=0.001)


def test_near_duplicates_do_not_count_and_too_few_articles_are_refused(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(200))
    rows = [("a", text), ("b", text + " more"), ("c", "Something else entirely, about another matter.")]
    lines = [json.dumps({"article_id": name, "content": content}) for name, content in rows]
    (tmp_path / "bbc_articles.jsonl").write_text("\n".join(lines))

    with pytest.raises(ValueError, match="2 different articles are not enough"):
        defects.run(tmp_path)


def test_a_folder_without_articles_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no bbc_articles\.jsonl"):
        defects.run(tmp_path)
