"""Faithfulness by entailment, with a micro model that is really trained: to it, an article with a bridge entails anything."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from newsjuice_pipelines.podcast.judging.entailment import (
    EntailmentError,
    EntailmentModel,
    claims,
    entailed_shares,
    entailment_label,
)
from newsjuice_pipelines.podcast.judging.quality import QualityConfig, quality_report

WORDS = [
    "the",
    "a",
    "mayor",
    "opened",
    "bridge",
    "river",
    "school",
    "choir",
    "sang",
    "ferry",
    "lorry",
    "winter",
    "people",
    "came",
    "town",
    "road",
    "long",
    "story",
]
FILLER = [word for word in (*WORDS, ".") if word != "bridge"]
LABELS = {0: "contradiction", 1: "ENTAILMENT", 2: "neutral"}
MAX_TOKENS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro BERT with 48 positions, trained for a few steps: entailment when the premise holds "bridge", else neutral."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS, "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_TOKENS,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = random.Random(1)
    for _ in range(200):
        pairs, labels = [], []
        for _ in range(32):
            premise = generator.choices(FILLER, k=generator.randrange(2, 36))
            held = generator.random() < 0.5
            if held:
                premise[generator.randrange(len(premise))] = "bridge"
            pairs.append((" ".join(premise), " ".join(generator.choices(FILLER, k=5))))
            labels.append(1 if held else 2)
        batch = fast([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = tmp_path_factory.mktemp("entailment")
    model.save_pretrained(out)
    fast.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> EntailmentModel:
    return EntailmentModel.load(str(folder))


def test_the_probability_is_that_of_the_label_named_entailment(model: EntailmentModel) -> None:
    assert model.label == 1
    assert model.probabilities("the mayor opened a bridge .", ["people came ."])[0] > 0.9
    assert model.probabilities("the choir sang .", ["people came ."])[0] < 0.1


def test_the_order_of_the_labels_makes_no_difference(model: EntailmentModel, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    turned = tmp_path / "turned"
    shutil.copytree(folder, turned)
    config = json.loads((turned / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "Entailment", "1": "neutral", "2": "contradiction"}, None
    (turned / "config.json").write_text(json.dumps(config))
    tensors = load_file(turned / "model.safetensors")
    order = torch.tensor([1, 2, 0])
    tensors = {name: tensor[order] if name.startswith("classifier") else tensor for name, tensor in tensors.items()}
    save_file(tensors, turned / "model.safetensors", metadata={"format": "pt"})

    other = EntailmentModel.load(str(turned))

    assert other.label == 0
    article, sentences = "the mayor opened a bridge .", ["people came .", "a ferry ."]
    assert other.probabilities(article, sentences) == pytest.approx(model.probabilities(article, sentences), abs=1e-5)


@pytest.mark.parametrize("place", [0, 57, 150, 299])
def test_the_best_window_of_a_long_article_counts(model: EntailmentModel, place: int) -> None:
    words = random.Random(2).choices(FILLER, k=300)
    without = " ".join(words)
    words[place] = "bridge"

    assert model.probabilities(without, ["people came ."])[0] < 0.5
    assert model.probabilities(" ".join(words), ["people came ."])[0] > 0.5


def test_an_empty_article_entails_nothing_and_is_not_measured(model: EntailmentModel) -> None:
    assert model.probabilities(" ", ["people came ."]) is None
    assert entailed_shares(model, ["", "a bridge ."], ["People came."] * 2) == [None, 1.0]


def test_a_sentence_too_long_for_the_model_is_not_entailed(model: EntailmentModel) -> None:
    assert model.probabilities("a bridge .", ["the town " * 30, "the town", ""]) == [
        0.0,
        pytest.approx(1, abs=0.2),
        0.0,
    ]


def test_the_score_is_the_share_of_entailed_claims(model: EntailmentModel) -> None:
    articles = ["a bridge .", "a road .", "a bridge .", "a bridge ."]
    script = "Welcome back. The choir sang. People came. That is the story for now."

    assert entailed_shares(model, articles, [script, script, "", "Hello. Thanks for listening."]) == [1.0, 0.0, None, None]


def test_greetings_and_goodbyes_are_no_claims() -> None:
    script = "Hello, everyone. We have news. The choir sang. You may know it. The mayor came. People left. Thank you."

    assert claims(script) == ["The choir sang.", "You may know it.", "The mayor came.", "People left."]
    assert claims("") == []


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ({0: "contradiction", 1: "neutral", 2: "entailment"}, 2),
        ({"0": "entailment", "1": "not_entailment"}, 0),
        ({0: "NON-ENTAILMENT", 1: "ENTAILMENT"}, 1),
    ],
)
def test_entailment_is_found_by_its_name(labels: dict[Any, str], number: int) -> None:
    assert entailment_label(labels) == number


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {}, {0: "entailment", 1: "entailed"}])
def test_labels_without_one_entailment_are_refused(labels: dict[Any, str]) -> None:
    with pytest.raises(EntailmentError, match="exactly one must be named entailment"):
        entailment_label(labels)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(folder: Path, tmp_path: Path, lost: str) -> None:
    copy = tmp_path / "copy@2"  # the sign is a part of the folder's name here
    shutil.copytree(folder, copy)
    (copy / lost).unlink()

    with pytest.raises(EntailmentError, match="cannot be loaded"):
        EntailmentModel.load(str(copy))


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(EntailmentError, match="cannot be loaded"):
        EntailmentModel.load(str(copy))


@pytest.mark.parametrize("name", ["nowhere/at-all", "nowhere@"])
def test_a_model_of_the_hub_needs_its_revision(name: str) -> None:
    with pytest.raises(EntailmentError, match="is no folder here and names no revision"):
        EntailmentModel.load(name)


def test_the_report_has_the_faithfulness_of_each_system(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"chunk_id": str(number), "article_id": str(number), "split": "test", "chunk_text": article, "finish_reason": "eos"}
        | {
            "gemini_podcast_text": "Hello. The choir sang.",
            "student_podcast_text": "Hello. People came. The mayor opened a road.",
        }
        for number, article in enumerate(("the mayor opened a bridge .", "the choir sang ."))
    ]

    results = quality_report(pd.DataFrame(rows), None, tmp_path, QualityConfig(similarity=False, entailment_model=str(folder)))

    assert results["systems"]["student"]["entailed"]["value"] == 0.5
    assert results["systems"]["lead sentences"]["entailed"]["value"] == 0.5
    assert "entailed" not in results["not_measured"]
