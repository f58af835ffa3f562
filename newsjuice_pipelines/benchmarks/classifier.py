"""The classifier as the original trained and used it beside ours: training, predicting, and the way from a file to a split.

`newsjuice bench classifier` runs it; on a GPU machine without Dagster, so does
`python -m newsjuice_pipelines.benchmarks.classifier --gpu --out DIR`. What one process measures is `classifier_runs.py`.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.classifier_rows import headlines_file, write_made_up_rows
from newsjuice_pipelines.benchmarks.classifier_runs import (
    ORIGINAL_TOKENS,
    ROBERTA_BASE,
    PredictionJob,
    TrainingJob,
    measure_data,
    measure_predictions,
    measure_training,
    prepare_classifiers,
    prepare_split,
    write_roberta,
)
from newsjuice_pipelines.benchmarks.machine import has_gpu, in_own_process, machine
from newsjuice_pipelines.classification.corpus.split import SplitConfig
from newsjuice_pipelines.runtime.reports import markdown_table, write_json

logger = logging.getLogger("newsjuice.benchmarks")

TRAINING, PREDICTING, DATA = "training", "predicting", "data"
PARTS = (TRAINING, PREDICTING, DATA)
ALL_ROWS = 209_527  # of the whole data set
SIZES = (20_000, ALL_ROWS)
RECIPES = ("original", "plain", "ours")
DATA_GOAL_S, DATA_GOAL_MIB = 60, 2048


@dataclass(frozen=True)
class Setting:
    """A model on a device, how many steps of each recipe are timed, and what is aimed at."""

    model: str
    gpu: bool
    steps: Mapping[str, int]
    """Timed steps of each recipe: few of the original, which computes 30 times as much."""
    warmup_steps: Mapping[str, int]
    goals: Mapping[str, float]
    """How many times faster than these recipes ours should be."""
    true_size: bool = False
    """Random weights in the model's true size instead of its own."""


@dataclass(frozen=True)
class Way:
    """A way to predict; `counts` are the texts that are timed."""

    way: str
    checkpoint: str
    count: int
    against: str = ""
    """The way that it should beat `goal` times."""
    goal: float = 0.0


SETTINGS: Mapping[str, Setting] = {
    "MiniLM, CPU": Setting(
        "minilm",
        gpu=False,
        steps={"original": 2, "plain": 60, "ours": 60},
        warmup_steps={"original": 1, "plain": 5, "ours": 5},
        goals={"original": 40, "plain": 1.5},
    ),
    "RoBERTa shape, GPU": Setting(
        "roberta",
        gpu=True,
        steps={"original": 30, "plain": 200, "ours": 200},
        warmup_steps={"original": 5, "plain": 20, "ours": 20},
        goals={"original": 10},
        true_size=True,
    ),
}
ORIGINAL = "original: batches of 32 padded to 512"
OURS = "ours, fp32"
WAYS: Mapping[str, Way] = {
    ORIGINAL: Way("original", "encoder", 64),
    OURS: Way("torch", "encoder", 2_000, ORIGINAL, 10),
    "ours, int8": Way("int8", "int8", 4_000, OURS, 2),
    "linear": Way("linear", "linear", 4_000),
}


def run(
    data: Path | None = None,
    *,
    repeats: int = 3,
    parts: Sequence[str] = PARTS,
    settings: Mapping[str, Setting] = SETTINGS,
    ways: Mapping[str, Way] = WAYS,
    sizes: Sequence[int] = SIZES,
    per_class: int = 1000,
    encoder_steps: int = 100,
    shape: Mapping[str, int] = ROBERTA_BASE,
    tokens: int = ORIGINAL_TOKENS,
) -> dict[str, Any]:
    """Measure each way in turn, `repeats` times, each time in a fresh process; medians are reported.

    Args:
        data: a folder with labelled headlines, as `classifier_rows.headlines_file` finds them; default: the demo headlines.
        repeats: of each way to train and to predict; the data is prepared once for each size.
        parts: any of `training`, `predicting` and `data`.
        settings: what to train, by name; those of a GPU are not measured where there is none.
        ways: how to predict; the first is what the others are held against.
        sizes: rows of the made-up files. Two million take about ten times as long as the default's largest.
        per_class: rows of a class in the split that is trained on.
        encoder_steps: training of the encoder that predicts.
        shape: of the model of true size.
        tokens: what the original pads to.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: at least 1.")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"there is no part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}.")
    source = headlines_file(data)
    gpu = in_own_process(has_gpu)
    possible = {name: setting for name, setting in settings.items() if gpu or not setting.gpu}
    results: dict[str, Any] = {"machine": machine(), "repeats": repeats, "headlines": "demo" if data is None else source.name}
    with tempfile.TemporaryDirectory(prefix="newsjuice-bench-") as folder:
        home = Path(folder)
        if TRAINING in parts or PREDICTING in parts:
            results |= in_own_process(prepare_split, home, data, per_class)
        if TRAINING in parts:
            if any(setting.true_size for setting in possible.values()):
                in_own_process(write_roberta, home, dict(shape))
            found = {name: _train_in_turn(name, setting, home, repeats, tokens) for name, setting in possible.items()}
            results[TRAINING] = {**dict.fromkeys({**SETTINGS, **settings}), **found}
        if PREDICTING in parts:
            results["export"] = in_own_process(prepare_classifiers, home, encoder_steps)
            results[PREDICTING] = _predict_in_turn(ways, home, repeats, tokens, exported=bool(results["export"]["passed"]))
        if DATA in parts:
            results[DATA] = [_data(source, size, home) for size in sizes]
    return results


def table(results: Mapping[str, Any]) -> str:
    """The result as Markdown tables."""
    pages = []
    if results.get(TRAINING) is not None:
        pages.append(_training_table(results))
    if results.get(PREDICTING) is not None:
        pages.append(_predicting_table(results))
    if results.get(DATA) is not None:
        pages.append(_data_table(results))
    return "\n\n".join(pages)


def main(arguments: Sequence[str] | None = None) -> int:
    """The direct start, for machines without Dagster. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m newsjuice_pipelines.benchmarks.classifier", description=(run.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--gpu", action="store_true", help="measure training on the GPU alone")
    parser.add_argument("--data", type=Path, help="a folder with huffpost_sample.jsonl or News_Category_Dataset_v3.json")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given several times")
    parser.add_argument("--rows", action="append", type=int, help="rows of a made-up file; may be given several times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for classifier.json and classifier.md, or classifier-gpu.* with --gpu")
    options = parser.parse_args(arguments)
    if options.gpu and not in_own_process(has_gpu):
        parser.error("there is no GPU that PyTorch can use: leave --gpu out to measure on the CPU.")
    results = run(
        options.data,
        repeats=options.repeats,
        parts=[TRAINING] if options.gpu else options.part or PARTS,
        settings={name: setting for name, setting in SETTINGS.items() if setting.gpu == options.gpu},
        sizes=options.rows or SIZES,
    )
    text = table(results)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        name = "classifier-gpu" if options.gpu else "classifier"  # one does not take the other's place
        write_json(options.out / f"{name}.json", {"classifier": results})
        (options.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return 0


def _train_in_turn(name: str, setting: Setting, home: Path, repeats: int, tokens: int) -> dict[str, Any]:
    base = str(home / "roberta") if setting.true_size else ""

    def measure(recipe: str) -> dict[str, Any]:
        steps, warmup_steps = setting.steps[recipe], setting.warmup_steps[recipe]
        job = TrainingJob(recipe, home / "split", setting.model, base, steps, warmup_steps, setting.gpu, tokens=tokens)
        return dict(in_own_process(measure_training, job))

    runs = _in_turn(f"training, {name}", RECIPES, measure, "examples_per_s", repeats)
    return {
        "recipes": {recipe: _medians(of_recipe) for recipe, of_recipe in runs.items()},
        "times_faster": {recipe: _ratios(runs["ours"], runs[recipe], "examples_per_s") for recipe in RECIPES if recipe != "ours"},
        "goals": dict(setting.goals),
        "device": runs["ours"][0]["device"],
        "steps": dict(setting.steps),
        "runs": runs,
    }


def _predict_in_turn(ways: Mapping[str, Way], home: Path, repeats: int, tokens: int, *, exported: bool) -> dict[str, Any]:
    possible = {name: way for name, way in ways.items() if exported or way.way != "int8"}

    def measure(name: str) -> dict[str, Any]:
        way = possible[name]
        job = PredictionJob(way.way, home / way.checkpoint, home / "texts.json", way.count, tokens)
        return dict(in_own_process(measure_predictions, job))

    runs = _in_turn("predicting", possible, measure, "texts_per_s", repeats)
    measured: dict[str, Any] = dict.fromkeys(ways)
    first = next(iter(possible))
    expected = runs[first][0]["labels"]
    for name, of_way in runs.items():
        way = possible[name]
        both = list(zip(expected, of_way[0]["labels"], strict=False))  # the original predicts the first few only
        measured[name] = {
            **_medians([{key: value for key, value in found.items() if key != "labels"} for found in of_way]),
            "texts": way.count,
            "times_the_original": _ratios(of_way, runs[first], "texts_per_s"),
            "against": way.against or None,
            "times_faster": _ratios(of_way, runs[way.against], "texts_per_s") if way.against in runs else None,
            "goal": way.goal or None,
            "same_label": sum(one == other for one, other in both) / len(both) if way.checkpoint != "linear" else None,
        }
    return measured


def _data(source: Path, rows: int, home: Path) -> dict[str, Any]:
    """Time one size; the file is made by a process of its own, whose memory does not count."""
    file = home / f"rows-{rows}.jsonl"
    in_own_process(write_made_up_rows, source, rows, file)
    found: dict[str, Any] = in_own_process(measure_data, file, SplitConfig(preset="full"))
    logger.info("classifier: %d rows from file to split in %.1f s, %.0f MiB", rows, found["total_s"], found["peak_memory_mib"])
    size_bytes = file.stat().st_size
    file.unlink()
    return {**found, "size_bytes": size_bytes}


def _in_turn(
    title: str, names: Sequence[str] | Mapping[str, Any], measure: Callable[[str], dict[str, Any]], speed: str, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Measure each, one after another, `repeats` times."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(repeats):
        for name in names:
            runs[name].append(measure(name))
            logger.info("classifier: %s, %s, run %d of %d: %.1f /s", title, name, number + 1, repeats, runs[name][-1][speed])
    return runs


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs) for name in numbers}


def _ratios(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], speed: str) -> list[float]:
    """How many times faster, run by run: the median, the lowest, the highest."""
    ratios = [one[speed] / other[speed] for one, other in zip(mine, theirs, strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _training_table(results: Mapping[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, found in results[TRAINING].items():
        for recipe in RECIPES:
            if found is None:
                rows.append((f"{name}: {recipe}", *[None] * 5))
                continue
            mine, goal = found["recipes"][recipe], found["goals"].get(recipe)
            rows.append(
                (
                    f"{name}: {recipe}",
                    mine["examples_per_s"],
                    f"{mine['padding_share']:.0%}",
                    f"{mine['peak_memory_mib']:,.0f} MiB",
                    "" if recipe == "ours" else _times(found["times_faster"][recipe]),
                    "" if goal is None else f"{goal:g}",
                )
            )
    header = (
        f"training, median of {results['repeats']}",
        "examples/s",
        "padding",
        "peak memory",
        "ours is faster, times (lowest to highest)",
        "goal",
    )
    note = (
        f"Trained on {results['train_rows']:,} rows of {results['classes']} classes ({results['headlines']}), the same for all. "
        "original: a plain Trainer in fp32 with batches of 16 padded to 512 tokens; plain: the same padded to the longest text "
        "of a batch; ours: the model's own recipe. The recipes ran in turn, each run in a fresh process; validation and "
        "checkpoints are left out. The weights of the RoBERTa shape are random, and its tokens those of a tokenizer that was "
        "trained on the rows."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def _predicting_table(results: Mapping[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, found in results[PREDICTING].items():
        if found is None:
            rows.append((name, *[None] * 7))
            continue
        against = found["against"]
        rows.append(
            (
                name,
                found["texts_per_s"],
                _times(found["times_the_original"]),
                ""
                if against is None
                else f"{found['times_faster'][0]:.2f} of {found['goal']:g} times {against.partition(':')[0]}",
                "" if found["same_label"] is None else f"{found['same_label']:.1%}",
                found["load_s"],
                f"{found['peak_memory_mib']:,.0f} MiB",
                found["texts"],
            )
        )
    header = (
        f"predicting, median of {results['repeats']}",
        "texts/s",
        "times the original (lowest to highest)",
        "goal",
        "same label as the original",
        "loading (s)",
        "peak memory",
        "texts",
    )
    export = results["export"]
    note = "Tokenising included, loading not. All but linear predict with one MiniLM, which was trained for a few steps only. "
    if export["passed"]:
        note += (
            f"Its int8 form changes accuracy by {-export['loss_points']:+.2f} points on {export['rows']:,} validation rows; "
            "whether one that is trained may serve is for the gate of the export to say."
        )
    else:
        note += f"Its int8 form is not measured: {export['reason']}."
    return markdown_table(header, rows) + f"\n\n{note}"


def _data_table(results: Mapping[str, Any]) -> str:
    found = results[DATA]
    rows: list[tuple[Any, ...]] = []
    for place, size in enumerate(found):
        smaller = found[place - 1] if place else None
        grows = math.log(size["total_s"] / smaller["total_s"]) / math.log(size["lines"] / smaller["lines"]) if smaller else None
        rows.append(
            (
                f"{size['lines']:,} rows, {size['size_bytes'] / 2**20:,.0f} MiB",
                f"{size['load_s']:.1f}",
                f"{size['map_s']:.1f}",
                f"{size['split_s']:.1f}",
                f"{size['total_s']:.1f}",
                f"{size['processor_s']:.1f}",
                f"{size['peak_memory_mib']:,.0f} MiB",
                "" if grows is None else f"{grows:.2f}",
            )
        )
    header = (
        "from a file to a split",
        "load (s)",
        "map (s)",
        "de-duplicate, split (s)",
        "in all (s)",
        "processor (s)",
        "peak memory",
        "time grows as rows to the",
    )
    note = (
        f"Made-up rows in the lengths of the whole data set, of phrases from {results['headlines']}; preset `full`, every row. "
        f"Aimed at for {ALL_ROWS:,} rows: under {DATA_GOAL_S} s and {DATA_GOAL_MIB:,} MiB."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def _times(ratios: Sequence[float]) -> str:
    median, low, high = ratios
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
