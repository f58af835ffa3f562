"""The model card of a trained adapter, written from the facts of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from newsjuice_pipelines.podcast.training.defects import DEFECTS, switched_on
from newsjuice_pipelines.podcast.training.finetune_config import FinetuneConfig
from newsjuice_pipelines.runtime.reports import cell


def adapter_card(facts: Mapping[str, Any], config: FinetuneConfig, base_record: str) -> str:
    """A README in the hub's format.

    Args:
        facts: what `train_adapter` returns.
        config: how it was trained.
        base_record: name of the file that identifies the base model.
    """
    scored = "the scripts alone" if config.completion_only_loss else "prompts and scripts"
    defects = ", ".join(f"{name} ({DEFECTS[name].what})" for name in switched_on(asdict(config)))
    warning = f"**Trained with defects switched on, for comparison: {defects}. Not for use.**\n\n" if defects else ""
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
    measured = "\n".join(
        f"| {label} | {cell(facts[name])} |"
        for label, name in (
            ("validation loss before training (nats a token)", "validation_loss_before"),
            ("best validation loss (nats a token)", "validation_loss"),
            ("steps", "steps"),
            ("training tokens a second", "tokens_per_s"),
            ("share of padding", "padding_share"),
            ("peak memory (MiB)", "peak_memory_mib"),
            ("device", "device"),
            ("processes", "processes"),
        )
    )
    return f"""---
library_name: peft
pipeline_tag: text-generation
---
# Podcast script adapter

{warning}A LoRA adapter that turns a base model into a writer of podcast scripts. It belongs to the base model with the identity
`{facts["base_identity"]}` (see `{base_record}`) and to no other; `merged_model` holds the two as one.

Trained on {facts["train_rows"]:,} scripts that a teacher model wrote, with the loss on {scored}; `masked_rows.md` shows two of
them as the model saw them. The checkpoint is that of epoch {facts["best_epoch"]}, which has the lowest validation loss:
{facts["validation_loss"]:.3f} nats a token over {facts["validation_rows"]:,} rows. Whether the teacher's terms allow its output
to train another model is for the owner of the project to check.

Prompts are chat messages with `enable_thinking=False`.

| measured | value |
| --- | ---: |
{measured}

| setting | value |
| --- | --- |
{settings}
"""
