"""Tuning as the original did it beside our recipe: useful tokens a second and peak memory, same model, articles and machine.

`newsjuice bench finetune` runs it; where only torch, transformers, peft, trl and bitsandbytes are installed, so does
`python -m newsjuice_pipelines.benchmarks.finetune --gpu --out DIR`. What one process measures is `finetune_steps.py`.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.finetune_rows import pairs, write_rows
from newsjuice_pipelines.benchmarks.finetune_steps import Job, measure
from newsjuice_pipelines.benchmarks.machine import has_gpu, in_own_process, machine
from newsjuice_pipelines.benchmarks.true_size import QWEN3_0_6B, build_true_size
from newsjuice_pipelines.podcast.training.finetune_config import PRESETS, FinetuneConfig
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny
from newsjuice_pipelines.runtime.reports import markdown_table, write_json

logger = logging.getLogger("newsjuice.benchmarks")

JOB_ROWS, JOB_EPOCHS = 1_800, 3  # the original's, which took 77 minutes on a T4
TINY_TEXTS = 10  # fewer give no tokenizer
# The base has untrained weights: they cost the same.
TINY = TinyConfig(steps=1)
# The preset, and what the original did besides: a plain prompt, loss over everything, rows cut at 1,024 tokens.
RECIPES: Mapping[str, tuple[str, FinetuneConfig]] = {
    "original": (
        "original",
        replace(PRESETS["original"], chat_template=False, completion_only_loss=False, cut_long_rows=True),
    ),
    "ours": ("short", PRESETS["recommended"]),
}


@dataclass(frozen=True)
class Setting:
    """A model on a device, and how long it is measured."""

    model: str
    """`tiny` or `true_size`."""
    gpu: bool
    steps: int
    """Optimiser steps that are timed, of each recipe."""
    warmup_steps: int
    device_steps: int | None = None
    """Device steps an optimiser step, where the recipes' own would take too long."""


SETTINGS: Mapping[str, Setting] = {
    "tiny, CPU": Setting("tiny", gpu=False, steps=2, warmup_steps=1),
    # Without the step before it, the first use of each page of memory would be timed too.
    "Qwen3-0.6B shape, CPU": Setting("true_size", gpu=False, steps=1, warmup_steps=1, device_steps=1),
    "Qwen3-0.6B shape, GPU": Setting("true_size", gpu=True, steps=10, warmup_steps=3),
}


def run(
    data: Path | None = None,
    *,
    repeats: int = 3,
    settings: Mapping[str, Setting] = SETTINGS,
    tiny: TinyConfig = TINY,
    shape: Mapping[str, int] = QWEN3_0_6B,
) -> dict[str, Any]:
    """Measure both recipes in turn, `repeats` times, each time in a fresh process, on each setting that this machine has.

    Args:
        data: articles, as `finetune_rows.pairs` takes them; default: the demo articles, cut to the length of the original's.
        repeats: of each recipe; medians are reported.
        settings: what to measure, by the name of its column; those of a GPU are left out where there is none.
        tiny: the small base; its weights are not trained.
        shape: of the base of true size.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: at least 1.")
    gpu = in_own_process(has_gpu)
    measured: dict[str, Any] = dict.fromkeys(SETTINGS)
    with tempfile.TemporaryDirectory(prefix="newsjuice-bench-") as folder:
        home = Path(folder)
        facts = in_own_process(_prepare, home, data, tiny, shape, {setting.model for setting in settings.values()})
        for name, setting in settings.items():
            if gpu or not setting.gpu:
                measured[name] = _measure_in_turn(name, setting, home, repeats)
    return {
        "machine": machine(),
        "repeats": repeats,
        "data": "demo" if data is None else data.name,
        **facts,
        "measured": measured,
    }


def table(results: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    columns = results["measured"]

    def row(name: str, *path: str, show: Callable[[Any], Any] = lambda value: value) -> tuple[Any, ...]:
        return (name, *(_shown(column, path, show) for column in columns.values()))

    rows = [row(f"useful tokens/s, {recipe}", recipe, "useful_tokens_per_s", show=float) for recipe in RECIPES]
    rows += [row("ours, times the original (lowest to highest)", "times_faster", show=_times)]
    rows += [row(f"peak memory, {recipe}", recipe, "peak_memory_mib", show=lambda mib: f"{mib:,.0f} MiB") for recipe in RECIPES]
    rows += [row(f"useful share of what is computed, {recipe}", recipe, "useful_share", show=_percent) for recipe in RECIPES]
    rows += [row(f"numbers, {recipe}", recipe, "compute_dtype") for recipe in RECIPES]
    rows += [row(f"share of the measured bf16 peak, {recipe}", recipe, "peak_share", show=_percent) for recipe in RECIPES]
    rows += [row("measured bf16 peak", "matmul_flops_per_s", show=lambda flops: f"{flops / 1e12:,.0f} TFLOP/s")]
    job = f"{JOB_ROWS:,} rows, {JOB_EPOCHS} epochs, without loading and evaluation"
    rows += [row(f"whole job ({job}), projected, {recipe}", recipe, "job_s", show=_minutes) for recipe in RECIPES]
    note = (
        f"Useful are the tokens of article and script that the steps trained on: {results['article_tokens']:,.0f} and "
        f"{results['script_tokens']:,.0f} a row on average ({results['data']} articles, {results['rows']} rows). "
        "The recipes ran in turn, each run in a fresh process; the weights are random. At true size on the CPU one optimiser "
        "step of one device step (a row of the original, a packed sequence of ours) is timed, after one that is not; elsewhere "
        "steps are the recipes'. The original is QLoRA: its base is in NF4, which a processor has to emulate, and it was made "
        "for a T4, where it computed in 16 bits. Its instruction is counted with the packaged prompt's length, which favours it."
    )
    return markdown_table([f"median of {results['repeats']}", *columns], rows) + f"\n\n{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The direct start, for machines without Dagster. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m newsjuice_pipelines.benchmarks.finetune", description=(run.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU alone")
    parser.add_argument("--data", type=Path, help="a teacher_scripts CSV, or a JSONL of articles with 'content'")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for finetune.json and finetune.md, or finetune-gpu.* with --gpu")
    options = parser.parse_args(arguments)
    if options.gpu and not in_own_process(has_gpu):
        parser.error("there is no GPU that PyTorch can use: leave --gpu out to measure on the CPU.")
    settings = {name: setting for name, setting in SETTINGS.items() if setting.gpu or not options.gpu}
    results = run(options.data, repeats=options.repeats, settings=settings)
    text = table(results)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        name = "finetune-gpu" if options.gpu else "finetune"  # one does not take the other's place
        write_json(options.out / f"{name}.json", {"finetune": results})
        (options.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return 0


def _prepare(home: Path, data: Path | None, tiny: TinyConfig, shape: Mapping[str, int], models: set[str]) -> dict[str, Any]:
    """Write the bases and, for each recipe, its rows; both bases have one tokenizer, trained on the articles."""
    from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

    rows = pairs(data)
    texts = [text for pair in rows for text in pair]
    if len(texts) < TINY_TEXTS:
        raise ValueError(f"{len(rows)} articles are too few to train a tokenizer on: give at least {TINY_TEXTS // 2}.")
    for name in ("tiny", "true_size", *RECIPES):
        (home / name).mkdir()
    build_tiny(texts, tiny, home / "tiny")
    tokenizer = load_tokenizer(home / "tiny")
    if "true_size" in models:
        build_true_size(tokenizer, home / "true_size", shape)
    counts = {name: write_rows(rows, tokenizer, version, home / name) for name, (version, _) in RECIPES.items()}
    lengths = [
        [len(ids) for ids in tokenizer(list(side), add_special_tokens=False)["input_ids"]] for side in zip(*rows, strict=True)
    ]
    return {
        "rows": min(counts.values()),
        "article_tokens": statistics.fmean(lengths[0]),
        "script_tokens": statistics.fmean(lengths[1]),
    }


def _measure_in_turn(name: str, setting: Setting, home: Path, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in RECIPES}
    for number in range(repeats):
        for recipe in runs:
            config = RECIPES[recipe][1]
            if setting.device_steps is not None:
                config = replace(config, accumulation_steps=setting.device_steps)
            job = Job(home / setting.model, home / recipe, config, setting.steps, setting.warmup_steps, setting.gpu)
            runs[recipe].append(in_own_process(measure, job))
            speed = _useful_tokens_per_s(runs[recipe][-1])
            logger.info("finetune: %s, %s, run %d of %d: %.1f useful tokens a second", name, recipe, number + 1, repeats, speed)
    peak = _known_median([run["matmul_flops_per_s"] for of_recipe in runs.values() for run in of_recipe])
    summaries = {recipe: _summary(of_recipe, peak) for recipe, of_recipe in runs.items()}
    return {
        **summaries,
        "times_faster": _times_faster(runs["ours"], runs["original"]),
        "matmul_flops_per_s": peak,
        "device": runs["ours"][0]["device"],
        "steps": setting.steps,
        "warmup_steps": setting.warmup_steps,
        "device_steps": setting.device_steps,
        "runs": runs,
    }


def _times_faster(ours: Sequence[Mapping[str, Any]], original: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many times faster ours was: the median of the repeats, the lowest, the highest."""
    ratios = [_useful_tokens_per_s(mine) / _useful_tokens_per_s(theirs) for mine, theirs in zip(ours, original, strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _summary(runs: Sequence[Mapping[str, Any]], peak_flops_per_s: float | None) -> dict[str, Any]:
    """Medians of one recipe's runs; what only a GPU tells is None without one."""
    median: Callable[[str], float] = lambda name: statistics.median(run[name] for run in runs)  # noqa: E731
    speed = statistics.median(map(_useful_tokens_per_s, runs))
    job_useful_tokens = JOB_ROWS * JOB_EPOCHS * median("useful_tokens") / median("rows")
    flops_per_s = statistics.median(run["flops"] / run["wall_s"] for run in runs)
    return {
        "useful_tokens_per_s": speed,
        "useful_share": median("useful_tokens") / median("positions"),
        "peak_memory_mib": median("peak_memory_mib"),
        "compute_dtype": runs[0]["compute_dtype"],
        "activation_checkpointing": runs[0]["activation_checkpointing"],
        "model_flops_per_s": flops_per_s,
        "peak_share": None if peak_flops_per_s is None else flops_per_s / peak_flops_per_s,
        "job_s": None if peak_flops_per_s is None else job_useful_tokens / speed,
    }


def _useful_tokens_per_s(run: Mapping[str, Any]) -> float:
    return float(run["useful_tokens"] / run["wall_s"])


def _known_median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _shown(column: Mapping[str, Any] | None, path: Sequence[str], show: Callable[[Any], Any]) -> Any:
    """What `path` leads to, as `show` words it; None where the column was not measured."""
    value: Any = column
    for name in path:
        value = None if value is None else value.get(name)
    return None if value is None else show(value)


def _times(ratios: Sequence[float]) -> str:
    median, low, high = ratios
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
