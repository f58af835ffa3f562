"""Real parts for the tests of the teacher's side: an embedded PostgreSQL, a byte-level BPE tokenizer, the demo articles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pandas as pd
import psycopg
import pytest

from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer
from newsjuice_pipelines.database.migrate import migrate
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.ledger import Ledger
from newsjuice_pipelines.podcast.training.tiny_model import CHAT_TEMPLATE


@pytest.fixture(scope="session")
def demo_articles() -> list[dict[str, Any]]:
    lines = files("newsjuice_pipelines").joinpath("demo", "articles.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def tokenizer(demo_articles: list[dict[str, Any]]) -> Any:
    """A small BPE with Qwen3's control tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((article["content"] for article in demo_articles), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def postgres_url(server_url: str) -> str:
    """The session's PostgreSQL."""
    return server_url


@pytest.fixture
def connection(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def ledger_url(empty_database: str) -> str:
    """A new database with the ledger's tables."""
    with psycopg.connect(empty_database) as opened:
        migrate(opened, "ledger")
    return empty_database


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """A ledger in a database of its own."""
    opened = Ledger(lambda: psycopg.connect(ledger_url), outage_s=20)
    yield opened
    opened.close()


@pytest.fixture
def gemini() -> Iterator[GeminiServer]:
    """A local server that speaks Gemini's protocol."""
    with GeminiServer() as server:
        yield server


@pytest.fixture
def gemini_teacher(gemini: GeminiServer) -> GeminiTeacher:
    """The paid teacher on the local server, with a model whose price is known."""
    return GeminiTeacher(gemini.client, "gemini-3.1-flash-lite")


@pytest.fixture
def chunks_of(demo_articles: list[dict[str, Any]]) -> Callable[[int], pd.DataFrame]:
    """That many different chunks, made from the demo articles."""

    def make(count: int) -> pd.DataFrame:
        texts = [demo_articles[number % len(demo_articles)]["content"][:900] for number in range(count)]
        return pd.DataFrame(
            {
                "chunk_id": [f"a{number}:0" for number in range(count)],
                "article_id": [f"a{number}" for number in range(count)],
                "text": [f"Report number {number}. {text}" for number, text in enumerate(texts)],
            }
        )

    return make
