"""Merging, on a real micro model with a real adapter."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig, train_adapter
from newsjuice_pipelines.podcast.training.merge import MergeError, measure_merge, merge_adapter

Made = tuple[Path, dict[str, Any]]


def test_the_merged_model_keeps_the_whole_effect_of_the_adapter(merged: Made) -> None:
    measured = merged[1]["merge"]

    assert measured["relative_error"] < 1e-4
    assert measured["top1_agreement"] > 0.99
    assert measured["effect_kept"] == pytest.approx(1.0, abs=1e-3)
    assert measured["positions"] > 4


def test_the_merged_model_stops_at_the_end_of_a_turn(merged: Made) -> None:
    saved = json.loads((merged[0] / "generation_config.json").read_text())

    assert saved["eos_token_id"] == merged[1]["eos_token_ids"] == [0, 2]


def test_every_block_of_weights_changed_and_the_embeddings_did_not(merged: Made) -> None:
    changes = {entry["layer"]: entry["relative_change"] for entry in merged[1]["weight_change_by_layer"]}

    assert changes.pop("other") == 0
    assert set(changes) == {"0", "1"}
    assert min(changes.values()) > 0


def test_half_precision_is_measured_as_less_exact(base: Path, dataset: Path, tuned: Made, merged: Made, tmp_path: Path) -> None:
    facts = merge_adapter(base, tuned[0], tmp_path, "bfloat16", dataset)

    assert merged[1]["merge"]["relative_error"] < facts["merge"]["relative_error"] < 0.1
    assert facts["size_bytes"] < 0.6 * merged[1]["size_bytes"]


def test_another_base_is_refused(base: Path, tuned: Made, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")

    with pytest.raises(MergeError, match="the adapter was trained on the base"):
        merge_adapter(other, tuned[0], tmp_path)


def test_an_adapter_without_a_record_of_its_base_is_refused(base: Path, tuned: Made, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(tuned[0], tmp_path / "adapter"))
    (adapter / "base_identity.json").unlink()

    with pytest.raises(MergeError, match="its base is unknown"):
        merge_adapter(base, adapter, tmp_path)


def test_an_adapter_trained_over_four_bits_is_merged_into_the_dequantised_base(
    base: Path, dataset: Path, tuning: FinetuneConfig, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="the gpu extra is not installed")
    adapter, scratch, out = (tmp_path / name for name in ("adapter", "scratch", "out"))
    for folder in (adapter, scratch, out):
        folder.mkdir()
    train_adapter(base, dataset, replace(tuning, epochs=1, load_in_4bit=True), adapter, scratch)

    facts = merge_adapter(base, adapter, out, dataset=dataset)

    assert facts["dequantised_base"] is True
    assert facts["merge"]["effect_kept"] == pytest.approx(1.0, abs=1e-2)


def test_a_merge_that_lost_the_adapter_keeps_none_of_its_effect() -> None:
    import numpy as np

    base, adapter = np.zeros((3, 5)), np.eye(3, 5)

    assert measure_merge([base], [adapter], [base])["effect_kept"] == 0
    assert measure_merge([base], [adapter], [adapter])["effect_kept"] == 1
    assert measure_merge([base], [adapter], [adapter / 2])["effect_kept"] == 0.5


def test_without_prompts_the_merge_is_not_measured() -> None:
    assert measure_merge([], [], [])["effect_kept"] is None
