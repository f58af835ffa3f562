"""What produced an artefact: code revision, package versions, device. Facts only; where they are stored is `artifacts.py`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from newsjuice_pipelines import __version__

RECORDED_PACKAGES = (
    "dagster",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "psycopg",
    "google-genai",
    "gguf",
    "openvino-genai",
)


def canonical_json(value: Any) -> bytes:
    """One byte string for equal JSON values: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@lru_cache(maxsize=1)
def git_state() -> Mapping[str, Any]:
    """Commit and dirty flag of the checkout that this package runs from; both None outside a checkout."""
    source = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", "provenance.py")
    if tracked is None:  # installed from a wheel, perhaps inside somebody else's repository
        return {"commit": None, "dirty": None}
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


@lru_cache(maxsize=1)
def package_versions() -> Mapping[str, str]:
    """Versions of the packages that can change a result, without importing them."""
    found = {"python": platform.python_version(), "newsjuice-pipelines": __version__}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Git state, package versions and hardware. The same in every process of a machine, whatever it has imported."""
    return {"git": dict(git_state()), "packages": dict(package_versions()), "device": hardware()}


NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")  # one folder a device, with a file `information`


@lru_cache(maxsize=1)
def hardware() -> str:
    """Processor kind and count, and the NVIDIA devices that the driver lists; found without loading a library."""
    return ", ".join([f"{os.cpu_count()} x {platform.machine()}", *_nvidia_devices()])


def visible_gpus() -> int:
    """How many NVIDIA devices a process may use: those of the driver that `CUDA_VISIBLE_DEVICES` leaves."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = len(_nvidia_devices())
    return listed if chosen is None else min(listed, len([name for name in chosen.split(",") if name.strip() not in ("", "-1")]))


def _nvidia_devices() -> list[str]:
    names = []
    for information in sorted(NVIDIA_DEVICES.glob("*/information")):
        fields = dict(line.split(":", 1) for line in information.read_text(encoding="utf-8").splitlines() if ":" in line)
        names.append(fields.get("Model", "NVIDIA GPU").strip())
    return names


def folder_fingerprint(path: Path) -> str:
    """SHA-256 (hex) over the names and contents of all files below a folder.

    Raises:
        ValueError: there is no such folder.
    """
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}.")
    return fingerprint(
        {str(file.relative_to(path)): file_fingerprint(file) for file in sorted(path.rglob("*")) if file.is_file()}
    )


def file_fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a file's content.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from error
