"""The choice of the CPU engine, measured: OpenVINO GenAI, ONNX Runtime GenAI and llama.cpp on the same weights and scripts.

`newsjuice bench engines` runs it. What is not installed is not measured; the runners are `cpu_engine_runs.py`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.cpu_engine_runs import measure_candidate
from newsjuice_pipelines.benchmarks.inference import BATCH, PROMPT_TOKENS, prepare
from newsjuice_pipelines.benchmarks.machine import in_own_process, machine
from newsjuice_pipelines.benchmarks.true_size import QWEN3_0_6B
from newsjuice_pipelines.runtime.reports import markdown_table

logger = logging.getLogger("newsjuice.benchmarks")


@dataclass(frozen=True)
class Candidate:
    """An engine that could run the student on a CPU."""

    module: str
    distributions: tuple[str, ...]
    """What its installation adds to the project's own, by name on PyPI."""
    installs: str
    """How it gets onto a machine with transformers 5.23, as tried here."""


CANDIDATES: Mapping[str, Candidate] = {
    "OpenVINO GenAI": Candidate(
        "openvino_genai", ("openvino-genai", "openvino", "openvino-tokenizers", "openvino-telemetry"), "wheels, no conflict"
    ),
    "ONNX Runtime GenAI": Candidate(
        "onnxruntime_genai",
        ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "protobuf", "ml-dtypes", "flatbuffers"),
        "wheels, no conflict; sends telemetry unless told not to",
    ),
    "llama.cpp": Candidate(
        "llama_cpp", ("llama-cpp-python", "diskcache"), "no wheel: compiled on the spot, 5 to 20 minutes on 2 cores"
    ),
}
PRECISIONS = ("int8", "int4")
ANSWER_TOKENS = 100  # enough to compare engines by


def run(
    *,
    repeats: int = 2,
    shape: Mapping[str, int] = QWEN3_0_6B,
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    candidates: Sequence[str] = tuple(CANDIDATES),
) -> dict[str, Any]:
    """Measure each candidate in each number format in turn, `repeats` times, each time in a fresh process.

    Args:
        repeats: of each; medians are reported.
        shape: of the model.
        prompt_tokens: of each prompt.
        answer_tokens: of each script.
        candidates: keys of `CANDIDATES`.
    """
    there = [name for name in candidates if find_spec(CANDIDATES[name].module) is not None]
    measured: dict[str, Any] = {f"{name}, {precision}": None for name in CANDIDATES for precision in PRECISIONS}
    with tempfile.TemporaryDirectory(prefix="newsjuice-bench-") as folder:
        home = Path(folder)
        facts = in_own_process(prepare, home, dict(shape), prompt_tokens, answer_tokens, set(PRECISIONS))
        runs: dict[str, list[dict[str, Any]]] = {}
        for number in range(repeats):
            for name in there:
                for precision in PRECISIONS:
                    label = f"{name}, {precision}"
                    result = in_own_process(measure_candidate, CANDIDATES[name].module, precision, home, BATCH)
                    runs.setdefault(label, []).append(result)
                    logger.info("CPU engines: %s, run %d of %d: %s", label, number + 1, repeats, json.dumps(result))
    for label, results in runs.items():
        name = label.rpartition(", ")[0]
        measured[label] = {**_medians(results), "install_mib": _install_mib(CANDIDATES[name].distributions), "runs": results}
    return {
        "machine": machine(),
        "repeats": repeats,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        **facts,
        "installs": {name: candidate.installs for name, candidate in CANDIDATES.items()},
        "measured": measured,
    }


def table(results: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    columns = ("prefill_tokens_per_s", "decode_tokens_per_s", "script_s", "batch_tokens_per_s", "load_s", "peak_memory_mib")
    rows = []
    for label, found in results["measured"].items():
        installs = results["installs"][label.rpartition(", ")[0]]
        if found is None:
            rows.append((label, *[None] * (len(columns) + 2), installs))
            continue
        shown = [None if found[name] is None else float(found[name]) for name in columns]
        rows.append((label, *shown, float(found["install_mib"]), f"{found['as_scripted']:.0%}", installs))
    header = (
        f"median of {results['repeats']}",
        "prefill tokens/s",
        "decode tokens/s",
        "a script (s)",
        f"{BATCH} at once, new tokens/s",
        "load (s)",
        "peak memory (MiB)",
        "installed (MiB)",
        "as scripted",
        "installation",
    )
    note = (
        f"The scripted model of {results['parameters'] / 1e6:,.0f} M parameters, {results['prompt_tokens']} tokens in, "
        f"{results['answer_tokens']} out; the batch figure includes reading the prompts. OpenVINO GenAI and llama.cpp run the "
        "same GGUF file (Q8_0; Q4_0 with embeddings and output layer in Q8_0), ONNX Runtime GenAI its own export. The Python "
        "binding of llama.cpp runs one sequence at a time."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in runs[0]:
        known = [run[name] for run in runs if run[name] is not None]
        found[name] = statistics.median(known) if known else None
    return found


def _install_mib(distributions: Sequence[str]) -> float:
    """Size of the installed files of some distributions, MiB; those that are not there count nothing."""
    total = 0
    for name in distributions:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        total += sum(os.path.getsize(path) for path in map(str, (file.locate() for file in files)) if os.path.isfile(path))
    return total / 2**20
