from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
from newsjuice_pipelines.podcast.teaching.teacher_table import teacher_table
from newsjuice_pipelines.podcast.training.dataset import (
    DATASET_COLUMNS,
    SPLITS,
    DatasetConfig,
    DatasetError,
    build_student_dataset,
    group_rows,
    read_student_dataset,
    split_groups,
)


@pytest.fixture(scope="module")
def scripts(demo_articles: list[dict[str, Any]]) -> pd.DataFrame:
    chunks = pd.DataFrame(
        {
            "chunk_id": [f"{article['article_id']}:0" for article in demo_articles],
            "article_id": [article["article_id"] for article in demo_articles],
            "text": [article["content"] for article in demo_articles],
        }
    )
    teacher = ExtractiveTeacher()
    keys = list(chunks["chunk_id"])
    replies = {key: asyncio.run(teacher.ask(text, 1.0)) for key, text in zip(keys, chunks["text"], strict=True)}
    return teacher_table(chunks, keys, replies, teacher)


def ids(splits: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    return {name: frame["chunk_id"].tolist() for name, frame in splits.items()}


def test_the_demo_corpus_becomes_three_splits(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    facts = build_student_dataset(scripts, tokenizer, DatasetConfig(), tmp_path)
    splits = read_student_dataset(tmp_path)
    assert facts["rows"] == {name: len(splits[name]) for name in SPLITS}
    assert sum(facts["rows"].values()) == len(scripts)
    assert facts["rows"]["validation"] == facts["rows"]["test"] == 5
    assert tuple(splits["train"].columns) == DATASET_COLUMNS
    assert facts["tokens"]["total"]["max"] <= 1024


def test_messages_survive_the_parquet_file(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    build_student_dataset(scripts, tokenizer, DatasetConfig(), tmp_path)
    row = read_student_dataset(tmp_path)["test"].iloc[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert [dict(message) for message in row["completion"]] == [{"role": "assistant", "content": row["gemini_podcast_text"]}]


def test_the_split_does_not_depend_on_the_order_of_the_rows(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    (first := tmp_path / "first").mkdir()
    (second := tmp_path / "second").mkdir()
    build_student_dataset(scripts, tokenizer, DatasetConfig(), first)
    build_student_dataset(scripts.sample(frac=1, random_state=3), tokenizer, DatasetConfig(), second)
    assert ids(read_student_dataset(first)) == ids(read_student_dataset(second))


def test_another_seed_is_another_split(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    (first := tmp_path / "first").mkdir()
    (second := tmp_path / "second").mkdir()
    build_student_dataset(scripts, tokenizer, DatasetConfig(), first)
    build_student_dataset(scripts, tokenizer, DatasetConfig(seed=7), second)
    assert set(ids(read_student_dataset(first))["test"]) != set(ids(read_student_dataset(second))["test"])


def test_only_accepted_scripts_are_used_and_the_others_counted(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    marked = scripts.assign(status=["blocked"] * 3 + ["failed"] * 2 + ["ok"] * (len(scripts) - 5))
    facts = build_student_dataset(marked, tokenizer, DatasetConfig(), tmp_path)
    assert facts["dropped"]["status"] == {"blocked": 3, "failed": 2}
    assert sum(facts["rows"].values()) == len(scripts) - 5


def test_a_chunk_seen_in_two_partitions_is_used_once(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    facts = build_student_dataset(pd.concat([scripts, scripts[:4]]), tokenizer, DatasetConfig(), tmp_path)
    assert facts["dropped"]["repeated_chunk_id"] == 4
    assert sum(facts["rows"].values()) == len(scripts)


def test_the_row_limit_is_kept_and_counted(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    facts = build_student_dataset(scripts, tokenizer, DatasetConfig(row_limit=10), tmp_path)
    assert sum(facts["rows"].values()) == 10
    assert facts["dropped"]["over_row_limit"] == len(scripts) - 10


def test_scripts_too_long_for_the_budget_are_listed(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    longer = scripts.copy()
    longer.loc[0, "gemini_podcast_text"] = "This goes on and on. " * 400
    facts = build_student_dataset(longer, tokenizer, DatasetConfig(), tmp_path)
    assert facts["too_long_chunk_ids"] == [scripts.loc[0, "chunk_id"]]


def test_cut_articles_are_counted(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    facts = build_student_dataset(scripts, tokenizer, DatasetConfig(max_tokens=500), tmp_path)
    assert facts["articles_cut"] > 0
    assert facts["tokens"]["total"]["max"] <= 500


def test_a_near_copy_stays_with_its_original(demo_articles: list[dict[str, Any]]) -> None:
    text = demo_articles[0]["content"]
    copy = "Updated version. " + text.replace("seven", "eight")
    rows = [
        {"article_id": "a", "chunk_text": text},
        {"article_id": "b", "chunk_text": demo_articles[1]["content"]},
        {"article_id": "c", "chunk_text": copy},
    ]
    assert sorted(map(sorted, group_rows(rows))) == [[0, 2], [1]]


def test_a_shared_footer_does_not_join_articles(demo_articles: list[dict[str, Any]]) -> None:
    footer = " Subscribe to our newsletter for more stories from the campus, the town and the river valley every single week."
    rows = [{"article_id": str(index), "chunk_text": a["content"] + footer} for index, a in enumerate(demo_articles)]
    assert len(group_rows(rows)) == len(rows)


def test_two_chunks_of_one_article_stay_together() -> None:
    rows = [{"article_id": "a", "chunk_text": "one thing"}, {"article_id": "a", "chunk_text": "another thing"}]
    assert group_rows(rows) == [[0, 1]]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=40),
    seed=st.integers(0, 99),
    fraction=st.sampled_from([0.05, 0.1, 0.25]),
)
def test_every_split_has_a_row_and_no_group_is_torn(sizes: list[int], seed: int, fraction: float) -> None:
    config = DatasetConfig(validation_fraction=fraction, test_fraction=fraction, seed=seed)
    numbers = iter(range(sum(sizes)))
    groups = [[next(numbers) for _ in range(size)] for size in sizes]
    names = [f"row{number}" for number in range(sum(sizes))]
    parts = split_groups(groups, names, config)
    assert sorted(index for part in parts.values() for index in part) == list(range(sum(sizes)))
    where = {index: name for name, part in parts.items() for index in part}
    assert all(len({where[index] for index in group}) == 1 for group in groups)
    assert all(parts.values())
    random.Random(seed).shuffle(groups)
    assert split_groups(groups, names, config) == parts


def test_too_few_articles_are_refused_with_what_to_do(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"only 2 independent .* materialise more days"):
        build_student_dataset(scripts[:2], tokenizer, DatasetConfig(), tmp_path)


def test_scripts_without_one_accepted_are_refused_with_their_statuses(
    scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"no teacher script has status 'ok' \(\{'failed': 48\}\)"):
        build_student_dataset(scripts.assign(status="failed"), tokenizer, DatasetConfig(), tmp_path)


@pytest.mark.parametrize("wrong", [{"test_fraction": 0.0}, {"validation_fraction": 0.45}, {"row_limit": 2}, {"max_tokens": 0}])
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match="do not work"):
        DatasetConfig(**wrong)
