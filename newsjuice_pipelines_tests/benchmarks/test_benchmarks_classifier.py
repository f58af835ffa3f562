"""The classifier benchmark: its made-up rows, what it counts against counts by hand, and that its tables are whole."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks import classifier
from newsjuice_pipelines.benchmarks.classifier_rows import external_rows, headlines_file, write_made_up_rows
from newsjuice_pipelines.benchmarks.classifier_runs import (
    PredictionJob,
    TrainingJob,
    measure_data,
    measure_predictions,
    measure_training,
    prepare_classifiers,
    prepare_split,
    write_roberta,
)
from newsjuice_pipelines.classification.corpus.clusters import find_clusters
from newsjuice_pipelines.classification.corpus.huffpost import load_huffpost
from newsjuice_pipelines.classification.corpus.split import SplitConfig, read_part
from newsjuice_pipelines.demo import DEMO_HEADLINES

MICRO_SHAPE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
}


@pytest.fixture(autouse=True)
def _gpu_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement hides the GPU from its process, which is the tests' own here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier-bench")
    prepare_split(folder, None, 1000)
    return folder


@pytest.fixture(scope="module")
def with_classifiers(home: Path, roberta: Path) -> dict[str, Any]:
    return prepare_classifiers(home, 20, "roberta", str(roberta))


@pytest.fixture(scope="module")
def roberta(home: Path) -> Path:
    write_roberta(home, MICRO_SHAPE)
    return home / "roberta"


def test_made_up_rows_are_as_many_as_asked_and_speak_as_their_sections_do(tmp_path: Path) -> None:
    write_made_up_rows(DEMO_HEADLINES, 400, tmp_path / "rows.jsonl")
    write_made_up_rows(DEMO_HEADLINES, 400, tmp_path / "again.jsonl")

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]

    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert len(rows) == 400
    real = load_huffpost(DEMO_HEADLINES).rows
    words = {section: set(" ".join(texts).split()) for section, texts in real.groupby("category")["text"]}
    own = [set(row["headline"].split()) <= words[row["category"]] for row in rows]
    assert sum(own) / len(own) > 0.97, "one word of a nearly repeated row may come from another section"
    described = sum(bool(row["short_description"]) for row in rows) / len(rows)
    assert described == pytest.approx(0.9, abs=0.05)


def test_some_made_up_rows_repeat_others(tmp_path: Path) -> None:
    write_made_up_rows(DEMO_HEADLINES, 2000, tmp_path / "rows.jsonl")

    table = load_huffpost(tmp_path / "rows.jsonl")

    assert 1 <= 2000 - table.counts["kept"] <= 40
    texts = table.rows["text"].tolist()
    repeated = len(texts) - len(set(find_clusters(texts).numbers.tolist()))
    assert 15 <= repeated <= 120, "two of a hundred rows, and a few by chance"


def test_headlines_of_a_folder_are_found_and_a_folder_without_is_named(tmp_path: Path) -> None:
    assert headlines_file(None) == DEMO_HEADLINES
    with pytest.raises(ValueError, match=r"there is no huffpost_sample\.jsonl"):
        headlines_file(tmp_path)
    (tmp_path / "News_Category_Dataset_v3.json").write_text("{}")
    assert headlines_file(tmp_path).name == "News_Category_Dataset_v3.json"


def test_another_source_is_the_folders_file_or_the_demo_articles(tmp_path: Path) -> None:
    (tmp_path / "harvard_external.csv").write_text('id,title,content,summary\n1,A title,,"{""category"": ""Law""}"\n')

    rows, name = external_rows(tmp_path)
    demo, demo_name = external_rows(None)

    assert (name, rows["summary"].tolist()) == ("harvard_external.csv", ['{"category": "Law"}'])
    assert demo_name == "demo articles"
    assert json.loads(demo["summary"][0])["category"]
    assert list(demo.columns) == list(rows.columns)


@pytest.mark.parametrize("recipe", ["original", "plain"])
def test_padding_is_counted_as_by_hand(home: Path, roberta: Path, recipe: str) -> None:
    from transformers import AutoTokenizer

    job = TrainingJob(recipe, home / "split", "roberta", str(roberta), 3, 0, gpu=False, batch_size=10_000, tokens=128)
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    lengths = [len(ids) for ids in tokenizer(read_part(home / "split", "train")["text"].tolist())["input_ids"]]
    width = 128 if recipe == "original" else max(lengths)

    found = measure_training(job)

    assert max(lengths) < 128
    assert found["padding_share"] == pytest.approx(1 - sum(lengths) / (width * len(lengths)))
    assert found["examples_per_s"] > 0
    assert found["peak_memory_mib"] > 0


def test_steps_of_the_warm_up_are_not_counted(home: Path, roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from newsjuice_pipelines.benchmarks import classifier_runs

    counters = []

    class Watched(classifier_runs._StepCounter):
        def __init__(self, *steps: int) -> None:
            super().__init__(*steps)
            counters.append(self)

    monkeypatch.setattr(classifier_runs, "_StepCounter", Watched)

    measure_training(TrainingJob("original", home / "split", "roberta", str(roberta), 3, 2, gpu=False, batch_size=4, tokens=64))

    assert (counters[0].rows, counters[0].positions) == (12, 12 * 64)


def test_our_steps_pad_less_than_a_plain_trainer(home: Path, roberta: Path) -> None:
    plain = TrainingJob("plain", home / "split", "roberta", str(roberta), 20, 1, gpu=False)

    found = {recipe: measure_training(replace(plain, recipe=recipe)) for recipe in ("plain", "ours")}

    assert found["ours"]["padding_share"] < found["plain"]["padding_share"]


def test_every_way_of_predicting_gives_the_same_labels(home: Path, with_classifiers: dict[str, Any]) -> None:
    job = PredictionJob("original", home / "encoder", home / "texts.json", 40, tokens=64)

    labels = {way: measure_predictions(replace(job, way=way))["labels"] for way in ("original", "torch")}
    labels["int8"] = measure_predictions(replace(job, way="int8", checkpoint=home / "int8"))["labels"]

    assert with_classifiers["passed"] is True
    assert labels["original"] == labels["torch"]
    assert sum(one == other for one, other in zip(labels["int8"], labels["torch"], strict=True)) >= 30


def test_the_way_from_a_file_to_a_split_is_timed_in_its_parts(tmp_path: Path) -> None:
    write_made_up_rows(DEMO_HEADLINES, 1500, tmp_path / "rows.jsonl")

    found = measure_data(tmp_path / "rows.jsonl", SplitConfig(preset="full", per_class=20))

    assert found["lines"] == 1500
    assert found["rows"] >= found["split_rows"] > 1400
    assert found["processor_s"] > 0
    assert found["total_s"] == pytest.approx(found["load_s"] + found["map_s"] + found["split_s"])


def test_the_tables_are_whole_and_say_what_was_not_measured(roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "in_own_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(classifier, "has_gpu", lambda: False)
    monkeypatch.setattr(classifier, "measure_training", _pretend_to_train)
    monkeypatch.setattr(classifier, "prepare_classifiers", lambda home, steps: {"passed": None, "reason": "no onnxruntime"})
    monkeypatch.setattr(classifier, "measure_predictions", _pretend_to_predict)

    results = classifier.run(repeats=3, sizes=(300, 600))
    page = classifier.table(results)

    json.dumps(results, allow_nan=False)
    assert "| MiniLM, CPU: original | 2 | 90% | 100 MiB | 50.0 (50.0 to 50.0) | 40 |" in page
    assert "| MiniLM, CPU: ours | 100 | 2% | 100 MiB |  |  |" in page
    assert page.count("| RoBERTa shape, GPU: original | not measured |") == 1
    assert "| ours, fp32 | 200 | 20.0 (20.0 to 20.0) | 20.00 of 10 times original | 50.0% |" in page
    assert "| ours, int8 | not measured |" in page
    assert "no onnxruntime" in page
    assert page.count("| 300 rows, ") == page.count("| 600 rows, ") == 1
    assert "time grows as rows to the" in page
    assert page.count("phrases from demo;") == page.count("classes (demo)") == 1


@pytest.mark.parametrize(
    ("wrong", "message"), [({"repeats": 0}, "repeats is 0"), ({"parts": ["traning"]}, "there is no part traning")]
)
def test_a_run_that_would_measure_nothing_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.run(**wrong)


def test_a_gpu_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(classifier, "in_own_process", lambda work, *arguments: False)

    with pytest.raises(SystemExit):
        classifier.main(["--gpu"])

    assert "leave --gpu out" in capsys.readouterr().err


def test_the_direct_start_needs_neither_dagster_nor_a_database() -> None:
    code = (
        "import sys, newsjuice_pipelines.benchmarks.classifier\n"
        "print([name for name in ('dagster', 'psycopg', 'torch', 'wandb', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def _pretend_to_train(job: TrainingJob) -> dict[str, Any]:
    speed, padding = {"original": (2.0, 0.9), "plain": (50.0, 0.3), "ours": (100.0, 0.02)}[job.recipe]
    return {"examples_per_s": speed, "padding_share": padding, "peak_memory_mib": 100.0, "device": "2 CPU cores"}


def _pretend_to_predict(job: PredictionJob) -> dict[str, Any]:
    speed, labels = {"original": (10.0, [1, 2]), "torch": (200.0, [1, 3, 4]), "linear": (900.0, [0])}[job.way]
    return {"texts_per_s": speed, "labels": labels, "load_s": 1.0, "peak_memory_mib": 10.0}
