"""Merging, on a real micro model with a real adapter: what is written, and what is refused."""

import json
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.training.base_model import BaseModelError, load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.merge import MergeConfig, MergeError, merge_adapter
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny
from newsjuice_pipelines.podcast.training.weight_change import change_by_block, plot_weight_change

Made = tuple[Path, dict[str, Any]]


@pytest.fixture
def adapter(tuned: Made, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may damage."""
    return Path(shutil.copytree(tuned[0], tmp_path / "adapter"))


@pytest.fixture
def other_base(base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may change."""
    return Path(shutil.copytree(base, tmp_path / "other"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def change_weights(folder: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def test_the_weights_are_base_plus_adapter_and_all_else_is_the_bases(base: Path, merged: Made) -> None:
    before, after = load_model(base).state_dict(), load_model(merged[0]).state_dict()

    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if "_proj" in name}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_float32_sum_rounded_once(base: Path, tuned: Made, merged: Made, out: Path, dtype: str) -> None:
    import torch

    facts = merge_adapter(base, tuned[0], out, MergeConfig(dtype=dtype))

    summed, written = load_model(merged[0]).state_dict(), load_model(out, dtype).state_dict()
    assert all(summed[name].to(getattr(torch, dtype)).equal(written[name]) for name in summed)
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert facts["size_bytes"] < 0.6 * merged[1]["size_bytes"]


def test_the_merged_model_stops_at_the_end_of_a_turn_and_decodes_greedily(merged: Made) -> None:
    saved = json.loads((merged[0] / "generation_config.json").read_text())

    assert saved["eos_token_id"] == merged[1]["eos_token_ids"] == [0, 2]
    assert load_tokenizer(merged[0]).convert_ids_to_tokens(2) == "<|im_end|>"
    assert saved.get("do_sample") is not True
    assert not {"temperature", "top_p", "top_k"} & set(saved)


def test_a_base_that_samples_leaves_no_sampling_behind(
    base: Path, tuned: Made, adapter: Path, other_base: Path, out: Path
) -> None:
    import torch

    hub_style = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [2, 0], "pad_token_id": 0}
    (other_base / "generation_config.json").write_text(json.dumps(hub_style))

    merge_adapter(other_base, adapter, out)

    model = load_model(out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt = torch.tensor([[5, 6, 7]])
        first, second = (model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8) for _ in range(2))
    assert first.equal(second)


def test_the_adapters_chat_template_goes_with_the_model(base: Path, adapter: Path, out: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")

    merge_adapter(base, adapter, out)

    assert load_tokenizer(out).chat_template == load_tokenizer(adapter).chat_template
    assert load_tokenizer(out).chat_template != load_tokenizer(base).chat_template


def test_the_change_of_every_matrix_is_recorded_and_drawn(merged: Made) -> None:
    rows = json.loads((merged[0] / "weight_change.json").read_text())["matrices"]

    assert {(row["block"], row["projection"]) for row in rows} == {
        (block, name) for block in (0, 1) for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert all(row["written_change"] == pytest.approx(row["relative_change"], rel=1e-3) for row in rows)
    assert all(row["kept"] == pytest.approx(1, abs=1e-3) for row in rows)
    assert set(merged[1]["weight_change_by_block"]) == {"0", "1"}
    assert (merged[0] / "weight_change.png").read_bytes().startswith(b"\x89PNG")


def test_the_change_of_a_matrix_is_the_norm_of_what_was_added(base: Path, merged: Made) -> None:
    rows = json.loads((merged[0] / "weight_change.json").read_text())["matrices"]
    name = "model.layers.1.mlp.down_proj.weight"
    before, after = load_model(base).state_dict()[name], load_model(merged[0]).state_dict()[name]

    (row,) = (row for row in rows if (row["block"], row["projection"]) == (1, "down"))
    assert row["relative_change"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-3)


def test_blocks_are_summed_by_their_weights() -> None:
    rows = [{"block": 0, "relative_change": change, "weight_norm": norm} for change, norm in ((0.3, 4.0), (0.0, 3.0))]

    assert change_by_block(rows) == {"0": pytest.approx(1.2 / 5)}


def test_a_deep_model_is_drawn_without_numbers(tmp_path: Path) -> None:
    rows = [
        {"block": block, "projection": name, "relative_change": 0.01 * math.sqrt(block + 1)}
        for block in range(28)
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]

    plot_weight_change(rows, tmp_path / "change.png")

    assert (tmp_path / "change.png").stat().st_size > 5000


def test_the_model_card_tells_the_gates_figures_the_training_and_the_licence(
    tuned: Made, adapter: Path, other_base: Path, dataset: Path, out: Path
) -> None:
    (other_base / "README.md").write_text("---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n# Base\n")
    (other_base / "LICENSE").write_text("Apache License")

    facts = merge_adapter(other_base, adapter, out, MergeConfig(gate_prompts=2), dataset)

    card = (out / "README.md").read_text()
    assert "license: apache-2.0\n" in card
    assert "It **passed** on 2 held-out prompts" in card
    assert f"`{facts['base_identity']}`" in card
    assert "enable_thinking=False" in card
    assert f"| validation loss, nats a token | {tuned[1]['validation_loss']:.3g} |" in card
    assert (out / "LICENSE").read_text() == "Apache License"


def test_without_a_data_set_nothing_is_judged(base: Path, tuned: Made, out: Path) -> None:
    gate = merge_adapter(base, tuned[0], out)["gate"]

    assert gate["passed"] is None
    assert "Not measured" in (out / "README.md").read_text()


def test_the_facts_are_json(merged: Made) -> None:
    assert json.loads(json.dumps(merged[1], allow_nan=False)) == json.loads(json.dumps(merged[1]))


def test_another_revision_of_the_weights_is_refused_by_the_names_of_its_files(other_base: Path, adapter: Path, out: Path) -> None:
    change_weights(other_base, "model.safetensors", lambda weights: {name: tensor * 1.01 for name, tensor in weights.items()})

    with pytest.raises(MergeError, match=r"other weights or another revision of the base \(.*different: model\.safetensors\)"):
        merge_adapter(other_base, adapter, out)


def test_another_tokenizer_is_refused_as_such(other_base: Path, adapter: Path, out: Path) -> None:
    tokenizer = json.loads((other_base / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other_base / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(MergeError, match=r"trained with another tokenizer \(.*different: tokenizer\.json\)"):
        merge_adapter(other_base, adapter, out)


def test_another_model_is_refused_for_both(other_base: Path, adapter: Path, out: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        (other_base / name).write_text((other_base / name).read_text() + "\n")

    with pytest.raises(MergeError, match=r"and another tokenizer \(.*different: config\.json, tokenizer\.json\)"):
        merge_adapter(other_base, adapter, out)


def test_an_adapter_with_other_tokens_than_its_base_is_refused(base: Path, adapter: Path, out: Path) -> None:
    tokenizer = load_tokenizer(adapter)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(adapter)

    with pytest.raises(MergeError, match="cuts text otherwise than its base's"):
        merge_adapter(base, adapter, out)


def test_an_adapter_whose_tokenizer_merges_otherwise_is_refused(base: Path, adapter: Path, out: Path) -> None:
    tokenizer = json.loads((adapter / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].reverse()
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(MergeError, match="cuts text otherwise than its base's"):
        merge_adapter(base, adapter, out)


def test_test_rows_of_another_data_set_are_refused(
    base: Path, adapter: Path, out: Path, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    other = tmp_path / "other"
    other.mkdir()

    with pytest.raises(MergeError, match="trained on another student_dataset"):
        merge_adapter(base, adapter, out, dataset=make_dataset(other, train=17))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"])
def test_an_adapter_that_lacks_a_file_is_refused(base: Path, adapter: Path, out: Path, name: str) -> None:
    (adapter / name).unlink()

    with pytest.raises(MergeError, match=f"lacks {name}: materialise lora_adapter again"):
        merge_adapter(base, adapter, out)


def test_an_adapter_without_a_record_of_its_base_is_refused(base: Path, adapter: Path, out: Path) -> None:
    (adapter / "base_identity.json").unlink()

    with pytest.raises(MergeError, match="its base is unknown: materialise lora_adapter again"):
        merge_adapter(base, adapter, out)


def test_a_record_that_says_too_little_is_refused(base: Path, adapter: Path, out: Path) -> None:
    (adapter / "base_identity.json").write_text('{"identity": "0123"}')

    with pytest.raises(MergeError, match="does not say files, load_in_4bit, trained_in"):
        merge_adapter(base, adapter, out)


def test_an_adapter_cut_short_is_refused(base: Path, adapter: Path, out: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])

    with pytest.raises(BaseModelError, match="not a whole safetensors file"):
        merge_adapter(base, adapter, out)


def test_an_adapter_for_another_architecture_is_refused(
    micro_config: TinyConfig, make_article: Callable[[int], str], adapter: Path, tmp_path: Path, out: Path
) -> None:
    from newsjuice_pipelines.podcast.training.base_model import base_identity

    wide = tmp_path / "wide"
    wide.mkdir()
    build_tiny(
        [make_article(number) for number in range(120)], replace(micro_config, intermediate_size=192, layers=1, steps=1), wide
    )
    record = json.loads((adapter / "base_identity.json").read_text())
    (adapter / "base_identity.json").write_text(json.dumps({**record, **base_identity(wide)}))

    with pytest.raises(MergeError, match=r"another architecture .*down_proj is 64 x 128, in the base 64 x 192"):
        merge_adapter(wide, adapter, out)


def test_half_a_pair_of_matrices_is_refused(base: Path, adapter: Path, out: Path) -> None:
    last = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    change_weights(adapter, "adapter_model.safetensors", lambda weights: {k: v for k, v in weights.items() if k != last})

    with pytest.raises(MergeError, match="up_proj has lora_A instead of lora_A and lora_B"):
        merge_adapter(base, adapter, out)


def test_weights_that_the_configuration_names_and_the_file_lacks_are_refused(base: Path, adapter: Path, out: Path) -> None:
    change_weights(
        adapter, "adapter_model.safetensors", lambda weights: {k: v for k, v in weights.items() if "layers.1.mlp" not in k}
    )

    with pytest.raises(MergeError, match=r"3 modules differ, such as model\.layers\.1\.mlp\.down_proj"):
        merge_adapter(base, adapter, out)


def test_weights_that_are_no_numbers_are_refused(base: Path, adapter: Path, out: Path) -> None:
    change_weights(adapter, "adapter_model.safetensors", lambda weights: {k: v * math.nan for k, v in weights.items()})

    with pytest.raises(MergeError, match="the sum of base and adapter is not finite"):
        merge_adapter(base, adapter, out)


def test_weights_too_large_for_float16_are_refused_with_a_way_out(base: Path, adapter: Path, out: Path) -> None:
    change_weights(adapter, "adapter_model.safetensors", lambda weights: {k: v * 1e4 for k, v in weights.items()})

    with pytest.raises(MergeError, match="does not fit into float16: set dtype to bfloat16 or float32"):
        merge_adapter(base, adapter, out, MergeConfig(dtype="float16"))


def test_a_number_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype 'int8' does not work: use one of float32, bfloat16, float16"):
        MergeConfig(dtype="int8")


def test_a_gate_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="gate_prompts=0"):
        MergeConfig(gate_prompts=0)


def test_a_data_set_without_test_rows_is_refused(base: Path, tuned: Made, dataset: Path, tmp_path: Path, out: Path) -> None:
    import pandas as pd

    with pytest.raises(MergeError, match=r"test\.parquet is missing"):
        merge_adapter(base, tuned[0], out, MergeConfig(), tmp_path)
    pd.read_parquet(dataset / "test.parquet").head(0).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(MergeError, match="0 rows and none with an answer"):
        merge_adapter(base, tuned[0], out, MergeConfig(), tmp_path)
