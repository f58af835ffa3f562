"""The tuning benchmark: what it counts, against counts by hand, and that its table is whole, on models of no size."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks import finetune
from newsjuice_pipelines.benchmarks.finetune_rows import pairs, rows_of_batch, useful_tokens, write_rows
from newsjuice_pipelines.benchmarks.finetune_steps import Job, matmul_flops_per_s, measure, model_flops
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import PLAIN_TEMPLATE, encode_example
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny

MICRO = TinyConfig(
    vocab_size=384, hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=1, steps=1, sequence_tokens=32
)
ARTICLE = "The mayor opened a new bridge at the harbour on Monday. A teacher painted a long wall near the river bank."
SCRIPT = "Welcome. The mayor opened a new bridge. Goodbye."


@pytest.fixture(autouse=True)
def _gpu_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement hides the GPU from its process, which is the tests' own here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def micro_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro")
    build_tiny([f"{number}. {ARTICLE} {SCRIPT}" for number in range(20)], MICRO, folder)
    return folder


@pytest.fixture
def tokenizer(micro_base: Path) -> Any:
    return load_tokenizer(micro_base)


def count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("version", ["short", "original"])
@pytest.mark.parametrize("plain", [False, True])
def test_useful_are_the_tokens_of_article_and_script_alone(tokenizer: Any, tmp_path: Path, version: str, plain: bool) -> None:
    write_rows([(ARTICLE, SCRIPT)], tokenizer, version, tmp_path)
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE

    ((ids, useful),) = useful_tokens(tmp_path, tokenizer, 4096).items()

    # A line break before or after the article may share a token with it, hence at most one token on each side.
    assert 0 <= useful - count(tokenizer, ARTICLE) - count(tokenizer, SCRIPT) <= 2
    assert useful < len(ids)


def test_tokens_of_a_script_behind_the_cut_are_not_useful(tokenizer: Any, tmp_path: Path) -> None:
    write_rows([(ARTICLE, SCRIPT)], tokenizer, "original", tmp_path)
    ((whole, useful),) = useful_tokens(tmp_path, tokenizer, 4096).items()
    lost_of_script, end_token = 3, 1

    ((cut, useful_when_cut),) = useful_tokens(tmp_path, tokenizer, len(whole) - end_token - lost_of_script).items()

    assert cut == whole[: len(cut)]
    assert useful_when_cut == useful - lost_of_script


def test_a_cut_within_the_article_leaves_what_is_before_it(tokenizer: Any, tmp_path: Path) -> None:
    write_rows([(ARTICLE, SCRIPT)], tokenizer, "short", tmp_path)
    ((ids, _),) = useful_tokens(tmp_path, tokenizer, 4096).items()
    before = next(start for start in range(len(ids)) if tokenizer.decode(ids[start:]).startswith("The mayor"))

    ((_, useful),) = useful_tokens(tmp_path, tokenizer, before + 5).items()

    assert useful == 5


def test_rows_are_found_again_in_packed_and_in_padded_batches() -> None:
    import torch

    packed = {"input_ids": torch.tensor([[1, 2, 3, 7, 8]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    padded = {"input_ids": torch.tensor([[1, 2, 3], [7, 8, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}

    assert list(rows_of_batch(packed)) == [(1, 2, 3), (7, 8)]
    assert list(rows_of_batch(padded)) == [(1, 2, 3), (7, 8)]


@pytest.mark.parametrize("recipe", ["original", "ours"])
def test_a_run_trains_on_the_rows_and_counts_them_all(micro_base: Path, tokenizer: Any, tmp_path: Path, recipe: str) -> None:
    version, config = finetune.RECIPES[recipe]
    rows = [(f"Report {number}. {ARTICLE}", SCRIPT) for number in range(4)]
    write_rows(rows, tokenizer, version, tmp_path)
    config = replace(config, accumulation_steps=4 if recipe == "original" else 1, max_length=4096, load_in_4bit=False)

    counted = measure(Job(micro_base, tmp_path, config, steps=1, warmup_steps=1, gpu=False))

    assert counted["steps"] == 1
    assert counted["rows"] == 4
    assert counted["useful_tokens"] == sum(useful_tokens(tmp_path, _as_trained(tokenizer, recipe), 4096).values())
    answers = sum(_labels(tokenizer, tmp_path))
    assert counted["labels"] == (counted["positions"] if recipe == "original" else answers)
    assert counted["wall_s"] > 0
    assert counted["peak_memory_mib"] > 0
    assert counted["matmul_flops_per_s"] is None


def test_a_frozen_weight_costs_four_operations_a_token_and_the_head_only_where_it_is_scored() -> None:
    from transformers import Qwen3Config

    shape = Qwen3Config(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        vocab_size=10,
    )
    weights = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16  # queries, keys, values, output, feed-forward

    without_attention = model_flops(shape, 7, [(3, 2)]) - 6 * 8 * 3**2

    assert without_attention == 3 * (4 * weights + 6 * 7) + 2 * 4 * 8 * 10


def test_the_peak_of_a_device_is_measured() -> None:
    assert 1e6 < matmul_flops_per_s("cpu", size=64, repeats=3) < 1e15


def test_demo_rows_are_as_long_as_those_of_the_job() -> None:
    rows = pairs()

    assert len(rows) >= 20
    assert all(320 <= len(article.split()) <= 420 for article, _ in rows)
    assert all(100 <= len(script.split()) <= 200 for _, script in rows)


def test_the_table_is_whole_and_says_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "in_own_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(finetune, "has_gpu", lambda: False)
    settings = {
        "tiny, CPU": finetune.Setting("tiny", gpu=False, steps=1, warmup_steps=0, device_steps=1),
        "Qwen3-0.6B shape, GPU": finetune.SETTINGS["Qwen3-0.6B shape, GPU"],
    }

    results = finetune.run(repeats=2, settings=settings, tiny=MICRO, shape=MICRO_SHAPE)
    lines = finetune.table(results).splitlines()

    assert lines[0] == "| median of 2 | tiny, CPU | Qwen3-0.6B shape, CPU | Qwen3-0.6B shape, GPU |"
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:] if "|" in line}
    assert len(cells) == 14
    for name, (tiny, *others) in cells.items():
        assert others == ["not measured"] * 2, name
        assert (tiny == "not measured") == ("peak" in name.replace("peak memory", "") or "whole job" in name), name
    assert len(results["measured"]["tiny, CPU"]["runs"]["ours"]) == 2


def test_the_direct_start_needs_neither_dagster_nor_a_database() -> None:
    code = (
        "import sys, newsjuice_pipelines.benchmarks.finetune, newsjuice_pipelines.podcast.training.finetune\n"
        "print([name for name in ('dagster', 'psycopg', 'datasketch', 'torch', 'wandb') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


MICRO_SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def _as_trained(tokenizer: Any, recipe: str) -> Any:
    if recipe == "original":
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def _labels(tokenizer: Any, dataset: Path) -> list[int]:
    import pandas as pd

    table = pd.read_parquet(dataset / "train.parquet")
    return [
        sum(label != -100 for label in encode_example(tokenizer, list(prompt), list(completion))[1])
        for prompt, completion in zip(table["prompt"], table["completion"], strict=True)
    ]
