"""Putting a judged student into service: the model that a decision was about, copied whole, replaced and taken back in one step.

Which run made a decision is Dagster's to know; here a decision is named by its version.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.judging.decision import ADOPT
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactError, ArtifactMissing, ArtifactStore, Draft
from newsjuice_pipelines.runtime.reports import write_json

logger = logging.getLogger("newsjuice.promotion")

PROMOTED = "promoted_model"
MODEL_FOLDER, QUANTISED_FOLDER, RECORD = "model", "quantised_model", "promotion.json"


class PromotionRefused(ValueError):
    """A model that may not be put into service, or nothing to go back to."""


@dataclass(frozen=True)
class Judged:
    """A decision, the model that it is about, and that model's quantised form."""

    decision: Artifact
    model: Artifact
    quantised: Artifact


def judged_model(store: ArtifactStore, decision_version: str) -> Judged:
    """What a decision was about, traced through the versions of the reports that it read.

    Raises:
        ArtifactMissing: the decision, a report, its scripts or the model are no longer kept.
        PromotionRefused: the reports are not about one student.
    """
    decision = store.open("podcast_decision", decision_version)
    inputs = decision.recipe["inputs"]
    latency = store.open("latency_report", inputs["latency_report"])
    quality = store.open("script_quality_report", inputs["script_quality_report"])
    student = one_student(store, latency, quality)
    return Judged(decision, *(store.open(key, student[key]) for key in ("merged_model", "quantised_model")))


def one_student(store: ArtifactStore, latency: Artifact, quality: Artifact) -> dict[str, str]:
    """The student that both reports are about: versions of `merged_model` and `quantised_model`, and the `engine`.

    Raises:
        ArtifactMissing: the scripts that the quality report read are no longer kept.
        PromotionRefused: one report is about another model, or its scripts were written by another engine than was timed.
    """
    scripts = store.open("student_scripts", quality.recipe["inputs"]["student_scripts"])
    timed, read = _student(latency), _student(scripts)
    for name, version in timed.items():
        if read[name] != version:
            raise PromotionRefused(
                f"the reports are about two students: latency_report timed {name} {version}, and script_quality_report read "
                f"scripts of {name} {read[name]}: materialise student_scripts and both reports again."
            )
    return timed


def _student(artifact: Artifact) -> dict[str, str]:
    inputs = artifact.recipe["inputs"]
    return {
        "merged_model": inputs["merged_model"],
        "quantised_model": inputs["quantised_model"],
        "engine": artifact.recipe["config"]["engine"],
    }


def promote(store: ArtifactStore, judged: Judged, run_id: str, *, against_the_decision: bool = False) -> Artifact:
    """Put a judged model into service; what served before stays whole until this one is, and is what a roll-back returns to.

    Args:
        store: holds the model and the one in service.
        judged: from `judged_model`.
        run_id: of the run that made the decision.
        against_the_decision: serve a model that was not to be adopted; the record says so.

    Raises:
        PromotionRefused: the merge gate did not pass, or the decision is not to adopt it.
    """
    verdict = judged.decision.facts["decision"]
    if not judged.model.facts["gate"]["passed"]:
        raise PromotionRefused(f"the merge gate of merged_model {judged.model.version} did not pass: train and merge again.")
    if verdict != ADOPT and not against_the_decision:
        reasons = ", ".join(judged.decision.facts["reasons"])
        raise PromotionRefused(
            f"the decision of run {run_id} is {verdict!r} ({reasons}): promote another run, or set against_the_decision."
        )
    record = {
        "run_id": run_id,
        "decision": verdict,
        "decision_version": judged.decision.version,
        "merged_model": judged.model.version,
        "quantised_model": judged.quantised.version,
    }
    served, current = store.recipe_in_force(PROMOTED), store.current_version(PROMOTED)
    intact = _is_intact(store)
    if intact and served is not None and {name: served.get(name) for name in record} == record:
        return Artifact(**{**store.open(PROMOTED).__dict__, "reused": True})
    # Nobody should go back to a damaged model: then what that one replaced is the way back.
    earlier = current if intact else (served or {}).get("replaces")
    recipe = {**record, "replaces": earlier}

    def write(draft: Draft) -> dict[str, Any]:
        _copy(judged.model, draft.path / MODEL_FOLDER)
        _copy(judged.quantised, draft.path / QUANTISED_FOLDER)
        write_json(draft.path / RECORD, recipe)
        return dict(recipe)

    return store.publish(PROMOTED, recipe, write)


def roll_back(store: ArtifactStore) -> Artifact:
    """Put the model into service again that the one in service replaced, even where that one is damaged; nothing is copied.

    Raises:
        PromotionRefused: there is none to go back to.
        ArtifactMissing: the earlier one is no longer kept.
    """
    served = store.recipe_in_force(PROMOTED)
    if served is None:
        raise PromotionRefused("no model is in service: promote one by the id of the run that judged it.")
    if served["replaces"] is None:
        raise PromotionRefused("the model in service replaced none: there is nothing to go back to.")
    return store.put_in_force(PROMOTED, served["replaces"])


def _is_intact(store: ArtifactStore) -> bool:
    """Whether a whole model is in service."""
    try:
        store.open(PROMOTED)
    except ArtifactMissing:
        return False
    except ArtifactError as error:
        logger.warning("the model in service is damaged and is replaced without a way back to it: %s", error)
        return False
    return True


def _copy(artifact: Artifact, target: Path) -> None:
    """The files of an artefact without the store's own."""
    shutil.copytree(artifact.path, target, ignore=shutil.ignore_patterns("manifest.json", "facts.json"))
