"""The model card of the merged student, written from results alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.training.weight_change import WEIGHT_CHANGE_FILE
from newsjuice_pipelines.runtime.reports import cell, markdown_table, read_json


def merged_model_card(facts: Mapping[str, Any], base: Path, adapter: Path) -> str:
    """Markdown with front matter: what `merge_adapter` found, how it was trained, how to use it, and its limits."""
    licence = _licence(base)
    dequantised = ", taken back from 4 bits as the adapter was trained over 4-bit weights," * facts["dequantised_base"]
    lossy = " **Merged into 4-bit weights on purpose, to show what that loses.**" * facts["merged_into_4bit"]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{f"license: {licence}" if licence else "# license: see the base model"}
---
# Podcast script writer

A base model (identity `{facts["base_identity"]}`){dequantised} with its podcast adapter merged in, written in {facts["dtype"]}
(identity `{facts["identity"]}`). It turns a news article into a script that a podcast host speaks.{lossy}

## Use

Prompts are chat messages, rendered with `enable_thinking=False` as in training; decode greedily (`do_sample=False`, the
default here). It ends with one of the tokens {", ".join(map(str, facts["eos_token_ids"]))}.

## Merge gate

{_gate_text(facts["gate"])}

The change of the weights by block and projection is in `{WEIGHT_CHANGE_FILE}` and `weight_change.png`.

## Training

{_training_text(adapter)}

## Limits

It was trained on the scripts of a teacher model and repeats its mistakes; like its base it can invent facts. What it says
about an article is for a person to check before it is broadcast. Whether the teacher's terms allow its output to train
another model is for the owner of the project to check. Licence of the base: {licence or "not stated in its folder"}.
"""


def _gate_text(gate: Mapping[str, Any]) -> str:
    if gate["passed"] is None:
        return "Not measured: no held-out prompts were given."
    verdict = "**passed**" if gate["passed"] else f"**did not pass** ({', '.join(gate['failed'])})"
    table = markdown_table(
        ["measure", "merged", "adapter in the same format", "limit", "passed"],
        [
            (
                name.replace("_", " "),
                measure["value"],
                measure["reference"],
                f"{measure['bound']} {cell(measure['limit'])}",
                measure["passed"],
            )
            for name, measure in gate["measures"].items()
        ],
    )
    return f"""It {verdict} on {gate["prompts"]} held-out prompts with {gate["positions"]:,} answer positions, teacher-forced.
Both columns are measured against base and adapter in float32; KL is in nats a position.

{table}"""


def _training_text(adapter: Path) -> str:
    file = adapter / "loss_history.json"
    history = read_json(file) if file.is_file() else {}
    names = {
        "best_epoch": "epoch of the checkpoint",
        "best_validation_loss": "validation loss, nats a token",
        "train_loss": "last training loss, nats a token",
    }
    rows = []
    for key, name in names.items():
        value = history.get(key)
        rows.append((name, value[-1] if isinstance(value, list) and value else value or None))
    if all(value is None for _, value in rows):
        return "The adapter's folder has no figures of its training."
    return markdown_table(["figure", "value"], rows)


def _licence(base: Path) -> str | None:
    """The licence that the front matter of the base model's card names."""
    card = base / "README.md"
    if not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace")[:4000], re.DOTALL)
    found = re.search(r"^license:\s*([\w.+-]{1,60})\s*$", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None
