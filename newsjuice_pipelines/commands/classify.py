"""`newsjuice classify`: answers for headlines and files, by the classifier that the decision was about or one by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactMissing, ArtifactStore

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings


class CannotClassify(RuntimeError):
    """There is no classifier that could answer; the message says how to get one."""


def classify(settings: Settings, headlines: Sequence[str], source: str | None, target: str | None, model: str | None) -> int:
    """Answer for `headlines` on standard output, or for each row of the file `source` in the file `target`.

    Args:
        settings: which store is used.
        headlines: texts; none with a file.
        source: a CSV or JSON-lines file, or `-` for standard input.
        target: where the rows with their answers go, or `-` for standard output.
        model: name of a trained classifier; default: the one that the decision is about.

    Raises:
        CannotClassify: no classifier was trained and evaluated.
    """
    from newsjuice_pipelines.classification.serving.classify import classify_file, classify_headlines, load_service
    from newsjuice_pipelines.classification.serving.predict import engine_of

    store = ArtifactStore(settings.artifact_root, settings.cache)
    name, version = (model, None) if model else _decided(store)
    checkpoint, evaluation = _judged(store, name, version)
    exported = _exported(store, name, checkpoint)
    if all(promise["threshold"] is None for promise in evaluation.facts["certificates"].values()):
        print("No threshold could be certified, so nothing is ever filed: see its classifier_eval_report.", file=sys.stderr)
    if source is None or target is None:
        print("\n\n".join(classify_headlines(headlines, checkpoint.path, evaluation.path, exported)))
        return 0
    classifier, calibration = load_service(checkpoint.path, evaluation.path, exported)
    print(f"{name}: {engine_of(classifier)}", file=sys.stderr)
    counts = classify_file(source, target, classifier, calibration)
    print(", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in counts.items() if number), file=sys.stderr)
    return 0


def _decided(store: ArtifactStore) -> tuple[str, str]:
    """The model that the decision is about and the version of its evaluation; a decision not to adopt it is said aloud."""
    try:
        decision = store.open("classifier_decision")
    except ArtifactMissing:
        trained = store.partitions("classifier_eval_report")
        hint = (
            f"choose one with --model: {', '.join(trained)}."
            if trained
            else "run `newsjuice run --select 'group:classification'`."
        )
        raise CannotClassify(f"no decision names a classifier yet: {hint}") from None
    model, verdict = decision.facts["model"], decision.facts["decision"]
    if model is None:
        raise CannotClassify("the decision found no candidate: choose a model with --model.")
    if verdict != "adopt":
        print(f"The decision on {model} is: {verdict}. Treat the answers as a trial.", file=sys.stderr)
    return str(model), str(decision.recipe["inputs"][f"classifier_eval_report/{model}"])


def _judged(store: ArtifactStore, name: str, version: str | None) -> tuple[Artifact, Artifact]:
    """The checkpoint that an evaluation of the model was made on, and that evaluation: `version`, or the one in force."""
    try:
        evaluation = store.open(f"classifier_eval_report/{name}", version)
        inputs = evaluation.recipe["inputs"]
        return store.open(f"classifier_checkpoint/{name}", inputs[f"classifier_checkpoint/{name}"]), evaluation
    except ArtifactMissing as error:
        if version is not None:
            raise CannotClassify(
                f"what the decision was about is no longer in the store ({error}): materialise model_leaderboard and "
                "classifier_decision again, or choose a model with --model."
            ) from None
        trained = store.partitions("classifier_eval_report")
        there = (
            f"There are: {', '.join(trained)}." if trained else "Materialise classifier_checkpoint and classifier_eval_report."
        )
        raise CannotClassify(f"no evaluated classifier {name!r} ({error}). {there}") from None


def _exported(store: ArtifactStore, name: str, checkpoint: Artifact) -> Path | None:
    """The folder of the exported form of this very checkpoint, if there is one."""
    try:
        exported = store.open(f"exported_classifier/{name}")
    except ArtifactMissing:
        return None
    made_from = exported.recipe["inputs"][f"classifier_checkpoint/{name}"]
    return exported.path if made_from == checkpoint.version else None
