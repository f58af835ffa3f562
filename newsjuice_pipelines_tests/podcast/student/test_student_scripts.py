"""Scripts for the rows of a data set: resuming, torn rows, and the CSV."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.engines import Capabilities, Engine, Request, Result, open_engine
from newsjuice_pipelines.podcast.judging.scripts import (
    GenerationConfig,
    ScriptsError,
    generate_scripts,
    read_scripts_csv,
    scripts_facts,
    write_scripts_csv,
)

Made = tuple[Path, dict[str, Any]]
CONFIG = GenerationConfig(max_new_tokens=48)


class WatchedEngine:
    """A real engine that notes which requests it got, stops like a killed process after `crash_after`, fails `failing` ones."""

    def __init__(self, engine: Engine, crash_after: int | None = None, failing: str | None = None) -> None:
        self.engine, self.crash_after, self.failing = engine, crash_after, failing
        self.asked: list[str] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        for request in requests:
            if len(self.asked) == self.crash_after:
                raise KeyboardInterrupt
            self.asked.append(request.request_id)
            if request.request_id == self.failing:
                yield Result(request.request_id, (), "", "error", 10, None, None, "it broke")
            else:
                yield from self.engine.generate([request])

    def capabilities(self) -> Capabilities:
        return self.engine.capabilities()

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def engine(merged: Made) -> Engine:
    return open_engine("reference", merged[0], "cpu")


def test_each_row_keeps_the_columns_of_the_original_and_gains_its_measures(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    table = generate_scripts(dataset, ["test"], engine, CONFIG, tmp_path)

    assert list(table.columns) == [
        *("chunk_id", "article_id", "split", "chunk_text", "gemini_podcast_text", "student_podcast_text"),
        *(
            "gemini_length",
            "student_length",
            "finish_reason",
            "prompt_tokens",
            "new_tokens",
            "ttft_s",
            "latency_s",
            "engine",
            "error",
        ),
    ]
    assert list(table["chunk_id"]) == list(pd.read_parquet(dataset / "test.parquet")["chunk_id"])
    assert list(table["student_length"]) == [len(text) for text in table["student_podcast_text"]]


def test_base_scripts_keep_the_original_names_of_their_columns(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    table = generate_scripts(dataset, ["validation"], engine, CONFIG, tmp_path, "qwen_podcast_text")

    assert {"qwen_podcast_text", "qwen_length"} <= set(table.columns)


def test_a_run_that_was_killed_pays_for_no_row_twice(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate_scripts(dataset, ["test"], WatchedEngine(engine, crash_after=3), CONFIG, tmp_path)
    second = WatchedEngine(engine)

    table = generate_scripts(dataset, ["test"], second, CONFIG, tmp_path)

    assert second.asked == [table["chunk_id"].iloc[-1]]
    assert len(table) == 4


def test_a_row_that_a_crash_tore_is_generated_again(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    whole = generate_scripts(dataset, ["test"], engine, CONFIG, tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-30])
    second = WatchedEngine(engine)

    table = generate_scripts(dataset, ["test"], second, CONFIG, tmp_path)

    assert len(second.asked) == 1
    assert list(table["student_podcast_text"]) == list(whole["student_podcast_text"])
    assert generate_scripts(dataset, ["test"], WatchedEngine(engine, crash_after=0), CONFIG, tmp_path).equals(table)


def test_a_row_that_failed_is_kept_counted_and_tried_again(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    failing = str(pd.read_parquet(dataset / "test.parquet")["chunk_id"].iloc[1])
    table = generate_scripts(dataset, ["test"], WatchedEngine(engine, failing=failing), CONFIG, tmp_path)
    second = WatchedEngine(engine)

    generate_scripts(dataset, ["test"], second, CONFIG, tmp_path)

    assert scripts_facts(table)["by_finish_reason"]["error"] == 1
    assert second.asked == [failing]


def test_the_row_limit_holds_for_each_split(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    table = generate_scripts(dataset, ["train", "test"], engine, GenerationConfig(max_new_tokens=2, row_limit=2), tmp_path)

    assert scripts_facts(table)["by_split"] == {"train": 2, "test": 2}


def test_an_unknown_split_is_refused(engine: Engine, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ScriptsError, match="choose of train, validation, test"):
        generate_scripts(dataset, ["dev"], engine, CONFIG, tmp_path)


@pytest.mark.parametrize("text", ["", "NA", "null", 'a "quote", a comma', "two\nlines", "a\r\nb", "a\rb", "=1+1", "é 漢\u2028x"])
def test_any_text_survives_the_csv(text: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"chunk_id": ["007"], "chunk_text": [text], "student_podcast_text": [text], "latency_s": [None]})

    write_scripts_csv(table, tmp_path)

    read = read_scripts_csv(tmp_path)
    assert read["chunk_text"][0] == text
    assert read["chunk_id"][0] == "007"
    assert pd.isna(read["latency_s"][0])


def test_the_csv_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_scripts_csv(pd.DataFrame({"chunk_id": ["1"]}), tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["scripts.csv"]
