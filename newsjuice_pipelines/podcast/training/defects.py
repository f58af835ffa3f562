"""The defects of the first experiment as switches of the same code, each off by default, so that its cost can be measured.

What they cost is measured in `benchmarks/defects.py`; the switches themselves are fields of the three configurations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newsjuice_pipelines.podcast.training.dataset import DatasetConfig
    from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
    from newsjuice_pipelines.podcast.training.merge import MergeConfig

# Parts of a defect that are no mistake by themselves: the original's prompt, and QLoRA.
CHOICES = ("prompt_version", "load_in_4bit")


@dataclass(frozen=True)
class Defect:
    """What was done wrong, and the settings that do it again."""

    what: str
    dataset: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    merge: Mapping[str, Any] = field(default_factory=dict)


DEFECTS: Mapping[str, Defect] = {
    "D1": Defect("loss over the prompt too", finetune={"completion_only_loss": False}),
    "D2": Defect("no end token in the labels", finetune={"end_token": False}),
    "D3": Defect("the length limit cuts the answer", dataset={"fit_articles": False}, finetune={"cut_long_rows": True}),
    "D4": Defect("no chat template, long instruction", dataset={"prompt_version": "original"}, finetune={"chat_template": False}),
    "D5": Defect("merged into the NF4 weights", finetune={"load_in_4bit": True}, merge={"into_4bit": True}),
    "D6": Defect("random draws, split by row", dataset={"random_draws": True}),
    "D7": Defect("errors and empty replies kept", dataset={"keep_failed_scripts": True}),
}


def with_defects(
    names: Iterable[str], dataset: DatasetConfig, finetune: FinetuneConfig, merge: MergeConfig
) -> tuple[DatasetConfig, FinetuneConfig, MergeConfig]:
    """The three configurations with some defects switched on.

    Raises:
        ValueError: a name that is no key of `DEFECTS`.
    """
    for name in names:
        if name not in DEFECTS:
            raise ValueError(f"there is no defect {name!r}: choose of {', '.join(DEFECTS)}.")
        defect = DEFECTS[name]
        dataset = replace(dataset, **defect.dataset)
        finetune = replace(finetune, **defect.finetune)
        merge = replace(merge, **defect.merge)
    return dataset, finetune, merge


def switched_on(*settings: Mapping[str, Any]) -> list[str]:
    """Which defects are on in the settings of a data set, an adapter or a merge, as keys of `DEFECTS`."""
    found = []
    for name, defect in DEFECTS.items():
        switches = {**defect.dataset, **defect.finetune, **defect.merge}
        if any(of.get(key) == value for of in settings for key, value in switches.items() if key not in CHOICES):
            found.append(name)
    return found
