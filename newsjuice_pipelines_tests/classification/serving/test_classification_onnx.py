"""The exported classifier: the checkpoint's answers from int8 weights, without PyTorch, and only behind its gate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.classification.corpus.split import read_part
from newsjuice_pipelines.classification.judging.calibrate import read_calibration, softmax
from newsjuice_pipelines.classification.judging.evaluate import evaluate_classifier
from newsjuice_pipelines.classification.serving.classify import load_service
from newsjuice_pipelines.classification.serving.onnx_classifier import OnnxClassifier
from newsjuice_pipelines.classification.serving.onnx_export import ExportConfig, export_classifier
from newsjuice_pipelines.classification.serving.onnx_gate import compare_logits
from newsjuice_pipelines.classification.serving.predict import (
    BATCH_TEXTS,
    BATCH_TOKENS,
    engine_of,
    length_sorted_batches,
    load_classifier,
    load_for_serving,
)
from newsjuice_pipelines.classification.serving.served_calibration import read_served_calibration
from newsjuice_pipelines.classification.training.checkpoint import CheckpointError
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, train_classifier

HEADLINES = ["Ten Chocolate Cake Recipes For Dinner", "Senate Votes", "Scientists Find A Planet With Water " * 40, "é 猫 \u200b"]


@dataclass(frozen=True)
class Encoder:
    """A trained encoder and its evaluation."""

    checkpoint: Path
    evaluation: Path


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, topic_split: Path) -> Encoder:
    """MiniLM after one step, with a head fitted on what it makes of the training texts: trained in seconds."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    checkpoint, scratch, evaluation = (tmp_path_factory.mktemp(f"encoder-{name}") for name in ("checkpoint", "scratch", "report"))
    train_classifier("minilm", topic_split, ClassifierConfig(max_steps=1), checkpoint, scratch)
    network = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    rows = read_part(topic_split, "train")
    batch = AutoTokenizer.from_pretrained(checkpoint)(rows["text"].tolist(), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        seen = network.bert(**batch).pooler_output.numpy()
    fitted = LogisticRegression(C=3.0, max_iter=1_000).fit(seen, rows["label_id"])
    with torch.no_grad():
        network.classifier.weight.copy_(torch.tensor(fitted.coef_))
        network.classifier.bias.copy_(torch.tensor(fitted.intercept_))
    network.save_pretrained(checkpoint)
    evaluate_classifier(checkpoint, topic_split, evaluation)
    return Encoder(checkpoint, evaluation)


@pytest.fixture(scope="session")
def no_test_part(tmp_path_factory: pytest.TempPathFactory, topic_split: Path) -> Path:
    """The split without the parts that an export has no business with."""
    folder = tmp_path_factory.mktemp("validation")
    for name in ("split.json", "validation.parquet", "calibration.parquet"):
        shutil.copyfile(topic_split / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, no_test_part: Path) -> Path:
    out = tmp_path_factory.mktemp("exported")
    facts = export_classifier(encoder.checkpoint, no_test_part, out, ExportConfig(max_accuracy_loss_points=3))
    assert facts["passed"], facts["reason"]
    return out


def test_the_export_answers_like_its_checkpoint(encoder: Encoder, exported: Path, topic_split: Path) -> None:
    texts = read_part(topic_split, "train")["text"].tolist()
    whole = softmax(load_classifier(encoder.checkpoint).predict_logits(texts))
    rounded = softmax(OnnxClassifier(exported).predict_logits(texts))
    assert (whole.argmax(axis=1) == rounded.argmax(axis=1)).mean() > 0.97
    assert np.abs(whole - rounded).max() < 0.2


def test_the_export_takes_any_number_of_texts_of_any_length(encoder: Encoder, exported: Path) -> None:
    classifier = OnnxClassifier(exported, threads=1)
    assert classifier.predict_logits([]).shape == (0, len(classifier.classes))
    together = classifier.predict_logits(HEADLINES * 40)
    assert np.isfinite(together).all()
    assert softmax(together).argmax(axis=1).tolist() == softmax(together[:4]).argmax(axis=1).tolist() * 40
    alone = [classifier.predict_proba([headline])[0] for headline in HEADLINES]
    assert np.abs(np.array(alone) - load_classifier(encoder.checkpoint).predict_proba(HEADLINES)).max() < 0.2


def test_the_same_texts_always_get_the_same_scores(exported: Path) -> None:
    first, second = (OnnxClassifier(exported).predict_logits(HEADLINES * 3) for _ in range(2))
    assert (first == second).all()


def test_int8_weights_take_a_quarter_of_the_space(exported: Path) -> None:
    facts = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    assert facts["int8_bytes"] < 0.3 * facts["float32_bytes"]
    assert {path.name for path in exported.iterdir()} == {
        "model.onnx", "tokenizer.json", "classifier.json", "calibration.json", "export.json", "report.md",
    }  # fmt: skip


def test_the_page_says_what_was_measured(exported: Path) -> None:
    page = (exported / "report.md").read_text(encoding="utf-8")
    assert "# Export of minilm: passed" in page
    assert "texts with the same answer" in page


def test_an_export_that_loses_too_much_is_not_served(encoder: Encoder, no_test_part: Path, tmp_path: Path) -> None:
    words = " ".join(read_part(no_test_part, "validation")["text"]).split()
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, 6)) for _ in range(400)]  # of no topic: many lie between two classes
    split, out = tmp_path / "split", tmp_path / "out"
    for folder in (split, out):
        folder.mkdir()
    shutil.copyfile(no_test_part / "split.json", split / "split.json")
    said = load_classifier(encoder.checkpoint).predict_logits(texts).argmax(axis=1)  # the checkpoint is right by definition
    pd.DataFrame({"text": texts, "label_id": said, "group": texts}).to_parquet(split / "validation.parquet")
    facts = export_classifier(encoder.checkpoint, split, out, ExportConfig(max_accuracy_loss_points=0))
    assert facts["passed"] is False
    assert "points of accuracy lost on 400 validation texts" in facts["reason"]
    assert {path.name for path in out.iterdir()} == {"export.json", "report.md"}
    assert engine_of(load_for_serving(encoder.checkpoint, out)).startswith("PyTorch")


def test_narrowing_layers_in_float32_bring_the_export_nearer_to_its_checkpoint(
    encoder: Encoder, exported: Path, no_test_part: Path, tmp_path: Path
) -> None:
    config = ExportConfig(max_accuracy_loss_points=100, narrowing_layers_in_float32=True)
    facts = export_classifier(encoder.checkpoint, no_test_part, tmp_path, config)
    rounded = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    assert rounded["int8_bytes"] < facts["int8_bytes"] < facts["float32_bytes"] / 2
    texts = read_part(no_test_part, "validation")["text"].tolist() * 3
    whole = load_classifier(encoder.checkpoint).predict_proba(texts)
    errors = [np.abs(OnnxClassifier(folder).predict_proba(texts) - whole).mean() for folder in (exported, tmp_path)]
    assert errors[1] < errors[0]


def test_there_is_nothing_to_export_of_a_linear_classifier(linear: Any, no_test_part: Path, tmp_path: Path) -> None:
    facts = export_classifier(linear.checkpoint, no_test_part, tmp_path)
    assert facts["passed"] is None
    assert "nothing to export" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert engine_of(load_for_serving(linear.checkpoint, tmp_path)) == "scikit-learn on the CPU"


def test_an_export_for_another_split_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"classes": ["A", "B"]}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="the split"):
        export_classifier(encoder.checkpoint, tmp_path, tmp_path)


def test_serving_prefers_the_export_and_falls_back_to_the_checkpoint(encoder: Encoder, exported: Path, tmp_path: Path) -> None:
    assert engine_of(load_for_serving(encoder.checkpoint, exported)).startswith("ONNX Runtime int8")
    assert engine_of(load_for_serving(encoder.checkpoint)).startswith("PyTorch float32")
    assert engine_of(load_for_serving(encoder.checkpoint, tmp_path)).startswith("PyTorch float32")


def test_what_is_served_answers_with_its_own_calibration(encoder: Encoder, exported: Path) -> None:
    _, own = load_service(encoder.checkpoint, encoder.evaluation, exported)
    _, other = load_service(encoder.checkpoint, encoder.evaluation)
    assert own == read_served_calibration(exported)
    assert other == read_calibration(encoder.evaluation)
    assert own.temperature != other.temperature
    assert own.temperature == pytest.approx(other.temperature, rel=0.2)
    assert (own.classes, own.parents) == (other.classes, other.parents)
    assert own.conformal_quantiles == pytest.approx(other.conformal_quantiles, abs=0.2)


def test_an_export_without_its_calibration_does_not_answer(encoder: Encoder, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "copy" / "calibration.json").unlink()
    with pytest.raises(CheckpointError, match=r"no usable calibration.json"):
        load_service(encoder.checkpoint, encoder.evaluation, tmp_path / "copy")


@pytest.mark.parametrize("name", ["target_precision", "certainty"])
def test_an_export_that_promises_less_than_was_judged_does_not_answer(
    name: str, encoder: Encoder, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    facts = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    facts["config"][name] = 0.5
    (tmp_path / "copy" / "export.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"promises a {name} of 0.5, but the evaluation judged 0.9"):
        load_service(encoder.checkpoint, encoder.evaluation, tmp_path / "copy")


def test_an_export_of_another_checkpoint_is_refused(linear: Any, exported: Path) -> None:
    with pytest.raises(CheckpointError, match="another checkpoint"):
        load_for_serving(linear.checkpoint, exported)


def test_an_export_whose_outputs_do_not_fit_its_classes_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    description = json.loads((copy / "classifier.json").read_text(encoding="utf-8"))
    description["classes"].append("ONE MORE")
    (copy / "classifier.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(CheckpointError, match="4 outputs for 5 classes"):
        OnnxClassifier(copy)


def in_new_process(code: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_serving_the_export_imports_neither_torch_nor_transformers(encoder: Encoder, exported: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from newsjuice_pipelines.classification.serving.predict import *\n"
        "loaded = load_for_serving(*map(Path, sys.argv[1:])); loaded.predict_proba(['Senate Votes'])\n"
        "print(engine_of(loaded), [name for name in ('torch', 'transformers', 'sklearn', 'pandas') if name in sys.modules])"
    )
    said = in_new_process(code, encoder.checkpoint, exported)
    assert said.startswith("ONNX Runtime int8 on the CPU")
    assert said.strip().endswith("[]")


def test_a_missing_runtime_is_named_with_its_remedy(exported: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.modules['onnxruntime'] = None\n"
        "from newsjuice_pipelines.classification.serving.onnx_classifier import *\n"
        "try: OnnxClassifier(Path(sys.argv[1]))\nexcept OnnxUnavailable as error: print(error)"
    )
    assert "pip install onnx onnxruntime" in in_new_process(code, exported)


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (3, True), (4, False)])
def test_the_gate_allows_three_tenths_of_a_point(wrong: int, passed: bool) -> None:
    labels = np.zeros(1_000, dtype=int)
    whole = np.tile([2.0, 0.0], (1_000, 1))
    rounded = whole.copy()
    rounded[:wrong] = [0.0, 2.0]
    facts = compare_logits(whole, rounded, labels, np.arange(1_000), 0.3, 42)
    assert facts["passed"] is passed
    assert facts["loss_points"] == pytest.approx(wrong / 10)
    assert facts["agreement"] == 1 - wrong / 1_000


def test_what_the_export_gets_right_by_chance_makes_up_for_what_it_loses() -> None:
    whole, labels = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 1])
    facts = compare_logits(whole, whole[:, ::-1], labels, np.arange(2), 0.3, 42)
    assert (facts["loss_points"], facts["agreement"], facts["passed"]) == (0, 0, True)
    assert facts["largest_probability_difference"] > 0.7


def test_numbers_that_are_not_finite_and_an_empty_part_fail_the_gate() -> None:
    logits = np.zeros((2, 2))
    assert compare_logits(logits, logits * np.nan, np.zeros(2, dtype=int), np.arange(2), 100, 42)["passed"] is False
    nothing = np.zeros((0, 2))
    assert compare_logits(nothing, nothing, np.zeros(0, dtype=int), np.arange(0), 100, 42)["passed"] is False


def test_the_limit_is_a_share_of_points() -> None:
    with pytest.raises(ValueError, match="max_accuracy_loss_points is -1"):
        ExportConfig(max_accuracy_loss_points=-1)


def test_batches_hold_texts_of_like_length_within_their_limits() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(1, 512, 3_000)]
    batches = list(length_sorted_batches(lengths))
    assert sorted(place for batch in batches for place in batch) == list(range(3_000))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) <= BATCH_TEXTS
        assert longest * len(batch) <= BATCH_TOKENS
    padded = sum(max(lengths[place] for place in batch) * len(batch) for batch in batches)
    assert padded / sum(lengths) < 1.05
