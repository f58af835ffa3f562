"""A real encoder small enough to train in a second: BERT's architecture, random weights, MiniLM's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm

# The usual size of a test, told to every training that is about something else than how well it learns.
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout, as a user would give it."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = AutoTokenizer.from_pretrained(packaged_minilm())
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
