"""The merge gate: right merges pass in every number format, wrong ones do not, and its figures mean what they say."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from newsjuice_pipelines.podcast.training.adapter_files import read_base_record
from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.finetune import BASE_RECORD, FinetuneConfig, train_adapter
from newsjuice_pipelines.podcast.training.merge import MergeConfig, adapted_model, held_out_examples, merge_adapter, run_gate
from newsjuice_pipelines.podcast.training.merge_gate import NotFiniteError, judge_merge, measure_prompt

Made = tuple[Path, dict[str, Any]]
Change = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def quantised(base: Path, dataset: Path, tuning: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained over 4-bit weights."""
    pytest.importorskip("bitsandbytes", reason="the gpu extra is not installed")
    adapter = tmp_path_factory.mktemp("quantised")
    train_adapter(base, dataset, replace(tuning, epochs=2, load_in_4bit=True), adapter, tmp_path_factory.mktemp("scratch"))
    return adapter


def with_changed_weights(adapter: Path, folder: Path, change: Change) -> Path:
    """A copy of the adapter whose tensors went through `change(name, tensor)`."""
    from safetensors.torch import load_file, save_file

    copied = Path(shutil.copytree(adapter, folder))
    weights = load_file(copied / "adapter_model.safetensors")
    changed = {name: change(name, tensor).contiguous() for name, tensor in weights.items()}
    save_file(changed, copied / "adapter_model.safetensors", metadata={"format": "pt"})
    return copied


def times(factor: float, where: str = "lora_B") -> Change:
    return lambda name, tensor: tensor * factor if where in name and "lora_B" in name else tensor


def gate_of(base: Path, adapter: Path, merged_from: Path, dataset: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """The gate's verdict over `adapter` when the merged model was made from the adapter `merged_from`."""
    folder.mkdir()
    merge_adapter(base, merged_from, folder, MergeConfig(dtype=dtype))
    examples = held_out_examples(dataset, load_tokenizer(adapter), 4)
    exact = adapted_model(base, adapter, read_base_record(adapter))
    return run_gate(exact, load_model(folder, dtype), dtype, examples, folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_merge_passes(base: Path, dataset: Path, tuned: Made, tmp_path: Path, dtype: str) -> None:
    gate = merge_adapter(base, tuned[0], tmp_path, MergeConfig(dtype=dtype), dataset)["gate"]

    assert gate["passed"], gate["failed"]
    assert gate["prompts"] == 4
    assert gate["positions"] > 40
    assert gate["measures"]["effect_kept"]["value"] == pytest.approx(1, abs=0.02)


def test_the_error_of_a_right_merge_is_that_of_its_number_format(
    base: Path, dataset: Path, tuned: Made, tmp_path: Path, merged: Made
) -> None:
    exact = merged[1]["gate"]["measures"]["relative_error"]
    rounded = merge_adapter(base, tuned[0], tmp_path, MergeConfig(dtype="bfloat16"), dataset)["gate"]["measures"][
        "relative_error"
    ]

    assert exact["value"] < 1e-5
    assert exact["reference"] == 0
    assert 1e-3 < rounded["value"] < rounded["limit"] < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_over_four_bits_passes_in_the_dequantised_base(
    base: Path, dataset: Path, quantised: Path, tmp_path: Path, dtype: str
) -> None:
    facts = merge_adapter(base, quantised, tmp_path, MergeConfig(dtype=dtype), dataset)

    assert facts["dequantised_base"] is True
    assert facts["gate"]["passed"], facts["gate"]["failed"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_original_merge_into_four_bits_does_not_pass(
    base: Path, dataset: Path, quantised: Path, tmp_path: Path, dtype: str
) -> None:
    facts = merge_adapter(base, quantised, tmp_path, MergeConfig(dtype=dtype, into_4bit=True), dataset)

    assert facts["gate"]["failed"][:2] == ["relative_error", "kl_nats"]
    assert "did not pass" in (tmp_path / "README.md").read_text()
    assert load_model(tmp_path, dtype).config.vocab_size  # what was lost is in the weights, and these load as any others


def test_a_gentle_adapter_is_mostly_lost_in_four_bits_and_kept_in_the_dequantised_base(
    base: Path, dataset: Path, quantised: Path, tmp_path: Path
) -> None:
    gentle = with_changed_weights(quantised, tmp_path / "gentle", times(0.01))
    kept = {}
    for into_4bit in (False, True):
        out = tmp_path / str(into_4bit)
        out.mkdir()
        facts = merge_adapter(base, gentle, out, MergeConfig(into_4bit=into_4bit), dataset)
        kept[into_4bit] = facts["gate"]["measures"]["effect_kept"]

    assert kept[False]["value"] == pytest.approx(1, abs=1e-2)
    assert kept[True]["value"] < kept[True]["limit"] == 0.9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "change", [times(0.5), times(0.9), times(2.0), times(0.0, "layers.0")], ids=["half", "0.9", "twice", "half the blocks"]
)
def test_a_merge_of_less_or_more_than_the_adapter_does_not_pass(
    base: Path, dataset: Path, tuned: Made, tmp_path: Path, change: Change, dtype: str
) -> None:
    wrong = with_changed_weights(tuned[0], tmp_path / "wrong", change)

    gate = gate_of(base, tuned[0], wrong, dataset, dtype, tmp_path / "out")

    assert not gate["passed"]
    assert {"relative_error", "kl_nats"} <= set(gate["failed"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_over_four_bits_does_not_pass_in_the_original_weights(
    base: Path, dataset: Path, quantised: Path, tmp_path: Path, dtype: str
) -> None:
    pretended = Path(shutil.copytree(quantised, tmp_path / "pretended"))
    record = json.loads((pretended / BASE_RECORD).read_text())
    (pretended / BASE_RECORD).write_text(json.dumps({**record, "load_in_4bit": False}))

    gate = gate_of(base, quantised, pretended, dataset, dtype, tmp_path / "out")

    assert gate["failed"][:2] == ["relative_error", "kl_nats"]


def test_an_adapter_that_changes_nothing_does_not_pass(base: Path, dataset: Path, tuned: Made, tmp_path: Path) -> None:
    idle = with_changed_weights(tuned[0], tmp_path / "idle", times(0.0))
    out = tmp_path / "out"
    out.mkdir()

    gate = merge_adapter(base, idle, out, MergeConfig(), dataset)["gate"]

    assert gate["failed"] == ["effect_kept", "effect_not_exceeded"]
    assert gate["measures"]["effect_kept"]["value"] is None


def test_the_figures_of_single_prompts_are_in_a_file(merged: Made) -> None:
    written = json.loads((merged[0] / "merge_gate.json").read_text())

    assert len(written["by_prompt"]) == merged[1]["gate"]["prompts"] == 4
    errors = [one["measures"]["relative_error"]["value"] for one in written["by_prompt"]]
    lowest, _, highest = merged[1]["gate"]["measures"]["relative_error"]["by_prompt"]
    assert (lowest, highest) == (min(errors), max(errors))


def test_kept_effect_is_the_part_of_the_adapters_direction() -> None:
    generator = torch.Generator().manual_seed(1)
    base, effect = (torch.randn(5, 30, generator=generator) for _ in range(2))

    for part in (0.0, 0.25, 1.0):
        judged = judge_merge([measure_prompt(base, base + effect, base + part * effect)])
        assert judged.measures["effect_kept"].value == pytest.approx(part, abs=1e-5)


def test_a_weak_adapter_merged_at_twice_its_strength_does_not_pass() -> None:
    generator = torch.Generator().manual_seed(3)
    base, effect, first, second = (torch.randn(200, 30, generator=generator) for _ in range(4))
    adapter = base + 0.03 * effect  # weaker than what the number format changes

    twice = measure_prompt(base, adapter, adapter + 0.03 * effect + 0.1 * first, adapter + 0.1 * second)
    once = measure_prompt(base, adapter, adapter + 0.1 * first, adapter + 0.1 * second)

    assert judge_merge([twice]).as_json()["failed"] == ["effect_not_exceeded"]
    assert judge_merge([once]).measures["effect_not_exceeded"].passed


def test_a_shift_of_all_logits_of_a_position_is_no_error() -> None:
    generator = torch.Generator().manual_seed(2)
    base, adapter = (torch.randn(70, 30, generator=generator) for _ in range(2))
    shift = torch.randn(70, 1, generator=generator) * 50

    judged = judge_merge([measure_prompt(base, adapter, adapter + shift)])

    assert judged.passed
    assert judged.measures["relative_error"].value == pytest.approx(0, abs=1e-5)


def test_divergence_is_measured_from_the_adapter_to_the_merged_model() -> None:
    adapter, merged = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()

    judged = judge_merge([measure_prompt(torch.zeros(1, 2), adapter, merged)])

    assert judged.measures["kl_nats"].value == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_a_merge_may_be_half_as_wrong_again_as_its_format_and_no_more() -> None:
    generator = torch.Generator().manual_seed(3)
    base, adapter, noise = (torch.randn(40, 50, generator=generator) for _ in range(3))

    def judged(factor: float) -> Any:
        return judge_merge([measure_prompt(base, adapter, adapter + factor * 0.01 * noise, adapter + 0.01 * noise)])

    assert judged(1.4).measures["relative_error"].passed
    assert not judged(1.6).measures["relative_error"].passed


def test_one_flipped_token_in_few_positions_is_noise_and_five_are_not() -> None:
    adapter = torch.eye(60, 61) * 9

    def agreement(flipped: int) -> Any:
        merged = adapter.clone()
        merged[:flipped, 60] = 10
        return judge_merge([measure_prompt(torch.zeros(60, 61), adapter, merged)]).measures["top1_agreement"]

    assert agreement(1).passed
    assert not agreement(5).passed


def test_a_few_flipped_tokens_more_than_the_format_flips_are_noise_and_many_are_not() -> None:
    adapter = torch.eye(744, 50) + 1  # as measured on Qwen3-0.6B's shape in bfloat16: 7 of 744 flipped by the format

    def agreement(flipped: int) -> Any:
        rounded, merged = adapter.clone(), adapter.clone()
        rounded[:7, 49], merged[-flipped:, 49] = 3, 3
        return judge_merge([measure_prompt(torch.zeros(744, 50), adapter, merged, rounded)]).measures["top1_agreement"]

    assert agreement(14).passed
    assert not agreement(25).passed


def test_logits_that_are_no_numbers_are_not_compared() -> None:
    broken = torch.tensor([[math.nan, 1.0]])

    with pytest.raises(NotFiniteError, match="logits of the merged model are not finite"):
        measure_prompt(torch.zeros(1, 2), torch.ones(1, 2), broken)


def test_a_gate_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        judge_merge([])
