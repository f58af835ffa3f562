"""Unit vectors of texts for comparing what they mean: MiniLM from its pip package, or words weighted by TF-IDF without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH_TEXTS = 64
MAX_TOKENS = 128


def minilm_vectors(texts: Sequence[str], weights: Path) -> NDArray[np.float32]:
    """One unit vector of 384 numbers a text: the mean over its tokens, as the model was trained for.

    Args:
        texts: only the first 128 tokens of each are read.
        weights: the folder of MiniLM's weights.
    """
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
    model = AutoModel.from_pretrained(weights, local_files_only=True).eval()
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    by_length = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
    for start in range(0, len(texts), BATCH_TEXTS):
        places = by_length[start : start + BATCH_TEXTS]
        batch = tokenizer(
            [texts[place] for place in places], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        vectors[places] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return vectors


def word_vectors(texts: Sequence[str]) -> Any:
    """A sparse unit vector a text: its words, the rarer among these texts the heavier."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = r"(?u)\w+|\S"  # signs too, so that every text has at least one
    return TfidfVectorizer(analyzer=re.compile(words).findall, sublinear_tf=True).fit_transform([text.lower() for text in texts])
