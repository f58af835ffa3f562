"""The defects of the first experiment, as switches."""

from dataclasses import asdict

import pytest

from newsjuice_pipelines.podcast.training.dataset import DATASET_PRESETS, DatasetConfig
from newsjuice_pipelines.podcast.training.defects import DEFECTS, with_defects
from newsjuice_pipelines.podcast.training.finetune import PRESETS, FinetuneConfig
from newsjuice_pipelines.podcast.training.merge import MergeConfig

RIGHT = (DatasetConfig(), FinetuneConfig(), MergeConfig())


@pytest.mark.parametrize("name", DEFECTS)
def test_a_switch_changes_the_settings_it_names_and_no_others(name: str) -> None:
    defect = DEFECTS[name]
    for right, wrong, named in zip(
        RIGHT, with_defects([name], *RIGHT), (defect.dataset, defect.finetune, defect.merge), strict=True
    ):
        changed = {key: value for key, value in asdict(wrong).items() if value != asdict(right)[key]}
        assert changed == dict(named)


def test_all_defects_together_switch_everything_that_one_of_them_does() -> None:
    together = with_defects(DEFECTS, *RIGHT)
    for name in DEFECTS:
        assert with_defects([name], *together) == together


@pytest.mark.parametrize("preset", [*DATASET_PRESETS.values(), *PRESETS.values()])
def test_no_preset_has_a_defect_of_training(preset: DatasetConfig | FinetuneConfig) -> None:
    switches = {key: value for defect in DEFECTS.values() for key, value in (*defect.dataset.items(), *defect.finetune.items())}
    settings = asdict(preset)
    for key in switches.keys() & settings.keys() - {"prompt_version", "load_in_4bit"}:  # a choice of the original, no mistake
        assert settings[key] != switches[key]


def test_an_unknown_defect_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no defect 'D8'"):
        with_defects(["D8"], *RIGHT)
