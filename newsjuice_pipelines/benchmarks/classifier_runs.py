"""What one process of the classifier benchmark measures: training steps, predictions, or the way from a file to a split.

Which of them, how often, and the tables are `classifier.py`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.benchmarks.classifier_rows import headlines_file
from newsjuice_pipelines.classification.corpus.split import SplitConfig, balanced_split, read_classes, read_part, write_split
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy
from newsjuice_pipelines.classification.training.finetune import train_classifier
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import numpy as np

TAXONOMY = "original-29"
ORIGINAL_BATCH, ORIGINAL_TOKENS = 16, 512
ORIGINAL_INFERENCE_BATCH = 32
ORIGINAL_LEARNING_RATE = 2e-5
WARM_UP_TEXTS = 32
ROBERTA_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # in the order of their ids
# FacebookAI/roberta-base's config.json: 125 M parameters.
ROBERTA_BASE = {
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}


@dataclass(frozen=True)
class TrainingJob:
    """A few training steps in one way."""

    recipe: str
    """`original` pads to 512 tokens; `plain` is a `Trainer` as it comes, padding to the longest of a batch; `ours`."""
    split: Path
    model: str
    base_path: str
    """Folder of the weights; empty: the model's own."""
    steps: int
    """Steps that are timed."""
    warmup_steps: int
    gpu: bool
    batch_size: int = ORIGINAL_BATCH
    """Of the original and the plain recipe; ours has its own."""
    tokens: int = ORIGINAL_TOKENS
    """What the original pads to."""


@dataclass(frozen=True)
class PredictionJob:
    """Predictions in one way."""

    way: str
    """`original` (batches padded to 512), `torch` and `linear` (as checkpoints are loaded), or `int8`."""
    checkpoint: Path
    texts: Path
    """JSON list."""
    count: int
    tokens: int = ORIGINAL_TOKENS


def prepare_split(home: Path, data: Path | None, per_class: int) -> dict[str, Any]:
    """Write the split that all recipes train on, and the texts that are predicted: those of its test part."""
    from newsjuice_pipelines.classification.corpus.huffpost import load_huffpost

    (home / "split").mkdir()
    rows = load_huffpost(headlines_file(data)).rows
    facts = write_split(balanced_split(rows, load_taxonomy(TAXONOMY), SplitConfig(per_class=per_class)), home / "split")
    write_json(home / "texts.json", {"texts": read_part(home / "split", "test")["text"].tolist()})
    return {"train_rows": facts["rows_per_part"]["train"], "classes": facts["class_count"]}


def prepare_classifiers(home: Path, steps: int, encoder: str = "minilm", encoder_path: str = "") -> dict[str, Any]:
    """Train the classifiers that predict, the encoder for so many steps only, and export it; what the export's gate found.

    The export is made whatever the gate says: the encoder answers for its speed here, not for its quality.
    """
    from newsjuice_pipelines.classification.serving.onnx_classifier import OnnxUnavailable
    from newsjuice_pipelines.classification.serving.onnx_export import ExportConfig, export_classifier

    config = ClassifierConfig(max_steps=steps, base_path=encoder_path)
    for model, name in (("linear", "linear"), (encoder, "encoder")):
        for folder in (name, f"{name}-scratch"):
            (home / folder).mkdir()
        train_classifier(model, home / "split", config, home / name, home / f"{name}-scratch")
    (home / "int8").mkdir()
    try:
        found = export_classifier(home / "encoder", home / "split", home / "int8", ExportConfig(max_accuracy_loss_points=100))
    except OnnxUnavailable as error:
        return {"passed": None, "reason": str(error)}
    return dict(found)


def write_roberta(home: Path, shape: Mapping[str, int]) -> None:
    """Write a RoBERTa with random weights and a tokenizer trained on the split's texts; only its cost means anything."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    from newsjuice_pipelines.runtime.seeds import set_seeds

    set_seeds(42)
    texts = read_part(home / "split", "train")["text"].tolist()
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, shape["vocab_size"], special_tokens=list(ROBERTA_MARKS), show_progress=False)
    learned.save_model(str(home))
    tokenizer = RobertaTokenizerFast(str(home / "vocab.json"), str(home / "merges.txt"), model_max_length=ORIGINAL_TOKENS)
    marks, classes = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}, len(read_classes(home / "split"))
    RobertaForSequenceClassification(RobertaConfig(**shape, **marks, num_labels=classes)).save_pretrained(home / "roberta")
    tokenizer.save_pretrained(home / "roberta")


def measure_training(job: TrainingJob) -> dict[str, Any]:
    """Train for a few steps, without validation and checkpoints.

    Returns:
        `examples_per_s`, `padding_share` (of all positions that were computed), `peak_memory_mib` of this process on its
        device, and the device.
    """
    if not job.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from newsjuice_pipelines.runtime.devices import best_device, peak_memory_mib

    measured = _our_steps(job) if job.recipe == "ours" else _trainer_steps(job)
    device = best_device()
    return {**measured, "peak_memory_mib": peak_memory_mib(device.type), "device": device.name}


def measure_predictions(job: PredictionJob) -> dict[str, Any]:
    """Predict `count` texts, tokenising included; loading and a short warm-up are timed apart.

    Returns:
        `load_s`, `texts_per_s`, `peak_memory_mib` and the predicted `labels`.
    """
    from newsjuice_pipelines.benchmarks.machine import peak_memory_mib

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    listed: list[str] = json.loads(job.texts.read_text(encoding="utf-8"))["texts"]
    texts = [listed[number % len(listed)] for number in range(job.count)]
    started = time.perf_counter()
    predict = _predictor(job)
    load_s = time.perf_counter() - started
    predict(texts[:WARM_UP_TEXTS])
    started = time.perf_counter()
    logits = predict(texts)
    wall_s = time.perf_counter() - started
    return {
        "load_s": load_s,
        "texts_per_s": len(texts) / wall_s,
        "peak_memory_mib": peak_memory_mib(),
        "labels": logits.argmax(axis=1).tolist(),
    }


def measure_data(file: Path, config: SplitConfig) -> dict[str, Any]:
    """Load, map, de-duplicate, split and write, as the assets do; seconds of each, processor seconds, most memory (MiB)."""
    from newsjuice_pipelines.benchmarks.machine import peak_memory_mib
    from newsjuice_pipelines.classification.corpus.huffpost import load_huffpost, read_huffpost, write_huffpost
    from newsjuice_pipelines.classification.corpus.taxonomy import write_taxonomy

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        started, processor_s = time.perf_counter(), time.process_time()
        table = load_huffpost(file)
        write_huffpost(table, out)
        loaded = time.perf_counter()
        rows, taxonomy = read_huffpost(out), load_taxonomy(TAXONOMY)
        write_taxonomy(taxonomy, rows, out)
        mapped = time.perf_counter()
        facts = write_split(balanced_split(rows, taxonomy, config), out)
        done = time.perf_counter()
    return {
        "lines": table.counts["lines"],
        "rows": len(rows),
        "split_rows": facts["row_count"],
        "load_s": loaded - started,
        "map_s": mapped - loaded,
        "split_s": done - mapped,
        "total_s": done - started,
        "processor_s": time.process_time() - processor_s,
        "peak_memory_mib": peak_memory_mib(),
    }


def _our_steps(job: TrainingJob) -> dict[str, Any]:
    from newsjuice_pipelines.classification.training.throughput import measure_throughput

    config = ClassifierConfig(base_path=job.base_path)
    found = measure_throughput(job.model, read_part(job.split, "train"), config, job.steps, job.warmup_steps)
    return {"examples_per_s": found.examples_per_s, "padding_share": found.padding_share}


def _trainer_steps(job: TrainingJob) -> dict[str, Any]:
    """A plain `Trainer` in fp32, as the original's notebook had it; random batches."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from newsjuice_pipelines.classification.training.models import base_model, weights_location

    location = weights_location(base_model(job.model), job.base_path)[0]
    classes, train = read_classes(job.split), read_part(job.split, "train")
    tokenizer = AutoTokenizer.from_pretrained(location)
    padded = job.recipe == "original"
    encoded = tokenizer(train["text"].tolist(), truncation=True, max_length=job.tokens, padding="max_length" if padded else False)
    items = [
        {**{name: encoded[name][place] for name in encoded}, "labels": int(label)}
        for place, label in enumerate(train["label_id"])
    ]
    network = AutoModelForSequenceClassification.from_pretrained(location, num_labels=len(classes), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=job.warmup_steps + job.steps,
            per_device_train_batch_size=job.batch_size,
            learning_rate=ORIGINAL_LEARNING_RATE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=not job.gpu,
        )
        trainer = Trainer(network, arguments, DataCollatorWithPadding(tokenizer), items)
        counter = _StepCounter(job.warmup_steps, job.steps)
        counter.attach(trainer)
        trainer.train()
    return {"examples_per_s": counter.rows / counter.wall_s, "padding_share": 1 - counter.tokens / counter.positions}


class _StepCounter:
    """Times a trainer's steps after the first few, what lies between them included, and counts what they compute."""

    def __init__(self, warmup_steps: int, steps: int) -> None:
        self._first, self._last = warmup_steps, warmup_steps + steps
        self.rows = self.positions = 0
        self.wall_s = 0.0
        self._started = 0.0
        self._tokens: list[Any] = []  # tensors: reading one would make the GPU wait

    @property
    def tokens(self) -> int:
        return sum(int(count) for count in self._tokens)

    def attach(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        counter, train_on = self, trainer.training_step

        def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if trainer.state.global_step >= counter._first:
                mask = inputs["attention_mask"]
                counter.rows += len(mask)
                counter.positions += mask.numel()
                counter._tokens.append(mask.sum())
            return train_on(model, inputs, num_items_in_batch)

        class Timing(TrainerCallback):  # type: ignore[misc]  # untyped base
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                counter._started = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step in (counter._first, counter._last):
                    _wait_for(args.device.type)
                if state.global_step == counter._first:
                    counter._started = time.perf_counter()
                elif state.global_step == counter._last:
                    counter.wall_s = time.perf_counter() - counter._started

        trainer.training_step = training_step
        trainer.add_callback(Timing())


def _wait_for(device: str) -> None:
    """Let the GPU finish, so that its work counts where it was asked for."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _predictor(job: PredictionJob) -> Callable[[Sequence[str]], np.ndarray]:
    if job.way == "original":
        return padded_batches(job.checkpoint, job.tokens)
    if job.way == "int8":
        from newsjuice_pipelines.classification.serving.onnx_classifier import OnnxClassifier

        predict: Callable[[Sequence[str]], np.ndarray] = OnnxClassifier(job.checkpoint).predict_logits
        return predict
    from newsjuice_pipelines.classification.serving.predict import load_classifier

    return load_classifier(job.checkpoint).predict_logits


def padded_batches(checkpoint: Path, tokens: int) -> Callable[[Sequence[str]], np.ndarray]:
    """The original's evaluation: texts in the order they come, batches of 32, each text padded to 512 tokens."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    network = AutoModelForSequenceClassification.from_pretrained(checkpoint, local_files_only=True, dtype=torch.float32).eval()

    def predict(texts: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), ORIGINAL_INFERENCE_BATCH):
            batch = list(texts[start : start + ORIGINAL_INFERENCE_BATCH])
            encoded = tokenizer(batch, truncation=True, max_length=tokens, padding="max_length", return_tensors="pt")
            with torch.inference_mode():
                found.append(network(**encoded).logits.numpy())
        return np.concatenate(found)

    return predict
