"""What a trained classifier's directory says about itself: `classifier.json` and the model card. Weights are their trainer's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from newsjuice_pipelines.runtime.reports import markdown_table, write_json

DESCRIPTION = "classifier.json"
_WARNING = (
    "**Its checkpoint was picked by the test part, as in the original experiment: its test scores are flattered.** It is for "
    "comparison only.",
    "",
)


class CheckpointError(ValueError):
    """A directory holds no usable classifier, or one for other classes."""


@dataclass(frozen=True)
class CheckpointDescription:
    """Which classifier a directory holds; `classes` are in the order of the outputs, `max_length` is in tokens (encoders).

    `selected_on` is the part of the split that picked the weights (`test` flatters the scores; `none`: nothing was picked),
    `recipe` the recipe of the table.
    """

    model: str
    kind: Literal["linear", "encoder"]
    classes: tuple[str, ...]
    max_length: int | None
    base: str | None
    revision: str | None
    selected_on: str = "validation"
    recipe: str = "ours"

    def write(self, directory: Path) -> None:
        """Write `classifier.json`."""
        write_json(directory / DESCRIPTION, {**asdict(self), "classes": list(self.classes)})


def read_description(directory: Path) -> CheckpointDescription:
    """What a checkpoint directory says about itself.

    Raises:
        CheckpointError: there is no readable `classifier.json`.
    """
    path = directory / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return CheckpointDescription(**{**content, "classes": tuple(content["classes"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{directory} holds no usable classifier ({type(error).__name__}: {error}): "
            "materialise 'classifier_checkpoint' again."
        ) from error


def check_classes(found: tuple[str, ...], wanted: tuple[str, ...], where: str) -> None:
    """Refuse a checkpoint whose outputs stand for other classes, or for the same in another order.

    Raises:
        CheckpointError: naming what differs.
    """
    if found == wanted:
        return
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    what = f"missing {missing[:5]}, extra {extra[:5]}" if missing or extra else "the same classes in another order"
    raise CheckpointError(
        f"The checkpoint has {len(found)} classes and {where} has {len(wanted)}: {what}. "
        "Materialise 'classifier_checkpoint' again from this split."
    )


def write_model_card(directory: Path, facts: Mapping[str, Any], licence: str, description: str) -> None:
    """Write the `README.md` of a checkpoint: what it is, how it was trained, what it must not be used for."""
    base = facts["base"]
    front = ["---", "language: en", "pipeline_tag: text-classification", "library_name: " + facts["library"]]
    front += [f"license: {licence.lower()}"] if base else []
    front += ["---"]
    shown = (
        *("model", "recipe", "base", "revision", "parameters", "train_rows", "selected_on", "selection_rows"),
        *("best_selection_loss", "precision", "device", "seed"),
    )
    known = [name for name in shown if facts.get(name) is not None]
    named = {"selection_rows": f"{facts['selected_on']} rows", "best_selection_loss": f"best {facts['selected_on']} loss"}
    body = [
        f"# News topics: {facts['model']}",
        "",
        f"{description} It files English news headlines under {len(facts['classes'])} classes. It was trained on the News "
        "Category Dataset (HuffPost, R. Misra, CC BY 4.0), 2012-2022: what it knows of people and events ends there, and its "
        "classes are one newsroom's sections. Its confidence means little until it is calibrated: use it with the temperature "
        "and the threshold of its evaluation report.",
        "",
        *(_WARNING if facts["selected_on"] == "test" else ()),
        markdown_table(("training", "value"), [(named.get(name, name.replace("_", " ")), facts[name]) for name in known]),
        "",
        "Classes: " + ", ".join(facts["classes"]) + ".",
        "",
    ]
    (directory / "README.md").write_text("\n".join([*front, *body]), encoding="utf-8")
