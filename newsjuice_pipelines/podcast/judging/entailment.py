"""Whether an article entails the sentences of a script, by a model of natural-language inference that a person configures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.judging.script_form import FRAME_SENTENCES, is_closing, is_greeting
from newsjuice_pipelines.podcast.text.sentences import split_sentences
from newsjuice_pipelines.runtime.progress import Progress

ENTAILED_FROM = 0.5  # probability from which a sentence counts as entailed
MAX_WINDOW_TOKENS = 512  # most models of this kind were trained on no more; longer articles are cut into windows
BATCH = 8
_OVERLAP = 0.25  # of a window's article tokens, so that a fact at a border stands whole in one of them


class EntailmentError(ValueError):
    """The entailment model cannot be used."""


@dataclass(frozen=True)
class EntailmentModel:
    """A classifier of premise and hypothesis, one of whose labels is entailment."""

    tokenizer: Any
    model: Any
    label: int
    max_tokens: int

    @classmethod
    def load(cls, name: str) -> EntailmentModel:
        """Load a folder in Hugging Face layout, or a hub id with its revision (`id@revision`), onto the best device.

        Raises:
            EntailmentError: no such model, no safetensors weights, damaged ones, or no label that means entailment.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from newsjuice_pipelines.runtime.devices import best_device

        is_folder = Path(name).is_dir()
        location, _, revision = (name, "", "") if is_folder else name.partition("@")
        if not is_folder and not revision:
            raise EntailmentError(
                f"the entailment model {name!r} is no folder here and names no revision: give it as id@revision."
            )
        options = {"revision": revision} if revision else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
            model = AutoModelForSequenceClassification.from_pretrained(location, use_safetensors=True, **options)
        except (OSError, ValueError, SafetensorError) as error:
            raise EntailmentError(
                f"the entailment model {name!r} cannot be loaded ({str(error).splitlines()[0]}): give a folder with config, "
                "tokenizer and model.safetensors, or a hub id with its revision as id@revision."
            ) from error
        label = entailment_label(model.config.id2label)
        return cls(tokenizer, model.to(best_device().type).eval(), label, _max_tokens(tokenizer, model.config))

    def probabilities(self, article: str, sentences: Sequence[str]) -> list[float] | None:
        """For each sentence the probability of entailment by the window of the article that supports it best, 0 to 1.

        None for an article without a token, which is no premise.

        A sentence that fills over half a window is none that the model can judge, and counts as not entailed.
        """
        import torch

        if not self._tokens(article):
            return None
        best = [0.0] * len(sentences)
        owners: list[int] = []
        encoded: list[dict[str, Any]] = []
        for number, sentence in enumerate(sentences):
            for window in self._windows(article, sentence):
                owners.append(number)
                encoded.append(window)
        for start in range(0, len(encoded), BATCH):
            batch = self.tokenizer.pad(encoded[start : start + BATCH], return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                shares = self.model(**batch).logits.float().softmax(-1)[:, self.label].tolist()
            for number, share in zip(owners[start:], shares, strict=False):
                best[number] = max(best[number], share)
        return best

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def _windows(self, article: str, sentence: str) -> list[dict[str, Any]]:
        length = self._tokens(sentence)
        room = self.max_tokens - length - self.tokenizer.num_special_tokens_to_add(pair=True)
        if not length or length > self.max_tokens // 2 or room < 1:
            return []
        found = self.tokenizer(
            article,
            sentence,
            truncation="only_first",
            max_length=self.max_tokens,
            stride=int(room * _OVERLAP),
            return_overflowing_tokens=True,
        )
        names = [name for name in self.tokenizer.model_input_names if name in found]
        return [{name: found[name][number] for name in names} for number in range(len(found["input_ids"]))]


def entailment_label(id2label: Mapping[Any, str]) -> int:
    """The number of the label that means entailment, whatever the order of the labels.

    Raises:
        EntailmentError: none, or more than one.
    """
    words = {int(number): str(label).casefold().replace("_", " ").replace("-", " ") for number, label in id2label.items()}
    found = [number for number, label in words.items() if "entail" in label and not label.startswith(("not ", "non "))]
    if len(found) != 1:
        listed = ", ".join(map(str, id2label.values()))
        raise EntailmentError(f"the entailment model's labels are {listed}: exactly one must be named entailment.")
    return found[0]


def claims(script: str) -> list[str]:
    """The sentences of `script` that claim something: without those that greet, sign off or speak to listeners at either end."""
    sentences = split_sentences(script)
    last = len(sentences) - FRAME_SENTENCES
    return [
        sentence
        for number, sentence in enumerate(sentences)
        if not (number < FRAME_SENTENCES and is_greeting(sentence)) and not (number >= last and is_closing(sentence))
    ]


def entailed_shares(model: EntailmentModel, articles: Sequence[str], scripts: Sequence[str]) -> list[float | None]:
    """The share of each script's claims that its article entails, 0 to 1; None for no claim, or an empty article."""
    progress = Progress("entailment", len(scripts), "scripts")
    shares: list[float | None] = []
    for article, script in zip(articles, scripts, strict=True):
        asked = claims(script)
        probabilities = model.probabilities(article, asked) or []
        entailed = [probability >= ENTAILED_FROM for probability in probabilities]
        shares.append(sum(entailed) / len(entailed) if entailed else None)
        progress.advance()
    return shares


def _max_tokens(tokenizer: Any, config: Any) -> int:
    """The longest input of the model; RoBERTa and its kin number positions from behind the padding token's."""
    places = int(getattr(config, "max_position_embeddings", 0) or MAX_WINDOW_TOKENS)
    if "roberta" in str(config.model_type) and "deberta" not in str(config.model_type):
        places -= int(config.pad_token_id or 0) + 1
    return min(places, int(tokenizer.model_max_length), MAX_WINDOW_TOKENS)
