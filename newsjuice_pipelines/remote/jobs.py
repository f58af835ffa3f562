"""Trainings as data, so that the step itself or a container elsewhere can do the same work. Where they run is not decided here.

A job names its inputs by key and version and carries its settings as JSON values; artefacts travel through the artefact store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from newsjuice_pipelines import __version__
from newsjuice_pipelines.classification.training.finetune import train_classifier
from newsjuice_pipelines.classification.training.models import BaseModel
from newsjuice_pipelines.classification.training.recipe import ClassifierConfig
from newsjuice_pipelines.podcast.training.finetune import FinetuneConfig, train_adapter
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactStore, Draft
from newsjuice_pipelines.runtime.tracking import Tracker

JOB = "job"  # name of the Pipes extra that carries one

Inputs = Mapping[str, Artifact]
Facts = Mapping[str, Any]


class JobNotUnderstood(ValueError):
    """A container got a job that its release of the package does not know."""


@dataclass(frozen=True)
class TrainingJob:
    """One training: the artefact that it makes, and what decides it.

    `recipe["inputs"]` names the inputs by key and version; `settings` are what the training takes, as JSON values.
    """

    key: str
    recipe: Mapping[str, Any]
    settings: Mapping[str, Any]
    force: bool = False
    release: str = __version__

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrainingJob:
        """The job that `asdict` made these JSON values of.

        Raises:
            JobNotUnderstood: another release of the package made them.
        """
        if values.get("release") != __version__:
            raise JobNotUnderstood(
                f"the job comes from release {values.get('release')} of newsjuice-pipelines and the image holds {__version__}: "
                "build the image of custom jobs from the code that runs the pipeline, and set NEWSJUICE_VERTEX_IMAGE to it."
            )
        return cls(**values)

    @property
    def asset(self) -> str:
        """The asset whose artefact is made; a partition stands behind the slash of the key."""
        return self.key.partition("/")[0]


def train(job: TrainingJob, inputs: Inputs, draft: Draft, tracker: Tracker | None) -> Facts:
    """Do the training of a job into `draft`; errors are those of the training itself.

    Raises:
        JobNotUnderstood: there is no training for that asset.
    """
    if job.asset not in TRAININGS:
        raise JobNotUnderstood(f"there is no training for {job.asset!r}: only for {', '.join(TRAININGS)}.")
    return TRAININGS[job.asset](job.settings, inputs, draft, tracker)


def publish(
    job: TrainingJob,
    store: ArtifactStore,
    tracker: Tracker | None,
    inputs: Iterable[Artifact] | None = None,
    keeping: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
) -> Artifact:
    """The artefact of a job: the one in force when the same recipe made it, else a new one.

    Args:
        job: what is made.
        store: where inputs are and the artefact goes.
        tracker: where training curves go.
        inputs: the inputs where they are open already; else they are opened by the versions that the recipe names.
        keeping: goes around the training with its scratch folder, to keep checkpoints elsewhere too.
    """
    opened = (
        {artifact.key: artifact for artifact in inputs}
        if inputs is not None
        else {key: store.open(key, version) for key, version in job.recipe["inputs"].items()}
    )

    def write(draft: Draft) -> Facts:
        with keeping(draft.scratch):
            return train(job, opened, draft, tracker)

    return store.publish(job.key, job.recipe, write, force=job.force)


def classifier_settings(model: BaseModel, config: ClassifierConfig) -> dict[str, Any]:
    """The settings of a classifier's job."""
    return {"model": asdict(model), "config": asdict(config)}


def _train_adapter(settings: Mapping[str, Any], inputs: Inputs, draft: Draft, tracker: Tracker | None) -> Facts:
    config = _filled(FinetuneConfig, settings)
    return train_adapter(inputs["base_model"].path, inputs["student_dataset"].path, config, draft.path, draft.scratch, tracker)


def _train_classifier(settings: Mapping[str, Any], inputs: Inputs, draft: Draft, tracker: Tracker | None) -> Facts:
    model, config = _filled(BaseModel, settings["model"]), _filled(ClassifierConfig, settings["config"])
    return train_classifier(model, inputs["balanced_split"].path, config, draft.path, draft.scratch, tracker)


TRAININGS: Mapping[str, Callable[[Mapping[str, Any], Inputs, Draft, Tracker | None], Facts]] = {
    "lora_adapter": _train_adapter,
    "classifier_checkpoint": _train_classifier,
}


def _filled(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with these values, all of them known to it."""
    unknown = sorted(set(values) - {field.name for field in fields(kind)})
    if unknown:
        raise JobNotUnderstood(f"{kind.__name__} has no {', '.join(unknown)}: the image is older than the code that asks for it.")
    return kind(**values)
