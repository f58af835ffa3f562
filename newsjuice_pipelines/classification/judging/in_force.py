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


def test_readings(store: ArtifactStore, model: str) -> dict[str, list[str]]:
    """Which checkpoints of a model each test part has judged so far: versions by the fingerprint of the part's rows.

    Every report carries the readings of those before it on, so that another split in between does not wipe them out, and
    splits that hold out the same rows count as one.
    """
    if store.current_version(f"classifier_eval_report/{model}") is None:
        return {}
    return dict(store.open(f"classifier_eval_report/{model}").facts.get("readings", {}))


def current_exports(store: ArtifactStore) -> dict[str, Artifact]:
    """The exported models, by model, of checkpoints in force."""
    found = {model: store.open(f"exported_classifier/{model}") for model in store.partitions("exported_classifier")}
    return {model: exported for model, exported in found.items() if _of_checkpoint_in_force(store, model, exported)}


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
