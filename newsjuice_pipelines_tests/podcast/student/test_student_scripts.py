"""Scripts for the rows of a data set: resuming, killed runs, full disks, torn rows, and the CSV."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.engines import Capabilities, Engine, EngineError, EngineOptions, Request, Result, open_engine
from newsjuice_pipelines.podcast.judging import scripts
from newsjuice_pipelines.podcast.judging.scripts import (
    GenerationConfig,
    ScriptsError,
    generate_scripts,
    passes_by_itself,
    read_scripts_csv,
    reuse_finished_rows,
    scripts_facts,
    side_by_side,
    write_scripts_csv,
)
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt

Made = tuple[Path, dict[str, Any]]
Generate = Callable[..., pd.DataFrame]
CONFIG = GenerationConfig(max_new_tokens=48)
# A process of its own that generates scripts and is killed, or limited, from outside.
RUN = """
import sys
from pathlib import Path
import torch
from newsjuice_pipelines.podcast.engines import open_engine
from newsjuice_pipelines.podcast.judging.scripts import GenerationConfig, generate_scripts
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
torch.set_num_threads(1)
model, dataset, scratch = map(Path, sys.argv[1:])
generate_scripts(
    dataset, ["train", "validation", "test"], open_engine("reference", model, device="cpu"), GenerationConfig(max_new_tokens=48),
    scratch, tokenizer=load_tokenizer(model),
)
"""


class WatchedEngine:
    """A real engine that notes which requests it got, breaks after `breaks_after` of them, fails, loses or repeats some."""

    def __init__(
        self,
        engine: Engine,
        breaks_after: int | None = None,
        failing: Sequence[str] = (),
        lost: Sequence[str] = (),
        repeated: Sequence[str] = (),
    ) -> None:
        self.engine, self.breaks_after = engine, breaks_after
        self.failing, self.lost, self.repeated = failing, lost, repeated
        self.asked: list[str] = []
        self.calls: list[int] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        self.calls.append(len(requests))
        for request in requests:
            if len(self.asked) == self.breaks_after:
                raise RuntimeError("the engine broke")
            self.asked.append(request.request_id)
            if request.request_id in self.lost:
                continue
            if request.request_id in self.failing:
                yield Result(request.request_id, (), "", "error", len(request.tokens), None, None, "it broke")
                continue
            (result,) = self.engine.generate([request])
            yield from [result] * (2 if request.request_id in self.repeated else 1)

    def capabilities(self) -> Capabilities:
        return self.engine.capabilities()

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def engine(merged: Made) -> Engine:
    return open_engine("reference", merged[0], device="cpu")


@pytest.fixture(scope="module")
def generate(merged: Made) -> Generate:
    """`generate_scripts` with the tokenizer of the merged model."""
    return partial(generate_scripts, tokenizer=load_tokenizer(merged[0]))


@pytest.fixture
def chunk_ids(dataset: Path) -> list[str]:
    """Those of the test split."""
    return list(pd.read_parquet(dataset / "test.parquet")["chunk_id"])


def test_each_row_keeps_the_columns_of_the_original_and_gains_its_measures(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    table = generate(dataset, ["test"], engine, CONFIG, tmp_path)

    assert list(table.columns) == [
        *("chunk_id", "article_id", "split"),
        *("chunk_text", "gemini_podcast_text", "qwen_podcast_text", "student_podcast_text"),
        *("gemini_length", "qwen_length", "student_length"),
        *("finish_reason", "prompt_tokens", "new_tokens", "ttft_s", "latency_s", "engine", "error"),
    ]
    assert list(table["chunk_id"]) == chunk_ids
    assert list(table["student_length"]) == [len(text) for text in table["student_podcast_text"]]
    assert list(table["gemini_length"]) == [len(text) for text in table["gemini_podcast_text"]]
    assert table["qwen_length"].isna().all()


def test_prompts_are_encoded_as_training_encoded_them(
    generate: Generate, engine: Engine, dataset: Path, merged: Made, tmp_path: Path
) -> None:
    table = generate(dataset, ["test"], engine, CONFIG, tmp_path)

    prompts = pd.read_parquet(dataset / "test.parquet")["prompt"]
    tokenizer = load_tokenizer(merged[0])
    assert list(table["prompt_tokens"]) == [len(encode_prompt(tokenizer, list(prompt))) for prompt in prompts]


def test_the_scripts_of_the_base_fill_the_original_column_of_theirs(
    generate: Generate, engine: Engine, dataset: Path, tmp_path: Path
) -> None:
    table = generate(dataset, ["validation"], engine, CONFIG, tmp_path, "qwen_podcast_text")

    assert list(table["qwen_length"]) == [len(text) for text in table["qwen_podcast_text"]]
    assert table["student_length"].isna().all()


def test_teacher_base_and_student_stand_in_one_table(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    for name in ("student", "base"):
        (tmp_path / name).mkdir()
    student = generate(dataset, ["test"], engine, CONFIG, tmp_path / "student")
    base = generate(dataset, ["validation", "test"], engine, CONFIG, tmp_path / "base", "qwen_podcast_text")

    table = side_by_side(student, base)

    assert list(table["qwen_podcast_text"]) == list(base["qwen_podcast_text"])[-4:]
    assert list(table["student_podcast_text"]) == list(student["student_podcast_text"])
    assert list(table["qwen_latency_s"]) == list(base["latency_s"])[-4:]
    with pytest.raises(ScriptsError, match="1 rows have no base script, such as"):
        side_by_side(student, base.iloc[:-1])


def test_the_engine_gets_all_rows_at_once(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    watched = WatchedEngine(engine)

    generate(dataset, ["train", "test"], watched, GenerationConfig(max_new_tokens=1), tmp_path)

    assert watched.calls == [20]


def test_continuous_batching_writes_the_scripts_of_the_reference(
    generate: Generate, engine: Engine, dataset: Path, merged: Made, tmp_path: Path
) -> None:
    (tmp_path / "batched").mkdir(), (tmp_path / "alone").mkdir()
    config = GenerationConfig(max_new_tokens=48, concurrent_requests=3)
    batched = open_engine("transformers", merged[0], device="cpu", options=config.options())

    table = generate(dataset, ["validation", "test"], batched, config, tmp_path / "batched")

    alone = generate(dataset, ["validation", "test"], engine, CONFIG, tmp_path / "alone")
    assert list(table["student_podcast_text"]) == list(alone["student_podcast_text"])
    assert set(table["engine"]) == {"transformers"}
    assert (table["ttft_s"] <= table["latency_s"]).all()


def test_an_engine_that_breaks_half_way_loses_no_finished_row(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the engine broke"):
        generate(dataset, ["test"], WatchedEngine(engine, breaks_after=3), CONFIG, tmp_path)
    second = WatchedEngine(engine)

    table = generate(dataset, ["test"], second, CONFIG, tmp_path)

    assert second.asked == chunk_ids[3:]
    assert len(table) == 4


def test_a_killed_process_pays_for_no_row_twice(
    generate: Generate, engine: Engine, dataset: Path, merged: Made, tmp_path: Path
) -> None:
    (tmp_path / "killed").mkdir(), (tmp_path / "whole").mkdir()
    rows = tmp_path / "killed" / "rows.jsonl"
    process = subprocess.Popen([sys.executable, "-c", RUN, merged[0], dataset, rows.parent])
    while process.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") < 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = rows.read_bytes().count(b"\n")
    second = WatchedEngine(engine)

    table = generate(dataset, ["train", "validation", "test"], second, CONFIG, rows.parent)

    assert 3 <= kept < 23
    assert len(second.asked) == 23 - kept
    whole = generate(dataset, ["train", "validation", "test"], engine, CONFIG, tmp_path / "whole")
    assert list(table["student_podcast_text"]) == list(whole["student_podcast_text"])


def test_a_row_that_a_crash_tore_is_generated_again(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    whole = generate(dataset, ["test"], engine, CONFIG, tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-30])
    second = WatchedEngine(engine)

    table = generate(dataset, ["test"], second, CONFIG, tmp_path)

    assert len(second.asked) == 1
    assert list(table["student_podcast_text"]) == list(whole["student_podcast_text"])
    assert generate(dataset, ["test"], WatchedEngine(engine, breaks_after=0), CONFIG, tmp_path).equals(table)


def test_a_row_that_the_disk_damaged_is_generated_again(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    generate(dataset, ["test"], engine, CONFIG, tmp_path)
    rows = tmp_path / "rows.jsonl"
    first, rest = rows.read_bytes().split(b"\n", 1)
    rows.write_bytes(b"\0" * len(first) + b"\n" + rest)
    second = WatchedEngine(engine)

    generate(dataset, ["test"], second, CONFIG, tmp_path)

    assert second.asked == chunk_ids[:1]
    assert generate(dataset, ["test"], WatchedEngine(engine, breaks_after=0), CONFIG, tmp_path)["error"].isna().all()


@pytest.mark.parametrize("line", ["123", "null", "[]", '{"a": 1}', '{"request_id": "a1019:0"}', '{"request_id": ["a"]}'])
def test_a_line_that_is_no_whole_row_counts_as_damaged(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path, line: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    watched = WatchedEngine(engine)

    table = generate(dataset, ["test"], watched, GenerationConfig(max_new_tokens=1), tmp_path)

    assert watched.asked == chunk_ids
    assert len(table) == 4


def test_a_row_that_failed_is_kept_counted_and_tried_again(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    failing, lost = chunk_ids[1:2], chunk_ids[2:3]
    table = generate(dataset, ["test"], WatchedEngine(engine, failing=failing, lost=lost), CONFIG, tmp_path)
    second = WatchedEngine(engine)

    generate(dataset, ["test"], second, CONFIG, tmp_path)

    assert scripts_facts(table)["by_finish_reason"]["error"] == scripts_facts(table)["retryable_errors"] == 2
    assert list(table["error"])[1:3] == ["it broke", scripts.NO_ANSWER]
    assert list(table["student_podcast_text"])[1:3] == ["", ""]
    assert second.asked == [*failing, *lost]


def test_only_rows_with_an_error_are_tried_again_after_the_scripts_were_published(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir(), (tmp_path / "second").mkdir()
    table = generate(dataset, ["test"], WatchedEngine(engine, failing=chunk_ids[:1]), CONFIG, tmp_path / "first")
    write_scripts_csv(table, tmp_path)
    second = WatchedEngine(engine)

    assert reuse_finished_rows(read_scripts_csv(tmp_path), tmp_path / "second") == 3
    again = generate(dataset, ["test"], second, CONFIG, tmp_path / "second")

    assert second.asked == chunk_ids[:1]
    kept = [name for name in table.columns if name != "error"]
    assert again[kept].iloc[1:].equals(table[kept].iloc[1:])
    assert again["error"].isna().all()


def test_rows_of_a_killed_run_win_over_published_ones(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    table = generate(dataset, ["test"], engine, CONFIG, tmp_path)

    assert reuse_finished_rows(table, tmp_path) == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4


def test_an_answer_given_twice_counts_once(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    table = generate(dataset, ["test"], WatchedEngine(engine, repeated=chunk_ids), CONFIG, tmp_path)

    assert list(table["chunk_id"]) == chunk_ids
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4


def test_a_prompt_without_room_in_the_context_is_an_error_of_its_row(
    generate: Generate, engine: Engine, dataset: Path, tmp_path: Path
) -> None:
    short, *others = pd.read_parquet(dataset / "test.parquet").to_dict("records")
    long = {**others[0], "prompt": [{"role": "user", "content": "The mayor opened a new bridge. " * 200}]}
    for name in ("data", "scratch"):
        (tmp_path / name).mkdir()
    pd.DataFrame([short, long]).to_parquet(tmp_path / "data" / "test.parquet")

    watched = WatchedEngine(engine)
    table = generate(tmp_path / "data", ["test"], watched, CONFIG, tmp_path / "scratch")

    assert list(table["finish_reason"]) == ["eos", "error"]
    assert table["error"][1].startswith("no room in the model's context")
    assert table["prompt_tokens"][1] > 512
    assert watched.asked == [short["chunk_id"]]
    write_scripts_csv(table, tmp_path)
    assert scripts_facts(read_scripts_csv(tmp_path))["retryable_errors"] == scripts_facts(table)["retryable_errors"] == 0


def test_ids_that_the_model_does_not_know_are_no_error_that_passes(engine: Engine) -> None:
    (unknown,) = engine.generate([Request("a", (10**6,), 4)])

    assert unknown.error is not None
    assert not passes_by_itself(unknown.error)
    assert passes_by_itself("OutOfMemoryError: CUDA out of memory")


def test_a_prompt_that_just_fits_is_asked(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    longest = max(generate(dataset, ["test"], engine, GenerationConfig(max_new_tokens=1), tmp_path)["prompt_tokens"])
    (tmp_path / "fits").mkdir()
    room = engine.capabilities().context_tokens - int(longest)

    table = generate(dataset, ["test"], _Silent(engine), GenerationConfig(max_new_tokens=room), tmp_path / "fits")

    assert set(table["error"]) == {scripts.NO_ANSWER}


class _Silent(WatchedEngine):
    """Answers nothing: what it was asked is told by the error."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        return iter(())


def test_a_student_that_never_stops_is_cut_off_counted_and_reported(
    generate: Generate, engine: Engine, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "newsjuice"):
        table = generate(dataset, ["test"], engine, GenerationConfig(max_new_tokens=3), tmp_path)

    assert scripts_facts(table)["by_finish_reason"] == {"length": 4}
    assert set(table["new_tokens"]) == {3}
    assert "4 of 4 scripts did not end within 3 tokens and are cut off" in caplog.text


def test_progress_counts_scripts_a_minute(
    generate: Generate, engine: Engine, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "newsjuice"):
        generate(dataset, ["test"], engine, CONFIG, tmp_path)

    assert "scripts: 4/4 scripts, " in caplog.text
    assert "scripts/min, done in" in caplog.text


def test_a_full_disk_loses_no_finished_row(
    generate: Generate, engine: Engine, dataset: Path, chunk_ids: list[str], tmp_path: Path
) -> None:
    """A file system of one page, which only root may mount."""
    (tmp_path / "small").mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4k", "none", tmp_path / "small"], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("this process may not mount a file system; the test of the limit on the size of files covers the rest")
    try:
        with pytest.raises(ScriptsError, match=r"no room left in .* for a finished script \(No space left on device\)"):
            generate(dataset, ["test"], _Longwinded(engine), CONFIG, tmp_path / "small")
        kept = (tmp_path / "small" / "rows.jsonl").read_bytes()
        subprocess.run(["mount", "-o", "remount,size=1m", tmp_path / "small"], check=True)
        second = WatchedEngine(engine)
        table = generate(dataset, ["test"], second, CONFIG, tmp_path / "small")
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)

    assert kept.endswith(b"\n")
    whole = [json.loads(line)["request_id"] for line in kept.splitlines()]
    assert whole == chunk_ids[: len(whole)]
    assert 0 < len(whole) < 4
    assert second.asked == chunk_ids[len(whole) :]
    assert len(table) == 4


class _Longwinded(WatchedEngine):
    """Adds a thousand words to each script, so that a small disk is soon full."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        for result in super().generate(requests):
            yield Result(**{**vars(result), "text": f"{result.text} {'blah ' * 300}"})


def test_a_limit_on_the_size_of_files_loses_no_finished_row(
    generate: Generate, engine: Engine, dataset: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(ScriptsError, match="the scripts finished before are kept"):
            generate(dataset, ["test"], _Longwinded(engine), CONFIG, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    kept = (tmp_path / "rows.jsonl").read_bytes()

    assert kept.count(b"\n") == 2
    assert kept.endswith(b"\n")


def test_a_full_disk_leaves_no_half_of_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)

    with pytest.raises(ScriptsError, match="for 1 scripts"):
        write_scripts_csv(pd.DataFrame({"chunk_id": ["1"]}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_a_surrogate_pair_in_an_answer_stops_nothing(
    generate: Generate, engine: Engine, dataset: Path, tmp_path: Path
) -> None:
    class Server(WatchedEngine):
        def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
            for result in super().generate(requests):
                yield Result(**{**vars(result), "text": "a \ud83d b"})

    table = generate(dataset, ["test"], Server(engine), CONFIG, tmp_path)

    write_scripts_csv(table, tmp_path)
    assert read_scripts_csv(tmp_path)["student_podcast_text"][0] == "a ? b"


def test_the_row_limit_holds_for_each_split(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    table = generate(dataset, ["train", "test"], engine, GenerationConfig(max_new_tokens=2, row_limit=2), tmp_path)

    assert scripts_facts(table)["by_split"] == {"train": 2, "test": 2}


def test_an_unknown_split_is_refused(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ScriptsError, match="choose of train, validation, test"):
        generate(dataset, ["dev"], engine, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("gemini_podcast_text", None, r"row 2 of the split test \(chunk_id 'a1021:0'\) has no text in gemini_podcast_text"),
        ("chunk_id", 7, r"row 2 of the split test \(chunk_id 7\) has no text in chunk_id, but 7: make the student data set"),
        ("prompt", None, r"row 2 .* has no prompt of messages"),
        ("prompt", [], r"row 2 .* has no prompt of messages"),
        ("prompt", [{"role": "user", "content": None}], r"row 2 .* has no prompt of messages with a role and a content"),
    ],
)
def test_a_row_that_could_not_be_written_is_refused_before_anything_is_generated(
    generate: Generate,
    engine: Engine,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    value: Any,
    message: str,
) -> None:
    rows = pd.read_parquet(dataset / "test.parquet").astype(object)
    rows.at[2, column] = value
    monkeypatch.setattr(pd, "read_parquet", lambda path: rows)  # a parquet file takes no column of texts and numbers
    watched = WatchedEngine(engine)

    with pytest.raises(ScriptsError, match=message):
        generate(dataset, ["test"], watched, CONFIG, tmp_path)
    assert watched.asked == []


def test_a_data_set_without_a_column_is_refused(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    pd.read_parquet(dataset / "test.parquet").drop(columns="gemini_podcast_text").to_parquet(tmp_path / "test.parquet")

    with pytest.raises(ScriptsError, match="the split test has no column gemini_podcast_text: make the student data set again"):
        generate(tmp_path, ["test"], engine, CONFIG, tmp_path)


def test_rows_that_are_there_twice_are_refused(generate: Generate, engine: Engine, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ScriptsError, match="4 chunk_ids of test, test are there more than once"):
        generate(dataset, ["test", "test"], engine, CONFIG, tmp_path)


def test_the_configuration_says_how_the_engine_is_opened() -> None:
    config = GenerationConfig(temperature=0.7, repetition_penalty=1.1, seed=7, concurrent_requests=4, prompt_lookup_tokens=3)

    assert GenerationConfig().options() == EngineOptions()
    assert config.options() == EngineOptions(
        concurrent_requests=4, prompt_lookup_tokens=3, temperature=0.7, repetition_penalty=1.1, seed=7
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_new_tokens", 0), ("row_limit", -1), ("concurrent_requests", -2), ("temperature", -0.1), ("prompt_lookup_tokens", -1)],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: str, value: float) -> None:
    with pytest.raises((ScriptsError, EngineError), match=f"{setting} is {value}"):
        GenerationConfig(**{setting: value})


@pytest.mark.parametrize(
    "text", ["", "NA", "null", 'a "quote", a comma', "two\nlines", "a\r\nb", "a\rb", "=1+1", "é 漢\u2028x", "a\0b"]
)
def test_any_text_survives_the_csv(text: str, tmp_path: Path) -> None:
    row = {"chunk_id": "007", "chunk_text": text, "student_podcast_text": text, "student_length": len(text)}
    table = pd.DataFrame([{**row, "qwen_podcast_text": None, "qwen_length": None, "latency_s": None}])

    write_scripts_csv(table, tmp_path)

    read = read_scripts_csv(tmp_path)
    assert read["chunk_text"][0] == text
    assert read["student_podcast_text"][0] == text
    assert pd.isna(read["qwen_podcast_text"][0])
    assert read["chunk_id"][0] == "007"
    assert pd.isna(read["latency_s"][0])


def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    row = {"chunk_id": "1", "chunk_text": "12", "gemini_podcast_text": "True", "student_podcast_text": "1e3", "error": "0"}
    table = pd.DataFrame([{**row, "student_length": 3, "qwen_podcast_text": None, "qwen_length": None}])

    write_scripts_csv(table, tmp_path)

    read = read_scripts_csv(tmp_path)
    assert {name: read[name][0] for name in row} == row
    assert pd.isna(read["qwen_podcast_text"][0])
    assert read["student_length"][0] == 3


def test_the_csv_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_scripts_csv(pd.DataFrame({"chunk_id": ["1"]}), tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["scripts.csv"]
