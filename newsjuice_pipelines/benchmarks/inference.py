"""Writing scripts as the original did it beside our engines: same weights, same prompts, same scripts, in turn.

`newsjuice bench inference` runs it; where only torch, transformers and safetensors are installed, so does
`python -m newsjuice_pipelines.benchmarks.inference --gpu --out DIR`. What one process measures is `inference_runs.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.inference_runs import Run, measure
from newsjuice_pipelines.benchmarks.machine import has_gpu, in_own_process, machine
from newsjuice_pipelines.benchmarks.scripted_model import build_scripted, made_up_scripts
from newsjuice_pipelines.benchmarks.true_size import QWEN3_0_6B
from newsjuice_pipelines.podcast.quantising.gguf_export import Precision
from newsjuice_pipelines.runtime.reports import markdown_table, write_json

logger = logging.getLogger("newsjuice.benchmarks")

PROMPT_TOKENS, ANSWER_TOKENS = 600, 300
INSTRUCTION_TOKENS = 200  # the original's, at the start of every prompt
BATCH = 8
# Where each kind of script stands in the list; one that stands before is the warm-up's.
WARM_UP, NOTHING_COPIED, ALL_COPIED, HALF_COPIED = 0, 1, 2, 3
GUESSED_TOKENS = 3


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    engine: str
    precision: str
    first: int = HALF_COPIED
    at_once: int = 1
    lookup_tokens: int = 0
    prefix_cache: bool = False
    without_instruction: bool = False
    gpu: bool = False
    count: int = 0
    """Scripts written; 0: as many as run at once."""


ORIGINAL, ORIGINAL_GPU = "original: generate in bf16, one at a time", "original on the GPU"
GPU_JOB = "transformers on the GPU, 2,000 scripts, 256 at once"  # the original's job took 20 hours on an L4
VARIANTS: Mapping[str, Variant] = {
    ORIGINAL: Variant("original", "bfloat16"),
    "int8, one at a time": Variant("openvino", "int8"),
    "int8, prompt lookup, half of the script copied": Variant("openvino", "int8", lookup_tokens=GUESSED_TOKENS),
    "int8, prompt lookup, nothing copied": Variant("openvino", "int8", NOTHING_COPIED, lookup_tokens=GUESSED_TOKENS),
    "int8, prompt lookup, all copied": Variant("openvino", "int8", ALL_COPIED, lookup_tokens=GUESSED_TOKENS),
    "int8, instruction of 200 tokens cached": Variant("openvino", "int8", prefix_cache=True),
    "int8, no instruction of 200 tokens": Variant("openvino", "int8", without_instruction=True),
    "int8, 8 at once": Variant("openvino", "int8", at_once=BATCH),
    "int4, one at a time": Variant("openvino", "int4"),
    "int4, prompt lookup, half of the script copied": Variant("openvino", "int4", lookup_tokens=GUESSED_TOKENS),
    "int4, 8 at once": Variant("openvino", "int4", at_once=BATCH),
}
GPU_VARIANTS: Mapping[str, Variant] = {
    ORIGINAL_GPU: Variant("original", "bfloat16", gpu=True),
    "reference on the GPU, one at a time": Variant("reference", "bfloat16", gpu=True),
    "reference on the GPU, prompt lookup, half copied": Variant("reference", "bfloat16", lookup_tokens=GUESSED_TOKENS, gpu=True),
    "transformers on the GPU, 8 at once": Variant("transformers", "bfloat16", at_once=BATCH, gpu=True),
    GPU_JOB: Variant("transformers", "bfloat16", at_once=256, gpu=True, count=2000),
}


def run(
    *,
    repeats: int = 3,
    variants: Mapping[str, Variant] = VARIANTS,
    shape: Mapping[str, int] = QWEN3_0_6B,
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
) -> dict[str, Any]:
    """Measure each variant in turn, `repeats` times, each time in a fresh process; medians are reported.

    Ctrl-C ends it early: the rounds that were finished are reported.

    Args:
        repeats: of each variant.
        variants: what to measure, by the name of its row; the first one is what the others are held against. Those of a GPU
            or of the extra `cpu-engine` are not measured where that is not there.
        shape: of the model.
        prompt_tokens: of each prompt.
        answer_tokens: of each script.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: at least 1.")
    gpu, quantised = in_own_process(has_gpu), find_spec("openvino_genai") is not None
    measured: dict[str, Any] = dict.fromkeys({**VARIANTS, **GPU_VARIANTS, **variants})
    possible = {
        name: variant
        for name, variant in variants.items()
        if (gpu or not variant.gpu) and (quantised or variant.engine != "openvino")
    }
    first = next(iter(variants))
    if first not in possible:
        raise ValueError(f"{first!r}, which the others are held against, cannot run here: start with another one.")
    with tempfile.TemporaryDirectory(prefix="newsjuice-bench-") as folder:
        home = Path(folder)
        precisions = {variant.precision for variant in possible.values() if variant.engine == "openvino"}
        facts = in_own_process(prepare, home, dict(shape), prompt_tokens, answer_tokens, precisions)
        rounds: list[dict[str, dict[str, Any]]] = []
        try:
            while len(rounds) < repeats:
                rounds.append(_round(possible, home, facts["instruction_tokens"], f"run {len(rounds) + 1} of {repeats}"))
        except KeyboardInterrupt:
            if not rounds:
                raise
            logger.warning("inference: broken off, %d of %d rounds are reported", len(rounds), repeats)
        bandwidths = {on: in_own_process(_bandwidth_bytes_per_s, on) for on in {variant.gpu for variant in possible.values()}}
    runs = {name: [measurements[name] for measurements in rounds] for name in possible}
    for name, of_variant in runs.items():
        measured[name] = _summary(of_variant, runs[first], facts, bandwidths[possible[name].gpu], possible[name])
    return {
        "machine": machine(),
        "repeats": len(rounds),
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        **facts,
        "bandwidth_bytes_per_s": {"GPU" if on else "CPU": bandwidth for on, bandwidth in bandwidths.items()},
        "measured": measured,
    }


def table(results: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    rows = []
    for name, found in results["measured"].items():
        if found is None:
            rows.append((name, *[None] * 8))
            continue
        rows.append(
            (
                name,
                found["ttft_s"],
                found["latency_s"],
                found["tokens_per_s"],
                _times(found["times_the_original"]),
                f"{found['as_scripted']:.0%}",
                None if found["bandwidth_share"] is None else f"{found['bandwidth_share']:.0%}",
                found["wall_s"],
                f"{found['peak_memory_mib']:,.0f} MiB",
            )
        )
    header = (
        f"median of {results['repeats']}",
        "first token (s)",
        "a script (s)",
        "new tokens/s",
        "times the original (lowest to highest)",
        "as scripted",
        "of the bandwidth floor",
        "all of them (s)",
        "peak memory",
    )
    note = (
        f"{results['prompt_tokens']} tokens in, {results['answer_tokens']} out, reading the prompt included in every figure; "
        f"{results['parameters'] / 1e6:,.0f} M parameters. The weights are random but for a table that makes the model write "
        "known scripts, so that guessing ahead meets text that copies its article in passages of a sentence, and no more than "
        "that. Passages copied by real scripts differ; nothing copied and all copied are the two ends. The times are the ratio "
        "of new tokens a second, run by run, each in a fresh process. A script's time in a batch includes the work on its "
        f"neighbours. The floor is reading all weights once a token at the measured bandwidth ({_bandwidths(results)}); only "
        "plain decoding of one stream is held against it. What a number format does to the quality of a trained model is the "
        "business of the gate of `quantised_model`; here it only has to write the scripts."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The direct start, for machines without Dagster. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m newsjuice_pipelines.benchmarks.inference", description=(run.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU alone, with a job of 2,000 scripts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for inference.json and inference.md, or inference-gpu.* with --gpu")
    options = parser.parse_args(arguments)
    if options.gpu and not in_own_process(has_gpu):
        parser.error("there is no GPU that PyTorch can use: leave --gpu out to measure on the CPU.")
    results = run(repeats=options.repeats, variants=GPU_VARIANTS if options.gpu else VARIANTS)
    text = table(results)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        name = "inference-gpu" if options.gpu else "inference"  # one does not take the other's place
        write_json(options.out / f"{name}.json", {"inference": results})
        (options.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return 0


def prepare(
    home: Path, shape: dict[str, int], prompt_tokens: int, answer_tokens: int, precisions: set[Precision]
) -> dict[str, Any]:
    """Write the model, its quantised forms, and the scripts; a tokenizer is trained, since a model folder needs one."""
    from newsjuice_pipelines.benchmarks.finetune_rows import pairs
    from newsjuice_pipelines.podcast.quantising.gguf_export import FILES, export_gguf
    from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
    from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny

    for name in ("tiny", "model", *precisions):
        (home / name).mkdir()
    build_tiny([text for pair in pairs() for text in pair], TinyConfig(steps=1, vocab_size=512), home / "tiny")
    tokenizer = load_tokenizer(home / "tiny")
    prefix = prompt_tokens * INSTRUCTION_TOKENS // PROMPT_TOKENS
    scripts = made_up_scripts(
        [(1, 8, 0.0), (1, answer_tokens, 0.0), (1, answer_tokens, 1.0), (BATCH, answer_tokens, 0.5)],
        prompt_tokens,
        tokenizer.eos_token_id,
        prefix,
    )
    (home / "scripts.json").write_text(json.dumps([[script.prompt, script.answer] for script in scripts]), encoding="utf-8")
    parameters = build_scripted(scripts, tokenizer, home / "model", shape)
    sizes = {"bfloat16": 2 * parameters, "float32": 4 * parameters}
    for precision in sorted(precisions):
        for file in (home / "model").iterdir():
            if file.suffix != ".safetensors":
                shutil.copyfile(file, home / precision / file.name)
        sizes[precision] = export_gguf(home / "model", home / precision / FILES[precision], precision)["size_bytes"]
    return {"parameters": parameters, "instruction_tokens": prefix, "weight_bytes": sizes}


def _round(variants: Mapping[str, Variant], home: Path, instruction_tokens: int, title: str) -> dict[str, dict[str, Any]]:
    """Measure each variant once, one after another."""
    measured = {}
    for name, variant in variants.items():
        measured[name] = in_own_process(measure, _run(variant, home, instruction_tokens))
        logger.info("inference: %s, %s: %.1f tokens a second", name, title, _tokens_per_s(measured[name]))
    return measured


def _run(variant: Variant, home: Path, instruction_tokens: int) -> Run:
    quantised = home / variant.precision if variant.engine == "openvino" else None
    return Run(
        variant.engine,
        home / "model",
        quantised,
        home / "scripts.json",
        variant.first,
        variant.count or variant.at_once,
        variant.at_once,
        variant.lookup_tokens,
        variant.prefix_cache,
        instruction_tokens if variant.without_instruction else 0,
        variant.gpu,
    )


def _summary(
    runs: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    bandwidth: float,
    variant: Variant,
) -> dict[str, Any]:
    """Medians over the runs of one variant, and the ratio to the baseline's run of the same round."""
    ratios = [_tokens_per_s(mine) / _tokens_per_s(theirs) for mine, theirs in zip(runs, baseline, strict=True)]
    ttft = [value for run in runs for value in run["ttft_s"] if value is not None]
    plain = variant.at_once == 1 and not variant.lookup_tokens
    decoding = [
        (run["latency_s"][0] - run["ttft_s"][0]) / (run["new_tokens"] - 1)
        for run in runs
        if plain and run["ttft_s"][0] is not None
    ]
    floor_s = facts["weight_bytes"][variant.precision] / bandwidth
    return {
        "ttft_s": statistics.median(ttft) if ttft else None,
        "latency_s": statistics.median(value for run in runs for value in run["latency_s"]),
        "tokens_per_s": statistics.median(map(_tokens_per_s, runs)),
        "times_the_original": [statistics.median(ratios), min(ratios), max(ratios)],
        "as_scripted": statistics.fmean(run["as_scripted"] for run in runs),
        "bandwidth_share": floor_s / statistics.median(decoding) if decoding else None,
        "peak_memory_mib": statistics.median(run["peak_memory_mib"] for run in runs),
        "scripts": len(runs[0]["latency_s"]),
        "wall_s": statistics.median(run["wall_s"] for run in runs),
        "runs": list(runs),
    }


def _tokens_per_s(run: Mapping[str, Any]) -> float:
    return float(run["new_tokens"] / run["wall_s"])


def _bandwidth_bytes_per_s(gpu: bool) -> float:
    """How fast memory is read: the best of five sums over one gibibyte."""
    import time

    import torch

    device = "cuda" if gpu else "cpu"
    numbers = torch.ones(2**28, device=device)
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        numbers.sum().item()
        best_s = min(best_s, time.perf_counter() - started)
    return float(numbers.numel() * numbers.element_size() / best_s)


def _bandwidths(results: Mapping[str, Any]) -> str:
    return ", ".join(f"{device} {speed / 1e9:,.0f} GB/s" for device, speed in results["bandwidth_bytes_per_s"].items())


def _times(ratios: Sequence[float]) -> str:
    median, low, high = ratios
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
