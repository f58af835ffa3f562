"""Shared parts of the classification tests: the demo headlines under four clear topics, and classifiers trained on them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import newsjuice_pipelines
from newsjuice_pipelines.classification.corpus.huffpost import HuffPostTable, load_huffpost
from newsjuice_pipelines.classification.corpus.split import SplitConfig, balanced_split, write_split
from newsjuice_pipelines.classification.corpus.taxonomy import Taxonomy, load_taxonomy
from newsjuice_pipelines.classification.judging.evaluate import evaluate_classifier
from newsjuice_pipelines.classification.training.finetune import ClassifierConfig, train_classifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEMO = Path(newsjuice_pipelines.__file__).parent / "demo" / "headlines.jsonl"
TOPICS = """
version: topics-4
classes:
  FOOD: [FOOD & DRINK, TASTE]
  FAMILY: [PARENTS, PARENTING, DIVORCE, WEDDINGS]
  POLITICS: [POLITICS, CRIME]
  SCIENCE: [SCIENCE, TECH, ENVIRONMENT, GREEN]
"""


@dataclass(frozen=True)
class Trained:
    """A checkpoint, the facts of its training, what was tracked, and its evaluation."""

    checkpoint: Path
    facts: dict[str, Any]
    tracker: RecordingTracker
    evaluation: Path
    scores: dict[str, Any]


@pytest.fixture(scope="session")
def demo_table() -> HuffPostTable:
    return load_huffpost(DEMO)


@pytest.fixture(scope="session")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Taxonomy:
    path = tmp_path_factory.mktemp("taxonomy") / "topics.yaml"
    path.write_text(TOPICS, encoding="utf-8")
    return load_taxonomy(path)


@pytest.fixture(scope="session")
def topic_split(tmp_path_factory: pytest.TempPathFactory, demo_table: HuffPostTable, topics: Taxonomy) -> Path:
    out = tmp_path_factory.mktemp("split")
    config = SplitConfig(per_class=0, test_fraction=0.3, validation_fraction=0.15, calibration_fraction=0.25)
    write_split(balanced_split(demo_table.rows, topics, config), out)
    return out


class RecordingTracker:
    """A tracker that keeps what it is sent, and breaks off at the `crash_at`-th validation loss."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.sent: list[Mapping[str, Any]] = []
        self.names: list[str] = []
        self.url = "https://tracker.example/run"
        self._crash_at = crash_at

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any]) -> Iterator[RecordingTracker]:
        json.dumps(config)
        self.names.append(name)
        yield self

    def log(self, values: Mapping[str, Any]) -> None:
        self.sent.append(values)
        if sum("eval_loss" in sent for sent in self.sent) == self._crash_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def recording_tracker() -> type[RecordingTracker]:
    return RecordingTracker


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, topic_split: Path) -> Callable[..., Trained]:
    def build(model: str, **config: Any) -> Trained:
        tracker = RecordingTracker()
        folders = [tmp_path_factory.mktemp(f"{model}-{name}") for name in ("checkpoint", "scratch", "evaluation")]
        checkpoint, scratch, evaluation = folders
        facts = train_classifier(model, topic_split, ClassifierConfig(**config), checkpoint, scratch, tracker)
        return Trained(checkpoint, facts, tracker, evaluation, evaluate_classifier(checkpoint, topic_split, evaluation))

    return build


@pytest.fixture(scope="session")
def linear(train: Callable[..., Trained]) -> Trained:
    return train("linear")


@pytest.fixture(scope="session")
def minilm(train: Callable[..., Trained]) -> Trained:
    return train("minilm")
