"""The rows of the tuning benchmark: articles with their scripts as each recipe trained on them, and which tokens are useful.

Useful are the tokens of article and script; instruction, chat template, end token and padding are not.
"""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
from newsjuice_pipelines.podcast.teaching.prompts import render_prompt
from newsjuice_pipelines.podcast.training.chat import tokenizer_fingerprint, training_messages
from newsjuice_pipelines.podcast.training.chat_tokens import encode_example
from newsjuice_pipelines.podcast.training.dataset import DATASET_RECORD
from newsjuice_pipelines.runtime.reports import write_json

MAX_TOKENS = 1024  # of a row; what is longer loses its end in the original's recipe, and a part of its article in ours
DEMO_WORDS = (320, 420)  # about 500 to 700 tokens of the tokenizer made here
DEMO_SCRIPT_WORDS = 130  # with the frame about 250 tokens
_MARK = "ARTICLE-GOES-HERE"

Pair = tuple[str, str]


def pairs(data: Path | None = None) -> list[Pair]:
    """Articles with their scripts.

    Without `data`: the demo articles, two joined into one and cut to `DEMO_WORDS`, with the extractive teacher's scripts.

    Args:
        data: a `teacher_scripts` CSV, or a JSONL with the article in `content` (these get extractive scripts too).

    Raises:
        ValueError: the file holds no usable row.
    """
    if data is not None and data.suffix == ".csv":
        with data.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("status", "ok") == "ok"]
        found = [(row["chunk_text"], row["gemini_podcast_text"]) for row in rows]
    else:
        articles = _contents(data) if data is not None else list(_demo_articles())
        found = _with_scripts(articles)
    if not found:
        raise ValueError(f"{data} has no article with a script: give a teacher_scripts CSV, or a JSONL with 'content'.")
    return found


def write_rows(rows: Sequence[Pair], tokenizer: Any, prompt_version: str, out: Path) -> int:
    """Write `rows` as a student data set that training reads; the first is the validation row too. Returns how many there are.

    `short` prompts hold as much of the article as fits into `MAX_TOKENS`; `original` ones all of it.
    """
    import pandas as pd

    records: list[dict[str, Any]] = []
    for number, (article, script) in enumerate(rows):
        limit = MAX_TOKENS if prompt_version == "short" else None
        messages = training_messages(article, script, tokenizer, limit, prompt_version)
        if messages is not None:
            prompt, completion = messages
            records.append({"chunk_id": f"{number}:0", "chunk_text": article, "prompt": prompt, "completion": completion})
    if not records:
        raise ValueError(f"no script leaves room for its article within {MAX_TOKENS} tokens: give shorter scripts.")
    pd.DataFrame(records).to_parquet(out / "train.parquet", index=False)
    pd.DataFrame(records[:1]).to_parquet(out / "validation.parquet", index=False)
    write_json(out / DATASET_RECORD, {"tokenizer": tokenizer_fingerprint(tokenizer), "prompt_version": prompt_version})
    return len(records)


def useful_tokens(dataset: Path, tokenizer: Any, max_length: int) -> dict[tuple[int, ...], int]:
    """How many tokens of article and script each training row holds, by its token ids; rows end at `max_length`.

    Args:
        dataset: a folder that `write_rows` filled.
        tokenizer: as training uses it, with the template that it trains with.
    """
    import pandas as pd

    version = json.loads((dataset / DATASET_RECORD).read_text(encoding="utf-8"))["prompt_version"]
    table = pd.read_parquet(dataset / "train.parquet", columns=["prompt", "completion"])
    counts = {}
    for prompt, completion in table.itertuples(index=False):
        ids, _ = encode_example(tokenizer, list(prompt), list(completion))
        useful = _useful_positions(tokenizer, list(prompt), list(completion), _article_in(prompt[-1]["content"], version))
        counts[tuple(ids[:max_length])] = sum(position < max_length for position in useful)
    return counts


def rows_of_batch(batch: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """Token ids of the rows in a device batch, packed or padded, padding left out."""
    if "position_ids" in batch:  # packed: each row counts its positions from 0
        ids, positions = batch["input_ids"].flatten().tolist(), batch["position_ids"].flatten().tolist()
        starts = [index for index, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield tuple(ids[start:end])
    else:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            yield tuple(ids[mask.bool()].tolist())


def _useful_positions(
    tokenizer: Any, prompt: Sequence[Mapping[str, str]], completion: Sequence[Mapping[str, str]], article: str
) -> list[int]:
    """Where in a row's ids the article's and the script's tokens are."""
    rendered = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True, enable_thinking=False)
    offsets = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first = rendered.index(article)
    last = first + len(article)
    of_article = [position for position, (start, end) in enumerate(offsets) if start < last and end > first]
    script_tokens = len(tokenizer(completion[0]["content"], add_special_tokens=False)["input_ids"])
    return [*of_article, *range(len(offsets), len(offsets) + script_tokens)]


def _article_in(asked: str, prompt_version: str) -> str:
    """The article within the user's message."""
    if prompt_version == "short":
        return asked
    before, _, after = render_prompt(prompt_version, _MARK).partition(_MARK)
    return asked.removeprefix(before.lstrip()).removesuffix(after.rstrip())


def _with_scripts(articles: Sequence[str]) -> list[Pair]:
    teacher = ExtractiveTeacher(body_words=DEMO_SCRIPT_WORDS)

    async def ask() -> list[Pair]:
        replies = [(article, await teacher.ask(article, timeout_s=60)) for article in articles]
        return [(article, reply.text) for article, reply in replies if reply.status == "ok"]

    return asyncio.run(ask())


def _demo_articles() -> Iterator[str]:
    texts = _contents(DEMO_ARTICLES)
    least, most = DEMO_WORDS
    for number in range(0, len(texts) - 1, 2):
        words = f"{texts[number]} {texts[number + 1]}".split()
        yield " ".join(words[: least + number * (most - least) // len(texts)])


def _contents(file: Path) -> list[str]:
    return [json.loads(line)["content"] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
