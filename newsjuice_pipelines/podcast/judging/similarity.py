"""How near two texts are in meaning: the cosine of their MiniLM sentence embeddings, windows averaged for longer texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.judging.script_form import is_empty

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WINDOW_TOKENS = 256  # what all-MiniLM-L6-v2 was trained on, its two special tokens included
BATCH = 32


@dataclass(frozen=True)
class Embedder:
    """A sentence encoder with mean pooling, such as all-MiniLM-L6-v2."""

    tokenizer: Any
    model: Any

    @classmethod
    def load(cls, folder: Path) -> Embedder:
        """Load tokenizer and safetensors weights of a folder in Hugging Face layout onto the best device."""
        from transformers import AutoModel, AutoTokenizer

        from newsjuice_pipelines.runtime.devices import best_device

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(best_device().type)
        return cls(tokenizer, model.eval())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (texts x dimensions); a text without a token is all zeros.

        A text beyond `WINDOW_TOKENS` tokens is the mean of its windows' embeddings, each counted by its tokens.
        """
        import numpy as np

        size = WINDOW_TOKENS - self.tokenizer.num_special_tokens_to_add()
        windows: list[tuple[int, list[int]]] = []
        for number, ids in enumerate(self._token_ids(texts)):
            windows += [(number, ids[start : start + size]) for start in range(0, len(ids), size)]
        windows.sort(key=lambda window: len(window[1]))  # rows of one batch are of one length, so that little is padded
        total = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            vectors = self._window_vectors([ids for _, ids in batch])
            for (number, ids), vector in zip(batch, vectors, strict=True):
                total[number] += len(ids) * vector
        unit: NDArray[np.float32] = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        return unit

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        # truncation and padding off: the tokenizer's own file cuts texts at 128 tokens
        encoded = self.tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _window_vectors(self, windows: Sequence[list[int]]) -> NDArray[np.float32]:
        """Mean of the token vectors of each window, at length 1."""
        import torch

        first, last = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        batch = self.tokenizer.pad({"input_ids": [first + ids + last for ids in windows]}, return_tensors="pt")
        batch = batch.to(self.model.device)
        with torch.inference_mode():
            tokens = self.model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        vectors = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1))
        found: NDArray[np.float32] = vectors.cpu().numpy()
        return found


def similarities(
    embedder: Embedder, references: Sequence[str], systems: dict[str, Sequence[str]]
) -> dict[str, list[float | None]]:
    """The cosine (-1 to 1) of each system's texts with the references, row by row.

    None where the reference is empty. An empty text is as far from any other as unrelated ones are, 0.0: leaving it out would
    praise a system for saying nothing.

    Args:
        embedder: the encoder.
        references: a text a row.
        systems: texts by system, as many as there are references.
    """
    texts = list(dict.fromkeys([*references, *(text for column in systems.values() for text in column)]))
    place = {text: number for number, text in enumerate(texts)}
    vectors = embedder.embed(texts) if texts else None

    def cosine(text: str, reference: str) -> float | None:
        if vectors is None or is_empty(reference):
            return None
        if is_empty(text):
            return 0.0
        return float(min(1.0, vectors[place[text]] @ vectors[place[reference]]))

    return {
        name: [cosine(text, reference) for text, reference in zip(column, references, strict=True)]
        for name, column in systems.items()
    }
