"""Fetching the News Category Dataset from Kaggle through kagglehub. What is in the file is `huffpost.py`'s business."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.corpus.huffpost import HuffPostError

logger = logging.getLogger("newsjuice.classification")

# A version by its number: the newest one may hold other rows, and a number needs no further question to Kaggle.
DATA_SET = "rmisra/news-category-dataset/versions/3"
FILE = "News_Category_Dataset_v3.json"
OTHERWISE = f"Or download {FILE} by hand from https://www.kaggle.com/datasets/rmisra/news-category-dataset and give its path."


def download_huffpost(cache_dir: Path) -> Path:
    """The News Category Dataset below `cache_dir`, downloaded from Kaggle unless it is there already.

    Args:
        cache_dir: where the file stays; made when missing.

    Raises:
        HuffPostError: kagglehub or the credentials are missing, or the download failed. The key is in no message.
    """
    target = cache_dir / FILE
    if target.is_file():
        return target
    hub = _kagglehub()
    key = _key(hub)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".download-") as scratch:
        try:
            found = Path(hub.dataset_download(DATA_SET, path=FILE, output_dir=scratch))
            found.replace(target)  # whole or not at all
        except Exception as problem:  # kagglehub lets errors of half a dozen libraries through
            message = str(problem).replace(key, "(key)") if key else str(problem)
            raise HuffPostError(
                f"Kaggle did not send {FILE} of {DATA_SET} ({type(problem).__name__}: {message}). "
                f"Check the network and that the key is valid. {OTHERWISE}"
            ) from None
    logger.info("downloaded %s (%.1f MB)", FILE, target.stat().st_size / 1e6)
    return target


def _kagglehub() -> Any:
    try:
        import kagglehub
        import kagglehub.config
    except ImportError:
        raise HuffPostError(f"The Kaggle download needs the package kagglehub: pip install kagglehub. {OTHERWISE}") from None
    return kagglehub


def _key(hub: Any) -> str:
    """The secret, so that it can be kept out of messages."""
    try:
        credentials = hub.config.get_kaggle_credentials()
    except (ValueError, OSError) as problem:
        raise HuffPostError(f"The Kaggle credentials cannot be read: {problem}. {OTHERWISE}") from None
    if credentials is None:
        raise HuffPostError(
            "The Kaggle download needs credentials: set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or put "
            f"kaggle.json into ~/.kaggle (kaggle.com, Settings, API). {OTHERWISE}"
        )
    return str(credentials.api_key or credentials.key or "")
