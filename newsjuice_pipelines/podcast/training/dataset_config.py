"""What can be set about the student's data set, its presets, and its one error. Making the data set is `dataset.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from newsjuice_pipelines.podcast.training.chat import STUDENT_PROMPTS

MIN_GROUPS = 3  # one for each split


class DatasetError(ValueError):
    """The teacher's scripts do not make a data set."""


@dataclass(frozen=True)
class DatasetConfig:
    """How teacher scripts become training rows. The defaults are the preset `recommended`."""

    max_tokens: int = 1024
    """Tokens of prompt and script together; the article is cut to fit, the script never."""
    prompt_version: str = "short"
    """`short`: one system line and the article. `original`: the original's long instruction with the article in it."""
    validation_fraction: float = 0.1
    """Part of the rows that chooses the checkpoint."""
    test_fraction: float = 0.1
    """Part of the rows that is kept for the final evaluation; the rest is for training."""
    row_limit: int = 2000
    """Most rows used, all splits together; the lowest ranked articles by hash are taken."""
    near_duplicate_similarity: float = 0.5
    """Texts that share this part of their three-word passages (Jaccard) stay on one side of the split; 1 is equal texts."""
    seed: int = 42
    """Decides the order of the rows and the split."""
    fit_articles: bool = True
    """Defect D3, for comparison: when off, articles go in whole, so that training must cut the rows' ends."""
    keep_failed_scripts: bool = False
    """Defect D7, for comparison: when on, rows of every status are kept with whatever text they have."""
    random_draws: bool = False
    """Defect D6, for comparison: when on, rows are drawn with replacement and split one by one, so that sides share rows."""

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) > 0 and sum(fractions) <= 0.5):
            raise DatasetError(
                f"validation_fraction={fractions[0]} and test_fraction={fractions[1]} do not work: both must be above 0 and "
                "together at most 0.5."
            )
        if self.max_tokens < 1 or self.row_limit < MIN_GROUPS:
            raise DatasetError(
                f"max_tokens={self.max_tokens}, row_limit={self.row_limit} do not work: at least 1 token and {MIN_GROUPS} rows."
            )
        if self.prompt_version not in STUDENT_PROMPTS:
            raise DatasetError(f"prompt_version={self.prompt_version!r} does not work: use one of {', '.join(STUDENT_PROMPTS)}.")
        if not 0 < self.near_duplicate_similarity <= 1:
            raise DatasetError(
                f"near_duplicate_similarity={self.near_duplicate_similarity} does not work: above 0 and at most 1; a lower one "
                "keeps more texts together."
            )


DATASET_PRESETS: Mapping[str, DatasetConfig] = {
    "recommended": DatasetConfig(),
    # 1,800 training rows and 200 held-out ones.
    "original": DatasetConfig(validation_fraction=0.05, test_fraction=0.05, prompt_version="original"),
}
