from __future__ import annotations

import asyncio
import copy
import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
from newsjuice_pipelines.podcast.teaching.teacher_table import teacher_table
from newsjuice_pipelines.podcast.training.chat import tokenizer_fingerprint
from newsjuice_pipelines.podcast.training.dataset import (
    DATASET_COLUMNS,
    DATASET_PRESETS,
    SPLITS,
    DatasetConfig,
    DatasetError,
    build_student_dataset,
    read_dataset_record,
    read_student_dataset,
    rows_without_end,
)
from newsjuice_pipelines.podcast.training.split import shared_between_sides


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


@pytest.fixture(scope="module")
def built(scripts: pd.DataFrame, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the facts of the data set with the default configuration."""
    folder = tmp_path_factory.mktemp("dataset")
    return folder, build_student_dataset(scripts, tokenizer, DatasetConfig(), folder)


def ids(splits: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    return {name: frame["chunk_id"].tolist() for name, frame in splits.items()}


def test_the_demo_corpus_becomes_three_splits(scripts: pd.DataFrame, built: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = built
    splits = read_student_dataset(folder)
    assert facts["rows"] == {name: len(splits[name]) for name in SPLITS}
    assert sum(facts["rows"].values()) == len(scripts)
    assert facts["rows"]["validation"] == facts["rows"]["test"] == 5
    assert tuple(splits["train"].columns) == DATASET_COLUMNS
    assert facts["tokens"]["total"]["max"] <= 1024


def test_messages_survive_the_parquet_file(built: tuple[Path, dict[str, Any]]) -> None:
    row = read_student_dataset(built[0])["test"].iloc[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert [dict(message) for message in row["completion"]] == [{"role": "assistant", "content": row["gemini_podcast_text"]}]


def test_the_data_set_does_not_depend_on_the_order_of_the_rows(
    scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    build_student_dataset(scripts.sample(frac=1, random_state=3), tokenizer, DatasetConfig(), tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 7
    assert all((tmp_path / name).read_bytes() == (built[0] / name).read_bytes() for name in files)


def test_another_seed_is_another_split(
    scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    build_student_dataset(scripts, tokenizer, DatasetConfig(seed=7), tmp_path)
    assert set(ids(read_student_dataset(built[0]))["test"]) != set(ids(read_student_dataset(tmp_path))["test"])


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


def left_out(folder: Path) -> list[dict[str, str]]:
    with (folder / "left_out.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_row_that_is_left_out_is_listed_with_its_reason(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    marked = scripts.assign(status=["blocked", "rejected", *["ok"] * (len(scripts) - 2)])
    marked.loc[2, "gemini_podcast_text"] = "This goes on and on. " * 400
    several = pd.concat([marked, marked[5:6]])
    facts = build_student_dataset(several, tokenizer, DatasetConfig(row_limit=40), tmp_path)
    listed = left_out(tmp_path)
    reasons = {row["chunk_id"]: row["reason"] for row in listed}
    first, second, third, _, _, again = marked["chunk_id"][:6]
    assert (reasons[first], reasons[second]) == ("status blocked", "status rejected")
    assert reasons[third] == "too_long"
    assert reasons[again] in ("repeated_chunk_id", "over_row_limit")
    assert [int(row["tokens"]) > 1024 for row in listed if row["reason"] == "too_long"] == [True]
    assert len(listed) + sum(facts["rows"].values()) == facts["rows_in"] == len(several)
    dropped = facts["dropped"]
    assert sum(dropped["status"].values()) + sum(dropped[name] for name in dropped if name != "status") == len(listed)


def test_of_one_chunk_the_same_row_is_used_whatever_the_order(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    other = scripts[:6].assign(gemini_podcast_text="Another script about it. Goodbye.")
    found = []
    for name, table in (("first", [scripts[:12], other]), ("second", [other, scripts[:12]])):
        (tmp_path / name).mkdir()
        build_student_dataset(pd.concat(table), tokenizer, DatasetConfig(), tmp_path / name)
        found.append(
            {name: frame["gemini_podcast_text"].tolist() for name, frame in read_student_dataset(tmp_path / name).items()}
        )
    assert found[0] == found[1]


def test_near_duplicates_are_dealt_out_together(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    copies = scripts.assign(
        chunk_id=scripts["chunk_id"] + "b", article_id=scripts["article_id"] + "b", chunk_text="Updated. " + scripts["chunk_text"]
    )
    facts = build_student_dataset(pd.concat([scripts, copies]), tokenizer, DatasetConfig(), tmp_path)
    assert facts["groups"] == len(scripts)
    assert facts["largest_group"] == 2
    assert facts["leaked_rows"] == 0


def test_the_folder_shows_the_rows_before_training(built: tuple[Path, dict[str, Any]]) -> None:
    page = (built[0] / "masked_rows.md").read_text(encoding="utf-8")
    for script in read_student_dataset(built[0])["train"]["gemini_podcast_text"][:2]:
        assert f"```text\n{script}<|im_end|>\n```" in page
    assert (built[0] / "token_lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_says_which_tokenizer_and_configuration_made_it(built: tuple[Path, dict[str, Any]], tokenizer: Any) -> None:
    folder, facts = built
    record = read_dataset_record(folder)
    assert record["tokenizer"] == tokenizer_fingerprint(tokenizer)
    assert DatasetConfig(**record["config"]) == DatasetConfig()
    assert record["rows"] == facts["rows"]


def test_a_folder_without_its_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="materialise 'student_dataset' again"):
        read_dataset_record(tmp_path)


def test_rows_without_their_end_token_are_named(
    scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    train = read_student_dataset(built[0])["train"]
    assert built[1]["rows_without_end_token"] == 0
    assert rows_without_end(train, tokenizer) == []
    endless = copy.deepcopy(tokenizer)
    endless.chat_template = tokenizer.chat_template.replace("lstrip('\\n') + '<|im_end|>\\n'", "lstrip('\\n')")
    assert endless.chat_template != tokenizer.chat_template
    assert rows_without_end(train, endless) == train["chunk_id"].tolist()
    facts = build_student_dataset(scripts[:10], endless, DatasetConfig(), tmp_path)
    assert facts["rows_without_end_token"] == 10


def test_the_original_preset_has_its_split_and_its_prompt(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    preset = DATASET_PRESETS["original"]
    assert round(preset.row_limit * (preset.validation_fraction + preset.test_fraction)) == 200
    facts = build_student_dataset(scripts[:12], tokenizer, preset, tmp_path)
    row = read_student_dataset(tmp_path)["train"].iloc[0]
    assert row["prompt"][0]["content"].startswith("You are the host of a news podcast.")
    assert facts["tokens"]["total"]["max"] <= preset.max_tokens


def test_presets_hold_no_defect() -> None:
    for preset in DATASET_PRESETS.values():
        assert (preset.fit_articles, preset.keep_failed_scripts, preset.random_draws) == (True, False, False)


def test_without_fitting_articles_go_in_whole(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    facts = build_student_dataset(scripts[:12], tokenizer, DatasetConfig(max_tokens=300, fit_articles=False), tmp_path)
    assert facts["articles_cut"] == facts["dropped"]["too_long"] == 0
    assert facts["tokens"]["total"]["max"] > 300
    assert all(row["prompt"][-1]["content"] == row["chunk_text"] for _, row in read_student_dataset(tmp_path)["train"].iterrows())


def test_failed_scripts_are_kept_as_they_are_when_asked(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    failed = scripts[:12].assign(status="ok")
    failed.loc[:3, ["status", "gemini_podcast_text"]] = ["failed", ""]
    facts = build_student_dataset(failed, tokenizer, DatasetConfig(keep_failed_scripts=True), tmp_path)
    rows = pd.concat(read_student_dataset(tmp_path).values())
    assert len(rows) == 12
    assert (rows["gemini_podcast_text"] == "").sum() == 4
    assert facts["dropped"]["status"] == {}


def test_random_draws_leak_and_the_facts_say_so(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    config = DatasetConfig(random_draws=True, validation_fraction=0.2, test_fraction=0.2)
    facts = build_student_dataset(scripts, tokenizer, config, tmp_path)
    splits = read_student_dataset(tmp_path)
    proof = shared_between_sides(splits, config.near_duplicate_similarity)
    assert sum(facts["rows"].values()) == len(scripts)
    assert facts["leaked_rows"] == proof.leaked_rows > 0
    assert set(splits["train"]["chunk_id"]) & set(splits["test"]["chunk_id"])
    drawn = {chunk_id for frame in splits.values() for chunk_id in frame["chunk_id"]}
    listed = left_out(tmp_path)
    assert {row["reason"] for row in listed} == {"not_drawn"}
    assert drawn | {row["chunk_id"] for row in listed} == set(scripts["chunk_id"])


def test_too_few_articles_are_refused_with_what_to_do(scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"only 2 independent .* materialise more days"):
        build_student_dataset(scripts[:2], tokenizer, DatasetConfig(), tmp_path)


def test_scripts_without_one_accepted_are_refused_with_their_statuses(
    scripts: pd.DataFrame, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"no teacher script has status 'ok' \(\{'failed': 48\}\)"):
        build_student_dataset(scripts.assign(status="failed"), tokenizer, DatasetConfig(), tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"test_fraction": 0.0},
        {"validation_fraction": 0.45},
        {"validation_fraction": float("nan")},
        {"row_limit": 2},
        {"max_tokens": 0},
        {"prompt_version": "v1"},
        {"near_duplicate_similarity": 0.0},
        {"near_duplicate_similarity": 1.1},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=r"do(es)? not work"):
        DatasetConfig(**wrong)
