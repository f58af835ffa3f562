"""A really trained micro Qwen3, a small data set, and an adapter tuned on it: made once for the student's tests."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat import tokenizer_fingerprint
from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig, train_adapter
from newsjuice_pipelines.podcast.training.merge import merge_adapter
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny

MICRO = TinyConfig(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=128,
    layers=2,
    heads=4,
    key_value_heads=2,
    context_tokens=512,
    steps=80,
    batch_size=4,
    sequence_tokens=64,
    learning_rate=5e-3,
)
TUNING = FinetuneConfig(
    lora_rank=16, lora_alpha=32, epochs=12, learning_rate=5e-3, max_length=256, packing=False, batch_size=2, accumulation_steps=1
)
PLACES = ("the harbour", "the town hall", "the old library", "the river bank", "the market square")
PEOPLE = ("The mayor", "A teacher", "The council", "A young engineer", "The museum")
DEEDS = ("opened a new bridge", "painted a long wall", "counted the birds", "repaired an old clock", "planted thirty trees")
DAYS = ("on Monday", "on Tuesday", "last week", "in the spring", "before the rain")


def article(number: int) -> str:
    """A made-up article of four short sentences, always the same for one number."""
    generator = random.Random(number)
    choose = generator.choice
    return " ".join(f"{choose(PEOPLE)} {choose(DEEDS)} at {choose(PLACES)} {choose(DAYS)}." for _ in range(4))


@pytest.fixture(scope="session")
def micro_config() -> TinyConfig:
    """Shape and steps of the micro base model."""
    return MICRO


@pytest.fixture(scope="session")
def tuning() -> FinetuneConfig:
    """How the session's adapter was trained."""
    return TUNING


@pytest.fixture(scope="session")
def make_article() -> Callable[[int], str]:
    """Writes the made-up article of a number."""
    return article


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro base model."""
    folder = tmp_path_factory.mktemp("base")
    build_tiny([article(number) for number in range(120)], MICRO, folder)
    return folder


@pytest.fixture(scope="session")
def make_dataset(base: Path) -> Callable[..., Path]:
    """Writes a student data set for the micro base model into a folder."""
    return partial(write_dataset, base)


def write_dataset(base: Path, folder: Path, train: int = 16, validation: int = 3, test: int = 4) -> Path:
    """A student data set in the layout that training reads."""
    record = {"tokenizer": tokenizer_fingerprint(load_tokenizer(base))}
    (folder / "dataset.json").write_text(json.dumps(record), encoding="utf-8")
    first = 1000
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        rows: list[dict[str, Any]] = []
        for number in range(first, first + count):
            text = article(number)
            script = f"Hello. {text.partition('.')[0]}. Goodbye."
            rows.append(
                {
                    "chunk_id": f"a{number}:0",
                    "article_id": f"a{number}",
                    "chunk_text": text,
                    "gemini_podcast_text": script,
                    "prompt": [{"role": "system", "content": "Write a script."}, {"role": "user", "content": text}],
                    "completion": [{"role": "assistant", "content": script}],
                }
            )
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
        first += count
    return folder


@pytest.fixture(scope="session")
def dataset(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student data set of 16 + 3 + 4 rows."""
    return write_dataset(base, tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def tuned(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A trained adapter and its facts."""
    folder = tmp_path_factory.mktemp("adapter")
    return folder, train_adapter(base, dataset, TUNING, folder, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def merged(
    base: Path, dataset: Path, tuned: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The merged model and its facts."""
    folder = tmp_path_factory.mktemp("merged")
    return folder, merge_adapter(base, tuned[0], folder, dataset=dataset)
