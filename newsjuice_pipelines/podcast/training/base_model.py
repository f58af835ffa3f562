"""Base models: fetching one at a pinned revision, telling which one a folder holds, and the one loading code for all.

The stand-in model that is trained here comes from `tiny_model.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny
from newsjuice_pipelines.runtime.provenance import fingerprint

__all__ = [
    "DEFAULT_HUB_MODEL",
    "DEFAULT_HUB_REVISION",
    "BaseModelError",
    "TinyConfig",
    "base_identity",
    "build_tiny",
    "check_base_folder",
    "differing_files",
    "fetch_base_model",
    "load_model",
    "load_tokenizer",
    "tensor_shapes",
]

logger = logging.getLogger("newsjuice.base_model")

DEFAULT_HUB_MODEL = "Qwen/Qwen3-0.6B"
DEFAULT_HUB_REVISION = "c1899de289a04d12100db370d81485cdf75e47ca"

WANTED_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
    "README.md",
)
IDENTITY_FILES = ("config.json", "tokenizer.json", "*.safetensors.index.json", "*.safetensors")
DTYPES = ("float32", "bfloat16", "float16")


class BaseModelError(ValueError):
    """A base model cannot be fetched or used."""


def fetch_base_model(name_or_path: str, revision: str, out: Path) -> dict[str, Any]:
    """Put a base model into `out`: a hub model at a pinned revision, or a copy of a local folder.

    Only safetensors, tokenizer and configuration files are taken; code and pickles never are.

    Args:
        name_or_path: a local folder in Hugging Face layout, or a hub id such as `Qwen/Qwen3-0.6B`.
        revision: the commit of the hub model (40 hexadecimal digits); not used for a local folder.
        out: an existing empty directory.

    Raises:
        BaseModelError: the folder or model is missing or unusable, or the revision is not a commit.
    """
    local = Path(name_or_path).expanduser()
    is_local = local.is_dir()
    if not is_local and (
        local.is_absolute() or name_or_path.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path)
    ):
        raise BaseModelError(
            f"there is no folder {name_or_path!r}, and it is not a hub id of the form owner/name: check the name."
        )
    if is_local:
        check_base_folder(local)
        for pattern in WANTED_FILES:
            for file in sorted(local.glob(pattern)):
                shutil.copyfile(file, out / file.name)
    else:
        _download(name_or_path, revision, out)
    check_base_folder(out)
    return {
        "source": str(local.resolve()) if is_local else name_or_path,
        "revision": None if is_local else revision,
        "architecture": json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"],
        "parameters": count_parameters(out),
        "size_bytes": sum(file.stat().st_size for file in out.iterdir() if file.is_file()),
        "identity": base_identity(out)["identity"],
    }


def default_revision(name_or_path: str) -> str:
    """The pinned commit of the default hub model; empty for a local folder, which has none.

    Raises:
        BaseModelError: another hub model, for which no commit is pinned.
    """
    if name_or_path == DEFAULT_HUB_MODEL:
        return DEFAULT_HUB_REVISION
    if Path(name_or_path).expanduser().is_dir():
        return ""
    raise BaseModelError(
        f"no commit is pinned for the base model {name_or_path!r}: set NEWSJUICE_BASE_MODEL_REVISION to a commit of its hub page."
    )


def _download(name: str, revision: str, out: Path) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise BaseModelError(
            f"the revision {revision!r} of {name} is not a commit: a branch can change under us, so name the commit (40 "
            f"hexadecimal digits), as in {DEFAULT_HUB_REVISION} of {DEFAULT_HUB_MODEL}."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        snapshot_download(name, revision=revision, local_dir=out, allow_patterns=list(WANTED_FILES))
    except GatedRepoError as error:
        raise BaseModelError(
            f"{name} asks for an agreement first: accept it on its hub page, set HF_TOKEN, run again."
        ) from error
    except RevisionNotFoundError as error:
        pinned = f" (tested: {DEFAULT_HUB_REVISION})" if name == DEFAULT_HUB_MODEL else ""
        raise BaseModelError(
            f"{name} has no revision {revision}: set NEWSJUICE_BASE_MODEL_REVISION to a commit of its hub page{pinned}."
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"the hub has no model {name} (or it is private and HF_TOKEN is not set): check the name."
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise BaseModelError(
            f"{name} could not be downloaded ({reason}): check the network, or download it elsewhere and give its folder instead."
        ) from error
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the downloader's own bookkeeping


def check_base_folder(folder: Path) -> None:
    """Raise `BaseModelError` unless `folder` holds a causal model with safetensors, a tokenizer and a chat template."""
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder} has no config.json: it is not a model folder in Hugging Face layout.")
    if "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise BaseModelError(f"{folder} needs its own Python code to load, which is never run here: choose another model.")
    if not any(folder.glob("*.safetensors")):
        raise BaseModelError(
            f"{folder} has no .safetensors weights: convert the model with save_pretrained first; pickles are not loaded."
        )
    if not (folder / "tokenizer.json").is_file():
        raise BaseModelError(f"{folder} has no tokenizer.json: save its fast tokenizer next to the weights.")
    if not has_chat_template(folder):
        raise BaseModelError(f"{folder} has no chat template: use an instruction-tuned model, or add a chat_template.jinja.")
    index = next(iter(folder.glob("*.safetensors.index.json")), None)
    if index is not None:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise BaseModelError(f"{folder} lacks {', '.join(missing)}, which its index names: fetch the model again.")


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in `folder` brings a chat template."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def base_identity(path: Path) -> dict[str, Any]:
    """Which base model a folder holds: SHA-256 of its configuration, tokenizer, weights, and one hash over all of them.

    An adapter records it, and merging refuses a base with another one. Every byte of the weights counts, since two
    models of one shape have equal configurations.
    """
    files = sorted({file for pattern in IDENTITY_FILES for file in path.glob(pattern)})
    hashes = {}
    for file in files:
        with file.open("rb") as stream:
            hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    if "config.json" not in hashes or not any(name.endswith(".safetensors") for name in hashes):
        raise BaseModelError(f"{path} is not a model folder: it needs config.json and .safetensors weights.")
    return {"identity": fingerprint(hashes)[:16], "files": hashes}


def differing_files(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of the files whose hashes differ, or that only one of two `base_identity(...)["files"]` has."""
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, from its header alone.

    Raises:
        BaseModelError: the file is cut short or not a safetensors file.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError) as error:
        raise BaseModelError(f"{file} is not a whole safetensors file: materialise what wrote it again.") from error
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def count_parameters(path: Path) -> int:
    """Number of stored weights of a model folder, from the headers of its safetensors files."""
    return sum(math.prod(shape) for file in sorted(path.glob("*.safetensors")) for shape in tensor_shapes(file).values())


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a local model folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise BaseModelError(f"the tokenizer in {path} has no chat template: use an instruction-tuned model.")
    return tokenizer


def load_model(path: Path, dtype: str = "float32", device: str = "cpu", *, load_in_4bit: bool = False) -> Any:
    """The causal language model of a local folder, in evaluation mode.

    Args:
        path: a folder in Hugging Face layout with safetensors.
        dtype: `float32`, `bfloat16` or `float16`; with `load_in_4bit` the dtype of the computation.
        device: as PyTorch names it, `cpu` or `cuda`.
        load_in_4bit: load the linear layers as NF4 with double quantisation; needs the package bitsandbytes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise BaseModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    options: dict[str, Any] = {}
    if load_in_4bit:
        options["quantization_config"] = _nf4(getattr(torch, dtype))
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        device_map={"": device},
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    return model.eval()


def _nf4(compute_dtype: Any) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise BaseModelError(
            "load_in_4bit needs the package bitsandbytes: install newsjuice-pipelines[gpu], or set load_in_4bit to false."
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
