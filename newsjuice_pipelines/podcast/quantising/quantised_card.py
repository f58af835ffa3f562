"""The model card of a quantised model, written from its facts alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from newsjuice_pipelines.podcast.engines import GATE_FILE
from newsjuice_pipelines.runtime.reports import cell, markdown_table

BITS = {"int8": "8-bit weights (Q8_0)", "int4": "4-bit weights (Q4_0; embeddings and output layer Q8_0)"}
_RUN = """Through the pipelines, on a CPU (`auto` takes this form by itself where its gate passed):

```console
$ pip install 'newsjuice-pipelines[cpu-engine]'
$ newsjuice run --select student_scripts --config openvino.yaml   # ops: {student_scripts: {config: {engine: openvino}}}
```

Untuned models have the asset `base_scripts` in place of `student_scripts`. With llama.cpp, in this folder:

```console
$ llama-cli -m %s --jinja --temp 0 --reasoning-budget 0
```

Prompts are chat messages; thinking is off and decoding greedy, as in training."""


def quantised_card(facts: Mapping[str, Any]) -> str:
    """Markdown: what the folder holds, of which model, what its gate measured, and how it is run."""
    if facts["file"] is None:
        return f"""# No quantised model

This folder holds no GGUF file ({_code(facts["why"])}). Other engines run the unquantised model.
"""
    return f"""---
library_name: gguf
pipeline_tag: text-generation
---
# Podcast script writer, quantised

The model with the identity `{facts["source_identity"]}` as one GGUF file with {BITS[facts["precision"]]}: `{facts["file"]}`,
{facts["size_bytes"] / 1e6:,.1f} MB in place of {facts["source_size_bytes"] / 1e6:,.1f} MB. It turns a news article into a script
that a podcast host speaks. Its limits and its licence are those of the model that it was made from.

## Use

{_RUN % facts["file"]}

## Gate

{_gate_text(facts)}
"""


def _gate_text(facts: Mapping[str, Any]) -> str:
    verdict = {True: "**Passed**", False: "**Did not pass**", None: "**Open**"}[facts["passed"]]
    lines = [f"{verdict}: {_code(facts['why'])}."]
    if facts["measures"]:
        rows = [
            (name.replace("_", " "), measure["value"], f"{measure['bound']} {cell(measure['limit'])}", measure["passed"])
            for name, measure in facts["measures"].items()
        ]
        extent = f"{facts['prompts']} held-out prompts with {facts['positions']:,} answer tokens"
        lines += [
            f"Measured against the unquantised model on {extent}:",
            markdown_table(["measure", "value", "limit", "passed"], rows),
        ]
    return "\n\n".join([*lines, f"All figures are in `{GATE_FILE}`."])


def _code(text: str) -> str:
    """Text as Markdown code on one line, which nothing in it can end: it may quote a model's own files."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
