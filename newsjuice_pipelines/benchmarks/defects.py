"""The defect ledger: what each defect of the first experiment costs, measured with the same code, one switch at a time.

The table and the plot are made here; one training run and its measurement are `defect_run.py`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.benchmarks.defect_run import RunSettings, run_variant, write_result
from newsjuice_pipelines.benchmarks.machine import machine
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.podcast.training.defects import DEFECTS
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.provenance import fingerprint
from newsjuice_pipelines.runtime.reports import PALETTE, markdown_table, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

logger = logging.getLogger("newsjuice.benchmarks")

ARTICLES_FILE = "bbc_articles.jsonl"
SEEDS = (1, 2, 3)
RESAMPLES = 2000
FAILED_SHARE = 0.1  # of the teacher's replies, half of them errors and half empty: assumed, since nobody counted them
ERROR_TEXT = "Error: 429 RESOURCE_EXHAUSTED. Quota exceeded for this model. Please retry later."

RIGHT = "right"
RIGHT_4BIT = "right, QLoRA"
ALL = "all seven"
# D5 is a matter of QLoRA, so it is compared with QLoRA merged right; the others with the right recipe.
VARIANTS: Mapping[str, Sequence[str]] = {
    RIGHT: (),
    **{name: (name,) for name in DEFECTS if name != "D5"},
    RIGHT_4BIT: (),
    "D5": ("D5",),
    ALL: tuple(DEFECTS),
}
ROWWISE = ("answer_loss", "ended", "cap_hit", "format_pass")  # measured on each held-out article


def run(
    data: Path | None = None,
    *,
    articles: int = 40,
    chunks: int = 2,
    held_out: int = 64,
    seeds: Sequence[int] = SEEDS,
    tiny: TinyConfig | None = None,
    settings: RunSettings | None = None,
    workers: int | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Train, merge and measure every variant with every seed. A run that is cut off goes on where it was.

    Args:
        data: folder with `bbc_articles.jsonl`; default: the packaged demo articles, which are too few for narrow intervals.
        articles: how many are trained on, with their first `chunks` passages each.
        chunks: passages of an article.
        held_out: articles, one passage each, that no variant and no seed trains on.
        seeds: of data set, adapter and sampling.
        tiny: shape and pre-training of the base model; it is pre-trained on everything but the held-out articles.
        settings: how one variant is trained and measured.
        workers: processes with one thread each; default: one a core.
        work: keeps finished runs; default: a folder below the system's temporary one, named after all of the above.
    """
    settings, tiny = settings or RunSettings(), tiny or TinyConfig()
    texts = _articles(data)
    if len(texts) < held_out + articles:
        raise ValueError(
            f"{len(texts)} different articles are not enough for {articles} to train on and {held_out} held out: give a folder "
            f"with {ARTICLES_FILE} by --data."
        )
    plan = {"articles": articles, "chunks": chunks, "held_out": held_out, **vars(settings), **vars(tiny)}
    home = work or Path(tempfile.gettempdir()) / f"newsjuice-defects-{fingerprint([plan, texts])[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    names = list(texts)
    taught, unseen = names[held_out : held_out + articles], names[:held_out]
    base = _base(home, [texts[name] for name in names[held_out:]], tiny)
    _with_failures(_scripts(texts, taught, chunks, settings)).to_parquet(home / "scripts.parquet")
    _scripts(texts, unseen, 1, settings).to_parquet(home / "held_out.parquet")
    done = _run_all(home, base, [(name, seed) for name in VARIANTS for seed in seeds], settings, workers or os.cpu_count() or 1)
    return {
        "machine": machine(),
        "data": "demo articles" if data is None else ARTICLES_FILE,
        "articles": articles,
        "train_rows": done[RIGHT, seeds[0]]["train_rows"],
        "held_out": len(done[RIGHT, seeds[0]]["answer_loss"]),
        "seeds": list(seeds),
        "failed_share": FAILED_SHARE,
        "settings": vars(settings),
        "variants": {name: _summary(name, done, seeds) for name in VARIANTS},
    }


def table(results: Mapping[str, Any]) -> str:
    """The ledger as a Markdown table: each figure with its 95 % interval."""
    header = ["variant", "loss on the answer", "ends by itself", "hits the cap", "format pass", "effect kept", "leaked rows"]
    rows = []
    for name, found in results["variants"].items():
        what = f"{name}: {DEFECTS[name].what}" if name in DEFECTS else name
        loss = found["answer_loss"]
        cells = [f"{loss['value']:.2f} [{loss['low']:.2f}, {loss['high']:.2f}]"]
        cells += [_percent(found[measure]) for measure in ("ended", "cap_hit", "format_pass")]
        cells.append(_percent(found["effect_kept"]))
        cells.append(f"{found['leaked_rows']['value']:.0f} of {found['held_rows']['value']:.0f}")
        rows.append([what, *cells])
    return markdown_table(header, rows)


def write_plot(results: Mapping[str, Any], path: Path) -> None:
    """The change of each measure against the same recipe without the defect, with its 95 % interval, as a PNG."""
    panels = (("answer_loss", "loss on the answer, nats a token"), ("ended", "ends by itself"), ("format_pass", "format pass"))
    figure, axes = new_figure(10.0, 3.6, columns=len(panels))
    shown = [name for name, found in results["variants"].items() if found["against"]]
    for axis, (measure, title) in zip(axes, panels, strict=True):
        for place, name in enumerate(reversed(shown)):
            change = results["variants"][name]["change"][measure]
            apart = change["low"] > 0 or change["high"] < 0
            color = PALETTE[4] if apart else PALETTE[5]
            axis.plot([change["low"], change["high"]], [place, place], color=color, linewidth=2)
            axis.plot([change["value"]], [place], "o", color=color)
        axis.axvline(0, color=PALETTE[5], linewidth=0.8)
        axis.set_yticks(range(len(shown)), list(reversed(shown)) if axis is axes[0] else [""] * len(shown))
        axis.set_title(f"change of: {title}", fontsize=9)
    save_figure(figure, path)


def two_way_interval(values: NDArray[Any]) -> dict[str, float]:
    """Mean of `values` [seeds, articles] and the 95 % interval when seeds and articles are both drawn with replacement.

    With three seeds the part that comes from the seeds is coarse. The pigeonhole bootstrap of A. B. Owen, 2007.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    seeds, articles = values.shape
    by_seed = generator.integers(seeds, size=(RESAMPLES, seeds, 1))
    by_article = generator.integers(articles, size=(RESAMPLES, 1, articles))
    low, high = np.quantile(values[by_seed, by_article].mean(axis=(1, 2)), (0.025, 0.975))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _summary(name: str, done: Mapping[tuple[str, int], Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    import numpy as np

    against = {RIGHT: None, RIGHT_4BIT: None, "D5": RIGHT_4BIT}.get(name, RIGHT)
    runs = [done[name, seed] for seed in seeds]
    summary: dict[str, Any] = {"against": against, "change": {}}
    for measure in ROWWISE:
        values = np.array([run[measure] for run in runs])
        summary[measure] = two_way_interval(values)
        if against is not None:
            summary["change"][measure] = two_way_interval(values - np.array([done[against, seed][measure] for seed in seeds]))
    for measure in ("effect_kept", "leaked_rows", "held_rows", "train_rows", "rows_cut", "validation_loss"):
        found = [float(run[measure]) for run in runs]
        summary[measure] = {"value": sum(found) / len(found), "low": min(found), "high": max(found)}
    return summary


def _percent(found: Mapping[str, float]) -> str:
    return f"{found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"


def _run_all(
    home: Path, base: Path, jobs: Sequence[tuple[str, int]], settings: RunSettings, workers: int
) -> dict[tuple[str, int], dict[str, Any]]:
    """Every run by variant and seed; finished ones are read from `home`."""
    files = {job: home / f"{fingerprint(job)[:12]}.json" for job in jobs}
    missing = [job for job in jobs if not files[job].is_file()]
    progress = Progress("defect ledger", len(jobs), "runs", done=len(jobs) - len(missing), interval_s=0)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {
            pool.submit(run_variant, base, home, VARIANTS[name], name == RIGHT_4BIT, seed, settings): (name, seed)
            for name, seed in missing
        }
        try:
            for future in as_completed(futures):
                write_result(files[futures[future]], future.result())
                progress.advance(note=f"{futures[future][0]}, seed {futures[future][1]}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {job: json.loads(file.read_text(encoding="utf-8")) for job, file in files.items()}


def _articles(data: Path | None) -> dict[str, str]:
    """Different articles by id, shuffled the same way each time."""
    file = DEMO_ARTICLES if data is None else data / ARTICLES_FILE
    if not file.is_file():
        raise ValueError(f"there is no {ARTICLES_FILE} in {data}: give a folder that has it, or leave --data out.")
    by_text = {row["content"]: row["article_id"] for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    texts = {name: text for text, name in by_text.items()}
    names = sorted(texts)
    random.Random(0).shuffle(names)
    return {name: texts[name] for name in names}


def _base(home: Path, texts: Sequence[str], tiny: TinyConfig) -> Path:
    """The pre-trained base model, made once."""
    folder = home / "base"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=home) as partial:
            made = Path(partial) / "base"
            made.mkdir()
            build_tiny(texts, tiny, made)
            made.rename(folder)
    return folder


def _scripts(texts: Mapping[str, str], names: Sequence[str], chunks: int, settings: RunSettings) -> pd.DataFrame:
    """The free teacher's scripts for the first passages of articles; passages that give none are left out."""
    import asyncio

    import pandas as pd

    from newsjuice_pipelines.database.load import chunk_text
    from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher

    teacher = ExtractiveTeacher(settings.body_words)
    rows = []
    for name in names:
        for index, passage in enumerate(chunk_text(texts[name], settings.chunk_words)[:chunks]):
            reply = asyncio.run(teacher.ask(passage, 1.0))
            if reply.status == "ok":
                rows.append((f"{name}:{index}", name, passage, reply.text, "ok"))
    return pd.DataFrame(rows, columns=["chunk_id", "article_id", "chunk_text", "gemini_podcast_text", "status"])


def _with_failures(scripts: pd.DataFrame) -> pd.DataFrame:
    """The scripts with a share of them replaced by what a failing service gives: an error text, or nothing."""
    failed = random.Random(0).sample(range(len(scripts)), round(FAILED_SHARE * len(scripts)))
    for number, place in enumerate(failed):
        scripts.loc[place, ["gemini_podcast_text", "status"]] = (ERROR_TEXT, "error") if number % 2 else ("", "empty")
    return scripts
