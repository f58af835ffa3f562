"""Which results belong together: those of an earlier split or checkpoint stay in the store, and are compared with nothing."""

from __future__ import annotations

from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactStore


def current_evaluations(store: ArtifactStore) -> dict[str, Artifact]:
    """The evaluations, by model, of checkpoints in force that were made on the split in force."""
    split = store.current_version("balanced_split")
    found = {model: store.open(f"classifier_eval_report/{model}") for model in store.partitions("classifier_eval_report")}
    return {
        model: report
        for model, report in found.items()
        if report.recipe["inputs"]["balanced_split"] == split and _of_checkpoint_in_force(store, model, report)
    }


def current_external_predictions(store: ArtifactStore) -> dict[str, Artifact]:
    """The external predictions, by model, of checkpoints in force that were evaluated on the split in force."""
    evaluated = current_evaluations(store)
    found = {model: store.open(f"external_predictions/{model}") for model in store.partitions("external_predictions")}
    return {
        model: predictions
        for model, predictions in found.items()
        if model in evaluated and _of_checkpoint_in_force(store, model, predictions)
    }


def _of_checkpoint_in_force(store: ArtifactStore, model: str, artifact: Artifact) -> bool:
    """Whether an artefact was made from the model's checkpoint of today."""
    checkpoint = f"classifier_checkpoint/{model}"
    return bool(artifact.recipe["inputs"][checkpoint] == store.current_version(checkpoint))
