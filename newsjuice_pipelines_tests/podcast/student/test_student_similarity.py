"""Embedding similarity with the packaged MiniLM weights."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from newsjuice_pipelines.podcast.judging.quality import QualityConfig, quality_report
from newsjuice_pipelines.podcast.judging.similarity import WINDOW_TOKENS, Embedder, similarities
from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm

BRIDGE = "The mayor opened a new bridge over the river on Monday."
SAME = "On Monday a bridge across the river was opened by the mayor."
RATES = "Interest rates rose while shares in the car maker fell on the stock exchange."


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    folder = packaged_minilm()
    assert folder is not None
    return Embedder.load(folder)


def test_the_same_meaning_in_other_words_is_near(embedder: Embedder) -> None:
    near = similarities(embedder, [BRIDGE] * 4, {"student": [SAME, RATES, BRIDGE, "\u200b"]})["student"]

    assert near[0] is not None
    assert near[1] is not None
    assert near[0] > 0.85
    assert near[1] < 0.3
    assert near[2] == pytest.approx(1, abs=1e-5)
    assert near[3] == 0, "an empty script is not left out"
    assert similarities(embedder, ["", "\u200b "], {"student": [BRIDGE, ""]})["student"] == [None, None]


def test_a_text_beyond_the_window_is_read_to_its_end(embedder: Embedder) -> None:
    long = f"{RATES} " * 20
    only, mixed, other = embedder.embed([long, f"{long} {BRIDGE} " + f"{SAME} {BRIDGE} " * 12, BRIDGE])
    assert len(embedder.tokenizer(long)["input_ids"]) > WINDOW_TOKENS

    assert mixed @ other > only @ other + 0.3


def test_a_text_of_one_window_is_its_mean_pooled_embedding(embedder: Embedder) -> None:
    import torch

    encoded = embedder.tokenizer([BRIDGE], return_tensors="pt").to(embedder.model.device)
    with torch.inference_mode():
        expected = embedder.model(**encoded).last_hidden_state[0].mean(0)
    expected = (expected / expected.norm()).cpu().numpy()

    assert np.abs(embedder.embed([SAME, BRIDGE, RATES * 3])[1] - expected).max() < 1e-5


def test_nothing_to_embed_is_no_error(embedder: Embedder) -> None:
    assert similarities(embedder, [], {"student": []}) == {"student": []}
    assert not embedder.embed([""]).any()


def test_the_report_has_the_similarity_to_the_teacher(tmp_path: Path) -> None:
    rows = [
        {"chunk_id": str(number), "article_id": str(number), "split": "test", "chunk_text": BRIDGE, "finish_reason": "eos"}
        | {"gemini_podcast_text": BRIDGE, "student_podcast_text": script}
        for number, script in enumerate((BRIDGE, RATES, ""))
    ]

    results = quality_report(pd.DataFrame(rows), None, tmp_path, QualityConfig())

    assert results["systems"]["student"]["similarity"]["scripts"] == 3
    assert 0.3 < results["systems"]["student"]["similarity"]["value"] < 0.45
    assert results["systems"]["teacher"]["similarity"]["value"] is None
    assert "similarity" not in results["not_measured"]
