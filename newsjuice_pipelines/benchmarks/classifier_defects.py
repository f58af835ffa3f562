"""The classifier's defect ledger: what each defect of the first experiment costs or flatters, measured one switch at a time.

Intervals, table and plot are made here; one training and what it finds are `classifier_defect_runs.py`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import newsjuice_pipelines
from newsjuice_pipelines.benchmarks.classifier_defect_runs import EXTERNAL, ROWS, RUNS, LedgerSettings, run_variant
from newsjuice_pipelines.benchmarks.classifier_intervals import (
    HALVINGS,
    Side,
    clustered_mean,
    difference,
    flattery_deviation,
    picked_on_half,
    ratio,
)
from newsjuice_pipelines.benchmarks.classifier_rows import external_rows, headlines_file
from newsjuice_pipelines.benchmarks.defect_run import write_result
from newsjuice_pipelines.benchmarks.machine import in_own_process, machine
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.provenance import file_fingerprint, fingerprint, package_versions
from newsjuice_pipelines.runtime.reports import PALETTE, markdown_table, new_figure, save_figure

logger = logging.getLogger("newsjuice.benchmarks")

SEEDS = (1, 2, 3)
DEFECTS: Mapping[str, str] = {
    "D10": "padded to 512 tokens",
    "D11": "the test part picks the checkpoint",
    "D12": "no look for near-duplicates between the parts",
    "D13": "rows above the cap thrown away",
    "D14": "overlapping and renamed sections kept as classes",
    "D15": "every article gets an answer",
    "D16": "another source's labels compared as strings",
}
ALONE = "D10"  # a timing: nothing else may run beside it
SHARE, SPEED, TIMES = "share", "speed", "times"
NORMAL_95 = 1.96
UNITS = {SHARE: " points", SPEED: " times", TIMES: " times"}  # of a change


def run(
    data: Path | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    settings: LedgerSettings | None = None,
    workers: int | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Run every comparison with every seed. A ledger that is cut off goes on where it was.

    Args:
        data: folder with `huffpost_sample.jsonl` (or the whole data set) and perhaps `harvard_external.csv`; default: the
            packaged demo, which is so small that most intervals cover zero.
        seeds: of split, planted rows and training; D11 keeps one split, so that its checkpoints can be compared.
        settings: what is trained, and on how much.
        workers: processes with one thread each; default: one a core.
        work: keeps finished runs; default: a folder below the system's temporary one, named after all of the above and the
            code, and removed at the end.
    """
    settings, source = settings or LedgerSettings(), headlines_file(data)
    plan = [vars(settings), file_fingerprint(source), _code()]
    home = work or Path(tempfile.gettempdir()) / f"newsjuice-classifier-defects-{fingerprint(plan)[:12]}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = in_own_process(_prepare, data, home)
    done = _run_all(home, seeds, settings, workers or os.cpu_count() or 1)
    if work is None:
        shutil.rmtree(home)
    of = {name: [done[name, seed] for seed in seeds] for name in RUNS}
    findings = [
        *_padding(of["D10"]),
        *_picked_by_test(of["D11"]),
        *_near_duplicates(of["D12"]),
        *_capped(of["D13"]),
        *_questions(of["D14-D16"]),
    ]
    return {
        "machine": machine(),
        "data": "demo headlines" if data is None else source.name,
        **facts,
        "seeds": list(seeds),
        "settings": vars(settings),
        "findings": findings,
        "notes": {
            "same_label": min(found["same_label"] for found in of["D10"]),
            "largest_difference": max(found["largest_difference"] for found in of["D10"]),
            "padding_share": of["D10"][0]["padding_share"],
            "train_rows": {name: of["D13"][0][name]["train_rows"] for name in ("cap", "share")},
            "taxonomy": of["D14-D16"][0]["proposed"]["taxonomy"],
        },
    }


def table(results: Mapping[str, Any]) -> str:
    """The classifier's ledger as a Markdown table, and what its brackets mean."""
    header = [
        "defect",
        "measure",
        "as the original did",
        "done right",
        "change when done right",
        "lowest to highest seed",
        "rows",
    ]
    rows = []
    for found in results["findings"]:
        defect = f"{found['defect']}: {DEFECTS[found['defect']]}"
        if found["change"] is None:
            rows.append([defect, found["measure"], _level(found, "original"), _level(found, "right"), None, None, found["rows"]])
            continue
        lowest, highest = (_change(found, value) for value in found["by_seed"])
        change = f"{_change(found, found['change']['value'])}{UNITS[found['kind']]} {_interval(found)}".strip()
        rows.append(
            [
                defect,
                found["measure"],
                _level(found, "original"),
                _level(found, "right"),
                change,
                f"{lowest} to {highest}",
                found["rows"],
            ]
        )
    settings, notes = results["settings"], results["notes"]
    note = (
        f"Seeds {', '.join(map(str, results['seeds']))}; {results['labelled_rows']:,} labelled rows ({results['data']}), and "
        f"{results['external_rows']:,} articles of another source ({results['external']}). {settings['model']} is trained, but "
        f"{settings['encoder']} for D10 and D11. Square brackets: 95 % interval over all seeds, in which rows that are the same "
        "text or near-duplicates of each other count as one; round brackets: lowest and highest seed. Where done right is lower "
        "in D11 or D12, the original's way flattered. "
        f"D10: of the texts predicted both ways {notes['same_label']:.1%} have the same label, and their probabilities differ by "
        f"at most {notes['largest_difference']:.1e}; padding is {notes['padding_share']['original']:.0%} of what is computed, "
        f"{notes['padding_share']['right']:.0%} without it. D11: a random half of the test part picks and both halves are "
        f"scored, {HALVINGS} times, over {settings['encoder_epochs']} epochs; its first two intervals are by bootstrap. D12: the "
        "same test rows, scored by a classifier trained with and without the rows that they nearly repeat; planted are "
        f"{settings['planted_share']:.0%} of the rows, in the same section, which is an assumption. D13: trained on "
        f"{_of(notes['train_rows']['cap'])} rows at the cap, on {_of(notes['train_rows']['share'])} at the original's share. "
        f"D14: the other taxonomy is {notes['taxonomy']}. D15: what is filed is at or above the threshold "
        "that the calibration part certifies for 90 %."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def write_plot(results: Mapping[str, Any], path: Path) -> None:
    """What changes when each defect is done right, with 95 % intervals: shares in points, and how many times, as a PNG."""
    panels = ((SHARE,), "change, percentage points", 0.0), ((SPEED, TIMES), "times as much", 1.0)
    figure, axes = new_figure(13.0, 5.0, columns=2)
    for axis, (kinds, title, neutral) in zip(axes, panels, strict=True):
        shown = [found for found in results["findings"] if found["kind"] in kinds and found["change"] is not None]
        scale = 100 if kinds == (SHARE,) else 1
        for place, found in enumerate(reversed(shown)):
            value, low, high = (scale * found["change"][name] for name in ("value", "low", "high"))
            color = PALETTE[4] if low > neutral or high < neutral else PALETTE[5]
            axis.plot([low, high], [place, place], color=color, linewidth=2)
            axis.plot([value], [place], "o", color=color)
        axis.axvline(neutral, color=PALETTE[5], linewidth=0.8)
        axis.set_yticks(range(len(shown)), [f"{found['defect']}: {found['measure']}" for found in reversed(shown)], fontsize=8)
        axis.set_ylim(-0.5, len(shown) - 0.5)
        axis.set_title(title, fontsize=9)
    if shown:
        axes[1].set_xscale("log")
    save_figure(figure, path)


def _padding(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    times = [found["right"] / found["original"] for found in runs]
    return [
        {
            "defect": "D10",
            "measure": "training examples a second",
            "kind": SPEED,
            "original": _spread([found["original"] for found in runs]),
            "right": _spread([found["right"] for found in runs]),
            "change": _spread(times),
            "by_seed": [min(times), max(times)],
            "rows": None,
        }
    ]


def _picked_by_test(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    import numpy as np

    groups = runs[0]["group"]
    matrices = [np.asarray(found["right"], dtype=float) for found in runs]
    assert all(found["group"] == groups for found in runs), "every seed judges the same test rows"
    picked = [picked_on_half(matrix, groups) for matrix in matrices]
    best_of_all = picked_on_half(np.vstack(matrices), groups)
    by_validation = [matrix[int(np.argmin(found["validation_losses"]))] for matrix, found in zip(matrices, runs, strict=True)]

    def sides(values: Iterable[Any]) -> list[Side]:
        return [{"values": list(one), "groups": groups} for one in values]

    reported, honest = sides(one[0] for one in picked), sides(one[1] for one in picked)
    of_epochs = _finding("D11", "accuracy, reported on what picked the epoch and on what did not", reported, honest)
    of_all = _finding("D11", "the same, best of all epochs and seeds", sides([best_of_all[0]]), sides([best_of_all[1]]))
    for found, compared in ((of_epochs, matrices), (of_all, [np.vstack(matrices)])):
        # What a row adds says nothing here: another test part would pick another epoch.
        half = NORMAL_95 * flattery_deviation(compared, groups)
        found["change"] |= {"low": found["change"]["value"] - half, "high": found["change"]["value"] + half}
    return [
        of_epochs,
        of_all,
        _finding("D11", "true accuracy, picked by test and by validation loss", honest, sides(by_validation)),
    ]


def _near_duplicates(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    words = {"found": "as they are", "planted": "with planted rows"}
    return [
        _finding("D12", f"accuracy on {rows}, {words[kind]}", *_sides(runs, kind, which))
        for kind in words
        for which, rows in (("leaked", "test rows that repeat a training row"), ("all", "all test rows"))
    ]


def _capped(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    caps = {name: runs[0][name]["per_class"] for name in ("cap", "share")}
    return [
        _finding("D13", f"accuracy, {caps['cap']:,} rows a class at most", *_sides(runs, "cap")),
        _finding("D13", f"accuracy, {caps['share']:,}: the share that the original dropped", *_sides(runs, "share")),
    ]


def _questions(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    def of(taxonomy: str, what: str) -> list[Side]:
        return [found[taxonomy][what] for found in runs]

    everything = [{"values": [1.0] * len(side["values"]), "groups": side["groups"]} for side in of("original", "right")]
    filed = of("original", "filed"), of("proposed", "filed")
    return [
        _finding("D14", "accuracy", of("original", "right"), of("proposed", "right")),
        _finding("D14", "share filed at a certified 90 %", *filed),
        _finding("D14", "share filed at a certified 90 %, times", *filed, kind=TIMES),
        _finding("D14", "precision of what is filed", of("original", "filed_right"), of("proposed", "filed_right")),
        _finding("D15", "precision of the answers", of("original", "right"), of("original", "filed_right")),
        _finding("D15", "share of articles answered", everything, of("original", "filed")),
        _finding("D16", "articles that match", *_sides(runs, "external")),
    ]


def _sides(runs: Sequence[Mapping[str, Any]], *path: str) -> tuple[list[Side], list[Side]]:
    """The sides of each seed, found under `path`."""
    found: list[Any] = list(runs)
    for name in path:
        found = [one[name] for one in found]
    return [one["original"] for one in found], [one["right"] for one in found]


def _finding(defect: str, measure: str, original: Sequence[Side], right: Sequence[Side], kind: str = SHARE) -> dict[str, Any]:
    """Both sides over all seeds with their intervals, and the change; None where a side has no rows."""
    compare = ratio if kind == TIMES else difference
    sides = {"original": _joined(original), "right": _joined(right)}
    levels = {name: clustered_mean(side) if side["values"] else None for name, side in sides.items()}
    known = all(levels.values()) and (kind != TIMES or all(level["value"] > 0 for level in levels.values() if level))
    pairs = [(one, other) for one, other in zip(original, right, strict=True) if one["values"] and other["values"]]
    if kind == TIMES:
        pairs = [(one, other) for one, other in pairs if any(one["values"]) and any(other["values"])]
    by_seed = [compare(one, other)["value"] for one, other in pairs]
    return {
        "defect": defect,
        "measure": measure,
        "kind": kind,
        **levels,
        "change": compare(sides["original"], sides["right"]) if known else None,
        "by_seed": [min(by_seed), max(by_seed)] if by_seed else None,
        "rows": len(sides["right"]["values"]),
    }


def _joined(sides: Sequence[Side]) -> Side:
    return {name: [value for side in sides for value in side[name]] for name in ("values", "groups")}


def _spread(found: Sequence[float]) -> dict[str, float]:
    return {"value": sum(found) / len(found), "low": min(found), "high": max(found)}


def _level(found: Mapping[str, Any], side: str) -> str | None:
    level = found[side]
    if level is None:
        return None
    if found["kind"] == SPEED:
        return f"{level['value']:.3g} ({level['low']:.3g} to {level['high']:.3g})"
    return f"{level['value']:.1%} [{level['low']:.1%}, {level['high']:.1%}]"


def _change(found: Mapping[str, Any], value: float) -> str:
    return f"{100 * value:+.1f}" if found["kind"] == SHARE else f"{value:.2f}"


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found["change"]["low"], found["change"]["high"]
    if found["kind"] == SPEED:
        return ""  # a timing has its spread over the seeds only
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]" if found["kind"] == SHARE else f"[{low:.2f}, {high:.2f}]"


def _of(rows: Mapping[str, int]) -> str:
    return f"{rows['original']:,} of {rows['right']:,}"


def _prepare(data: Path | None, home: Path) -> dict[str, Any]:
    """Write the rows that every run reads."""
    from newsjuice_pipelines.classification.corpus.huffpost import load_huffpost

    rows = load_huffpost(headlines_file(data)).rows
    articles, name = external_rows(data)
    rows.to_parquet(home / ROWS, index=False)
    articles.to_parquet(home / EXTERNAL, index=False)
    return {"labelled_rows": len(rows), "external_rows": len(articles), "external": name}


def _run_all(home: Path, seeds: Sequence[int], settings: LedgerSettings, workers: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Every run by name and seed; finished ones are read from `home`. The timing runs alone, after the others."""
    jobs = [(name, seed) for name in RUNS for seed in seeds]
    files = {job: home / f"{job[0]}-{job[1]}.json" for job in jobs}
    missing = [job for job in jobs if not files[job].is_file()]
    progress = Progress("classifier defects", len(jobs), "runs", done=len(jobs) - len(missing), interval_s=0)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_variant, *job, home, settings): job for job in missing if job[0] != ALONE}
        try:
            for future in as_completed(futures):
                write_result(files[futures[future]], future.result())
                progress.advance(note=f"{futures[future][0]}, seed {futures[future][1]}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for job in missing:
        if job[0] == ALONE:
            write_result(files[job], in_own_process(run_variant, *job, home, settings, None))
            progress.advance(note=f"{job[0]}, seed {job[1]}")
    return {job: json.loads(file.read_text(encoding="utf-8")) for job, file in files.items()}


def _code() -> str:
    """A fingerprint of the classifier's code and of the libraries' versions: runs of other code are not taken over."""
    package = Path(newsjuice_pipelines.__file__).parent
    files = [
        *package.joinpath("classification").rglob("*.py"),
        *package.joinpath("classification").rglob("*.yaml"),
        *package.joinpath("benchmarks").glob("classifier*.py"),
    ]
    return fingerprint(
        [{str(file.relative_to(package)): file_fingerprint(file) for file in sorted(files)}, dict(package_versions())]
    )
