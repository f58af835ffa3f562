"""One run of the classifier's defect ledger: train as the original did and as it should be done, and note every test row.

Which runs there are, their intervals and the table are `classifier_defects.py`.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from newsjuice_pipelines.benchmarks.classifier_intervals import Side
from newsjuice_pipelines.classification.corpus.clusters import find_clusters
from newsjuice_pipelines.classification.corpus.huffpost import row_id_of
from newsjuice_pipelines.classification.corpus.split import SplitConfig, balanced_split, read_part, write_split
from newsjuice_pipelines.classification.corpus.taxonomy import load_taxonomy, packaged_taxonomies
from newsjuice_pipelines.classification.judging.answers import FILED
from newsjuice_pipelines.classification.judging.calibrate import read_calibration
from newsjuice_pipelines.classification.judging.evaluate import PREDICTIONS, evaluate_classifier
from newsjuice_pipelines.classification.serving.crosswalk import load_crosswalk
from newsjuice_pipelines.classification.serving.external import COMPARISON, predict_external
from newsjuice_pipelines.classification.serving.predict import load_classifier
from newsjuice_pipelines.classification.training.finetune import train_classifier
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig
from newsjuice_pipelines.classification.training.saved_state import WEIGHTS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from newsjuice_pipelines.runtime.tracking import Tracker

ORIGINAL_TAXONOMY = "original-29"
ORIGINAL_DROPPED_SHARE = 0.86  # of the labelled rows, by its cap
ROWS, EXTERNAL = "rows.parquet", "external.parquet"
SUFFIXES = ("(PHOTOS)", "(VIDEO)", "- Update", "(PICTURES)")  # what such a desk adds when it runs a story again


@dataclass(frozen=True)
class LedgerSettings:
    """What is trained, and on how much."""

    model: str = "linear"
    """Trained wherever the defect does not need an encoder."""
    encoder: str = "minilm"
    """Trained for D10 and D11."""
    encoder_path: str = ""
    """Folder with its weights; empty: its own."""
    other_taxonomy: str = ""
    """What D14 holds against the original's classes; empty: the newest proposal that is packaged."""
    per_class: int = 1000
    """Rows of a class, as the original's cap."""
    encoder_per_class: int = 150
    """Rows of a class for D11, where every seed trains an encoder."""
    encoder_epochs: int = 5
    """Checkpoints that D11 chooses from; the original had three."""
    planted_share: float = 0.05
    """Rows that D12 repeats with a word changed, since the data hold few of their own."""
    timed_steps: int = 30
    """Steps of 16 texts that D10 times without padding."""
    timed_padded_steps: int = 1
    """The same with padding, where one takes as long as all of the others together."""
    padded_tokens: int = 512
    """What D10 pads to."""
    compared_texts: int = 64
    """Texts that D10 predicts both ways."""


def run_variant(name: str, seed: int, home: Path, settings: LedgerSettings, threads: int | None = 1) -> dict[str, Any]:
    """One run of the ledger, in so many threads (None: as many as there are): what `RUNS[name]` returns."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        return RUNS[name](home, Path(folder), seed, settings)


def picked_by_test(home: Path, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    """D11: every epoch's checkpoint of one training, judged row by row; the split is the same for every seed.

    Returns:
        `right` (epochs x test rows), `validation_losses` (of each epoch) and `group` (of each test row).
    """
    config = SplitConfig(per_class=settings.encoder_per_class, seed=42)
    split = _split(_rows(home), ORIGINAL_TAXONOMY, config, work / "split")
    tuning = ClassifierConfig(
        epochs=settings.encoder_epochs, early_stopping_patience=0, seed=seed, base_path=settings.encoder_path
    )
    kept = EveryCheckpoint(work / "scratch", work / "kept")
    checkpoint = _folder(work / "checkpoint")
    _folder(work / "scratch")
    train_classifier(settings.encoder, split, tuning, checkpoint, work / "scratch", cast("Tracker", kept))
    kept.keep()
    test = read_part(split, "test")
    right = []
    for epoch in kept.folders():
        for file in checkpoint.iterdir():  # tokenizer and description; the weights are the epoch's own
            if not (epoch / file.name).exists():
                shutil.copy(file, epoch)
        right.append(_right(load_classifier(epoch).predict_logits(test["text"].tolist()), test))
    return {
        "right": right,
        "validation_losses": [kept.losses[step] for step in sorted(kept.losses)],
        "group": test["group"].tolist(),
    }


def near_duplicates(home: Path, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    """D12: a split that does not look for near-duplicates, trained with and without the rows that a test row repeats.

    Returns:
        `found` and `planted`: `all` and `leaked` test rows, each with `original` and `right` sides.
    """
    rows = _rows(home)
    planted = _with_planted(rows, settings.planted_share, seed)
    return {name: _leak(table, _folder(work / name), seed, settings) for name, table in (("found", rows), ("planted", planted))}


def capped(home: Path, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    """D13: rows above the cap thrown away or kept for training; the test part is the same.

    Returns:
        `cap` (the original's) and `share` (a cap that drops as large a share as it dropped), each with `per_class`,
        `train_rows`, and `original` and `right` sides.
    """
    rows, taxonomy = _rows(home), load_taxonomy(ORIGINAL_TAXONOMY)
    usable = sum(taxonomy.class_of(section) is not None for section in rows["category"])
    same_share = max(10, round(usable * (1 - ORIGINAL_DROPPED_SHARE) / len(taxonomy.classes)))
    return {
        name: _cap(rows, per_class, _folder(work / name), seed, settings)
        for name, per_class in (("cap", settings.per_class), ("share", same_share))
    }


def questions(home: Path, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    """D14, D15 and D16, which ask one trained classifier, and one of other classes.

    Returns:
        `original` and `proposed` (by taxonomy): sides `right`, `filed` and `filed_right`, with the certified `threshold`;
        `external`: sides `original` and `right` over another source's labelled articles.
    """
    found: dict[str, Any] = {}
    for name, taxonomy in (("original", ORIGINAL_TAXONOMY), ("proposed", settings.other_taxonomy or proposed_taxonomy())):
        place = _folder(work / name)
        split = _split(_rows(home), taxonomy, SplitConfig(per_class=settings.per_class, seed=seed), place / "split")
        checkpoint, judged = _train(settings.model, split, seed, place), _folder(place / "judged")
        evaluate_classifier(checkpoint, split, judged)
        found[name] = {"taxonomy": taxonomy, **_filed(judged)}
        if name == "original":
            found["external"] = _external(home, checkpoint, judged, _folder(place / "external"))
    return found


def padding(home: Path, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    """D10: the same steps and the same predictions, padded and not. Takes the whole machine.

    Returns:
        `original` and `right` examples a second, their `padding_share`s, and over the compared texts `same_label` (a share)
        and `largest_difference` of a probability.
    """
    from newsjuice_pipelines.benchmarks.classifier_runs import ORIGINAL_BATCH, padded_batches
    from newsjuice_pipelines.classification.judging.calibrate import softmax
    from newsjuice_pipelines.classification.training.throughput import measure_throughput

    split = _split(_rows(home), ORIGINAL_TAXONOMY, SplitConfig(per_class=settings.encoder_per_class), work / "split")
    train, test = read_part(split, "train"), read_part(split, "test")
    config = ClassifierConfig(
        batch_size=ORIGINAL_BATCH, max_length=settings.padded_tokens, seed=seed, base_path=settings.encoder_path
    )
    steps = {"right": settings.timed_steps, "original": settings.timed_padded_steps}
    right = measure_throughput(settings.encoder, train, config, steps["right"])
    original = measure_throughput(settings.encoder, train, replace(config, pad_to_max_length=True), steps["original"])
    texts = test["text"].tolist()[: settings.compared_texts]
    checkpoint = _train(settings.encoder, split, seed, work, max_steps=settings.timed_steps, base_path=settings.encoder_path)
    padded = softmax(padded_batches(checkpoint, settings.padded_tokens)(texts))
    plain = softmax(load_classifier(checkpoint).predict_logits(texts))
    return {
        "original": original.examples_per_s,
        "right": right.examples_per_s,
        "padding_share": {"original": original.padding_share, "right": right.padding_share},
        "same_label": float((padded.argmax(axis=1) == plain.argmax(axis=1)).mean()),
        "largest_difference": float(abs(padded - plain).max()),
    }


RUNS: Mapping[str, Callable[[Path, Path, int, LedgerSettings], dict[str, Any]]] = {
    "D10": padding,
    "D11": picked_by_test,
    "D12": near_duplicates,
    "D13": capped,
    "D14-D16": questions,
}


class EveryCheckpoint:
    """Takes a tracker's place and keeps the weights of every epoch, of which training leaves those of the best one only."""

    url: str | None = None

    def __init__(self, scratch: Path, kept: Path) -> None:
        """Watch `scratch`, where a state is saved after each validation and replaced later."""
        self._scratch, self._kept = scratch, kept
        self.losses: dict[int, float] = {}
        kept.mkdir()

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any]) -> Iterator[EveryCheckpoint]:
        """The tracker is its only run."""
        yield self

    def log(self, values: Mapping[str, Any]) -> None:
        """Note a validation loss; by the next line of the log, its state is saved."""
        self.keep()
        if "eval_loss" in values:
            self.losses[int(values["step"])] = float(values["eval_loss"])

    def keep(self) -> None:
        """Copy the weights of validated states that are new."""
        for step in self.losses:
            weights = self._scratch / f"checkpoint-{step}" / WEIGHTS
            if weights.is_file() and not (self._kept / str(step)).exists():
                _folder(self._kept / str(step))
                shutil.copy(weights, self._kept / str(step))

    def folders(self) -> list[Path]:
        """The kept weights, one folder an epoch, in order."""
        found = [self._kept / str(step) for step in sorted(self.losses)]
        assert all(folder.is_dir() for folder in found), "a state was replaced before it could be kept"
        return found


def proposed_taxonomy() -> str:
    """The newest packaged proposal of other classes."""
    return max(name for name in packaged_taxonomies() if name.startswith("proposed"))


def _leak(rows: pd.DataFrame, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    config = SplitConfig(per_class=settings.per_class, seed=seed, grouping="none")
    split = _split(rows, ORIGINAL_TAXONOMY, config, work / "split")
    train, test = read_part(split, "train"), read_part(split, "test")
    cluster = find_clusters([*train["text"], *test["text"]]).numbers
    of_train, of_test = cluster[: len(train)], cluster[len(train) :]
    trained, tested = set(of_train.tolist()), set(of_test.tolist())
    with_them = _right(_predict(settings.model, split, test, seed, _folder(work / "with")), test)
    train[[number not in tested for number in of_train.tolist()]].to_parquet(split / "train.parquet", index=False)
    without = _right(_predict(settings.model, split, test, seed, _folder(work / "without")), test)
    # A row of another seed's test part is the same text if its first text of the cluster is.
    first: dict[int, str] = {}
    for number, row_id in zip(of_test.tolist(), test["row_id"], strict=True):
        first.setdefault(number, row_id)
    groups = [first[number] for number in of_test.tolist()]
    some = [place for place, number in enumerate(of_test.tolist()) if number in trained]
    return {
        "all": {"original": _side(with_them, groups), "right": _side(without, groups)},
        "leaked": {
            "original": _side([with_them[place] for place in some], [groups[place] for place in some]),
            "right": _side([without[place] for place in some], [groups[place] for place in some]),
        },
    }


def _with_planted(rows: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The rows, and copies of some with a word changed at the end or left out, in the same section."""
    import pandas as pd

    chooser = random.Random(seed)
    chosen = rows.iloc[sorted(chooser.sample(range(len(rows)), round(share * len(rows))))].copy()
    chosen["text"] = [_nearly(text, chooser) for text in chosen["text"]]
    chosen["row_id"] = [row_id_of(text) for text in chosen["text"]]
    return pd.concat([rows, chosen], ignore_index=True).drop_duplicates("row_id", ignore_index=True)


def _nearly(text: str, chooser: random.Random) -> str:
    words = text.split()
    if len(words) > 8 and chooser.random() < 0.5:
        words.pop(chooser.randrange(len(words)))
        return " ".join(words)
    return f"{text} {chooser.choice(SUFFIXES)}"


def _cap(rows: pd.DataFrame, per_class: int, work: Path, seed: int, settings: LedgerSettings) -> dict[str, Any]:
    config = SplitConfig(per_class=per_class, seed=seed)
    sides, sizes = {}, {}
    for name, preset in (("original", "balanced"), ("right", "full")):
        split = _split(rows, ORIGINAL_TAXONOMY, replace(config, preset=preset), work / name)
        test = read_part(split, "test")
        sides[name] = _side(
            _right(_predict(settings.model, split, test, seed, _folder(work / f"{name}-model")), test), test["group"]
        )
        sizes[name] = len(read_part(split, "train"))
    return {"per_class": per_class, "train_rows": sizes, **sides}


def _filed(judged: Path) -> dict[str, Any]:
    """What an evaluation noted of every test row, with and without its certified threshold."""
    import pandas as pd

    threshold = json.loads((judged / "results.json").read_text(encoding="utf-8"))["certified"]["threshold"]
    rows = pd.read_parquet(judged / PREDICTIONS)
    right = (rows["predicted"] == rows["label_id"]).to_numpy()
    filed = (rows["decision"] == FILED).to_numpy()
    return {
        "threshold": threshold,
        "right": _side(right, rows["group"]),
        "filed": _side(filed, rows["group"]),
        "filed_right": _side(right[filed], rows["group"][filed]),
    }


def _external(home: Path, checkpoint: Path, judged: Path, out: Path) -> dict[str, Any]:
    """The same predictions compared as the original's notebook compared them, and through the crosswalk."""
    import pandas as pd

    rows, sections, sides = pd.read_parquet(home / EXTERNAL), load_taxonomy(ORIGINAL_TAXONOMY).mapping, {}
    for name, raw in (("original", True), ("right", False)):
        written = _folder(out / name)
        predict_external(
            rows, checkpoint, read_calibration(judged), load_crosswalk(), written, sections=sections, compare_raw_strings=raw
        )
        with (written / COMPARISON).open(encoding="utf-8", newline="") as stream:
            compared = [row for row in csv.DictReader(stream) if row["match"]]
        sides[name] = _side([row["match"] == "True" for row in compared], [row["id"] for row in compared])
    return sides


def _rows(home: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(home / ROWS)


def _split(rows: pd.DataFrame, taxonomy: str, config: SplitConfig, out: Path) -> Path:
    write_split(balanced_split(rows, load_taxonomy(taxonomy), config), _folder(out))
    return out


def _train(model: str, split: Path, seed: int, work: Path, **config: Any) -> Path:
    checkpoint = _folder(work / "checkpoint")
    train_classifier(model, split, ClassifierConfig(seed=seed, **config), checkpoint, _folder(work / "scratch"))
    return checkpoint


def _predict(model: str, split: Path, test: pd.DataFrame, seed: int, work: Path) -> np.ndarray:
    return load_classifier(_train(model, split, seed, work)).predict_logits(test["text"].tolist())


def _right(logits: np.ndarray, test: pd.DataFrame) -> list[float]:
    """1.0 where the most likely class is the row's."""
    found: list[float] = (logits.argmax(axis=1) == test["label_id"].to_numpy()).astype(float).tolist()
    return found


def _side(values: Iterable[Any], groups: Iterable[Any]) -> Side:
    return {"values": [float(value) for value in values], "groups": [str(group) for group in groups]}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
