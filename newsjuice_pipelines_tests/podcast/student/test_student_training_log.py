"""What ends a run, what its history says, and how much memory a step is expected to take."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from newsjuice_pipelines.podcast.training.base_model import load_model
from newsjuice_pipelines.podcast.training.finetune_config import PRESETS, FinetuneConfig
from newsjuice_pipelines.podcast.training.training_log import (
    TrainingDiverged,
    TrainingLog,
    check_improvement,
    check_losses,
    patience_is_over,
    write_loss_curve,
)
from newsjuice_pipelines.podcast.training.training_memory import (
    activation_bytes,
    adapter_bytes,
    memory_advice,
    memory_errors,
    plan_checkpointing,
    sequences_a_step,
)
from newsjuice_pipelines.podcast.training.training_rows import FinetuneError

QWEN3_06B = SimpleNamespace(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)


def steps(losses: list[float]) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]


def epochs(losses: list[float]) -> list[dict[str, float]]:
    """A history with these validation losses: before training, then one an epoch."""
    return [{"step": 10 * epoch, "epoch": epoch, "eval_loss": loss} for epoch, loss in enumerate(losses)]


def test_a_loss_that_rises_for_many_steps_stops_the_run() -> None:
    with pytest.raises(
        TrainingDiverged, match=r"rises: 3\.00 nats .* 5\.00 over the last 20, up to step 30\. Lower the learning"
    ):
        check_losses(steps([3.0] * 10 + [5.0] * 20))


@pytest.mark.parametrize("losses", [[3.0] * 10 + [9.0] * 5, [3.0] * 10 + [3.0, 5.0] * 10, [3.0] * 10 + [2.0] * 20 + [9.0] * 3])
def test_a_short_or_noisy_rise_does_not(losses: list[float]) -> None:
    for count in range(len(losses)):
        check_losses(steps(losses[: count + 1]))


def test_a_loss_that_is_no_number_is_named_with_its_step() -> None:
    with pytest.raises(TrainingDiverged, match="eval_loss became nan at step 30"):
        check_losses([*epochs([3.0, 2.0, 1.0]), {"step": 30, "epoch": 3, "eval_loss": float("nan")}])


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ([3.0], False),
        ([3.0, 2.0, 1.9], False),
        ([3.0, 2.0, 2.1], False),
        ([3.0, 2.0, 2.1, 2.2], True),
        ([1.0, 2.0, 1.9], False),  # the value before training is none of the epochs
    ],
)
def test_patience_ends_after_two_epochs_without_a_lower_loss(losses: list[float], over: bool) -> None:
    assert patience_is_over(epochs(losses), patience_epochs=2) is over


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"original"}))
def test_a_preset_can_stop_before_its_last_epoch(preset: str) -> None:
    config = PRESETS[preset]
    rising = [2.0 + 0.1 * epoch for epoch in range(config.epochs - 1)]

    assert patience_is_over(epochs([3.0, *rising]), config.patience_epochs)


def test_the_original_never_stops_early() -> None:
    original = PRESETS["original"]

    assert not patience_is_over(epochs([3.0, 2.0, *[2.1] * (original.epochs - 1)]), original.patience_epochs)


def test_the_history_tells_the_loss_before_training_from_the_best() -> None:
    history = TrainingLog.history([*epochs([3.0, 2.0, 2.5]), *steps([4.0])])

    assert history["validation_loss_before"] == 3.0
    assert (history["best_validation_loss"], history["best_epoch"], history["best_step"]) == (2.0, 1, 10)
    check_improvement(history)


def test_no_improvement_on_the_untrained_model_is_an_error() -> None:
    with pytest.raises(TrainingDiverged, match=r"best validation loss is 3\.100 .* before training it was 3\.000"):
        check_improvement(TrainingLog.history(epochs([3.0, 3.1, 3.2])))


def test_the_loss_curve_is_drawn_for_a_run_of_one_step_too(tmp_path: Path) -> None:
    write_loss_curve(TrainingLog.history([*steps([4.0]), *epochs([3.0, 2.0])]), tmp_path / "curve.png")

    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_estimate_is_near_what_was_measured_at_the_true_size() -> None:
    measured_bytes_per_token_and_layer = 103_464  # Qwen3-0.6B shape, LoRA rank 32, fp32

    estimate = activation_bytes(QWEN3_06B, 2048, "float32", dropout=False)

    assert 1.0 <= estimate / (measured_bytes_per_token_and_layer * 28 * 2048) <= 1.5


@pytest.mark.parametrize(
    ("setting", "free_gib", "expected"),
    [("auto", 64, False), ("auto", 4, True), ("always", 64, True), ("never", 4, False)],
)
def test_activations_are_recomputed_only_where_memory_or_the_user_asks(
    setting: str, free_gib: int, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Model:
        config = QWEN3_06B

        def get_output_embeddings(self) -> None: ...

        def modules(self) -> Iterator[object]:
            return iter(())

    with caplog.at_level("INFO"):
        plan = plan_checkpointing(Model(), FinetuneConfig(activation_checkpointing=setting), "float32", 2048, free_gib * 2**30)

    assert plan.checkpointing is expected
    assert f"{plan.needed_mib:,} MiB without it, {plan.free_mib:,} MiB are free" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_exhausted_memory_names_the_settings_in_force(error: Exception) -> None:
    config = FinetuneConfig(batch_size=3, max_length=512)

    in_force = "batch_size 3, max_length 512, activation_checkpointing auto, load_in_4bit false"
    with pytest.raises(FinetuneError, match=in_force), memory_errors(config, "a device"):
        raise error


@pytest.mark.parametrize(
    ("device", "batch_size", "free_gib", "processes", "expected"),
    [
        ("cpu", 0, 900, 1, 1),
        ("cpu", 3, 900, 1, 3),
        ("cuda", 2, 0, 1, 2),
        ("cuda", 0, 900, 1, 8),
        ("cuda", 0, 900, 2, 4),
        ("cuda", 0, 0, 1, 1),
    ],
)
def test_a_gpu_takes_as_many_sequences_at_once_as_fit_and_a_cpu_one(
    base: Path, device: str, batch_size: int, free_gib: int, processes: int, expected: int
) -> None:
    config = FinetuneConfig(batch_size=batch_size)

    taken = sequences_a_step(load_model(base), config, "bfloat16", 1024, free_gib * 2**30, device, processes)

    assert taken == expected


def test_between_all_and_one_the_largest_divisor_that_fits_is_taken(base: Path) -> None:
    model, config = load_model(base), FinetuneConfig()
    needed = activation_bytes(model.config, 5 * 1024, "bfloat16", dropout=False) + adapter_bytes(model, config.lora_rank)

    assert sequences_a_step(model, config, "bfloat16", 1024, round(needed / 0.8), "cuda", 1) == 4


def test_advice_names_what_can_still_be_changed() -> None:
    advice = memory_advice(FinetuneConfig(batch_size=2, activation_checkpointing="never"), sharing=2)

    assert advice == (
        "In force: batch_size 2, max_length 1024, activation_checkpointing never, load_in_4bit false, processes 2. Lower "
        "processes (they share this memory), lower batch_size (and raise accumulation_steps as much), set "
        "activation_checkpointing to always, set load_in_4bit, or lower max_length (with the data set's max_tokens where rows "
        "are longer)."
    )


@pytest.mark.parametrize(("setting", "decided"), [("always", None), ("always", True), ("auto", True)])
def test_advice_leaves_out_what_is_done_already(setting: str, decided: bool | None) -> None:
    config = FinetuneConfig(batch_size=1, activation_checkpointing=setting, load_in_4bit=True)

    _, _, advice = memory_advice(config, checkpointing=decided).partition("load_in_4bit true. ")

    assert advice == "Lower max_length (with the data set's max_tokens where rows are longer)."


def test_advice_says_what_was_decided_automatically() -> None:
    assert "activation_checkpointing auto (on)" in memory_advice(FinetuneConfig(), checkpointing=True)
    assert "Set activation_checkpointing to always" in memory_advice(FinetuneConfig(), checkpointing=False)


def test_a_real_failed_allocation_is_recognised() -> None:
    import torch

    with pytest.raises(FinetuneError, match="did not suffice"), memory_errors(FinetuneConfig(), "cpu"):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(FinetuneConfig(), "cpu"):
        raise RuntimeError("shapes do not fit")
