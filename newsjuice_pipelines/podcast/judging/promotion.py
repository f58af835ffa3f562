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
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactError, ArtifactStore, Draft
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
    quantised: Artifact | None


def judged_model(store: ArtifactStore, decision_version: str) -> Judged:
    """What a decision was about, traced through the versions of the reports that it read.

    Raises:
        ArtifactMissing: the decision, a report or the model is no longer kept.
    """
    decision = store.open("podcast_decision", decision_version)
    latency = store.open("latency_report", decision.recipe["inputs"]["latency_report"])
    inputs = latency.recipe["inputs"]
    model = store.open("merged_model", inputs["merged_model"])
    quantised = store.open("quantised_model", inputs["quantised_model"]) if "quantised_model" in inputs else None
    return Judged(decision, model, quantised)


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
        "quantised_model": judged.quantised.version if judged.quantised else None,
    }
    served = _in_service(store)
    if served is not None and {name: served.recipe.get(name) for name in record} == record:
        return Artifact(**{**served.__dict__, "reused": True})
    recipe = {**record, "replaces": served.version if served is not None else None}

    def write(draft: Draft) -> dict[str, Any]:
        _copy(judged.model, draft.path / MODEL_FOLDER)
        if judged.quantised is not None:
            _copy(judged.quantised, draft.path / QUANTISED_FOLDER)
        write_json(draft.path / RECORD, recipe)
        return dict(recipe)

    return store.publish(PROMOTED, recipe, write)


def roll_back(store: ArtifactStore) -> Artifact:
    """Put the model into service again that the one in service replaced; nothing is copied.

    Raises:
        PromotionRefused: there is none to go back to.
        ArtifactMissing: nothing is in service, or the earlier one is no longer kept.
    """
    served = store.open(PROMOTED)
    earlier = served.recipe["replaces"]
    if earlier is None:
        raise PromotionRefused(f"the model in service ({served.version}) replaced none: there is nothing to go back to.")
    return store.put_in_force(PROMOTED, earlier)


def _in_service(store: ArtifactStore) -> Artifact | None:
    """The model in service; None without one, and for a damaged one, which nobody should go back to."""
    try:
        return store.open(PROMOTED)
    except ArtifactError as error:
        if store.current_version(PROMOTED) is not None:
            logger.warning("the model in service is damaged and is replaced without a way back to it: %s", error)
        return None


def _copy(artifact: Artifact, target: Path) -> None:
    """The files of an artefact without the store's own."""
    shutil.copytree(artifact.path, target, ignore=shutil.ignore_patterns("manifest.json", "facts.json"))
