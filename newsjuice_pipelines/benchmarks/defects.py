"""The defect ledger: what each defect of the first experiment costs, measured with the same code, one switch at a time.

The table and the plot are made here; one training run and its measurement are `defect_run.py`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import newsjuice_pipelines
from newsjuice_pipelines.benchmarks.defect_run import RunSettings, run_variant, write_result
from newsjuice_pipelines.benchmarks.machine import machine
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.podcast.training.defects import DEFECTS
from newsjuice_pipelines.podcast.training.split import group_rows
from newsjuice_pipelines.podcast.training.tiny_model import TinyConfig, build_tiny
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.provenance import file_fingerprint, fingerprint, package_versions
from newsjuice_pipelines.runtime.reports import PALETTE, markdown_table, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

logger = logging.getLogger("newsjuice.benchmarks")

ARTICLES_FILE = "bbc_articles.jsonl"
SEEDS = (1, 2, 3)
DEMO_ARTICLES_TAUGHT = 28
SIMILARITY = 0.5  # as in the split of the student's data
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
        data: folder with `bbc_articles.jsonl`; default: the packaged demo articles, of which there are only enough for fewer
            of both kinds and wide intervals.
        articles: how many are trained on, with their first `chunks` passages each.
        chunks: passages of an article.
        held_out: articles, one passage each, that no variant and no seed trains on.
        seeds: of data set, adapter and sampling.
        tiny: shape and pre-training of the base model; it is pre-trained on everything but the held-out articles.
        settings: how one variant is trained and measured.
        workers: processes with one thread each; default: one a core.
        work: keeps finished runs; default: a folder below the system's temporary one, named after all of the above and the
            code, and removed at the end.
    """
    settings, tiny = settings or RunSettings(), tiny or TinyConfig()
    texts = _articles(data)
    if data is None:
        articles, held_out = min(articles, DEMO_ARTICLES_TAUGHT), min(held_out, len(texts) - DEMO_ARTICLES_TAUGHT)
    if len(texts) < held_out + articles:
        raise ValueError(
            f"{len(texts)} different articles are not enough for {articles} to train on and {held_out} held out: give a folder "
            f"with {ARTICLES_FILE} by --data."
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError("newsjuice bench defects trains with QLoRA too: pip install 'newsjuice-pipelines[gpu]'.")
    plan = {"articles": articles, "chunks": chunks, "held_out": held_out, **vars(settings), **vars(tiny)}
    home = work or Path(tempfile.gettempdir()) / f"newsjuice-defects-{fingerprint([plan, texts, _code()])[:12]}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = list(texts)
    taught, unseen = names[held_out : held_out + articles], names[:held_out]
    base = _base(home, [texts[name] for name in names[held_out:]], tiny)
    _with_failures(_scripts(texts, taught, chunks, settings)).to_parquet(home / "scripts.parquet")
    _scripts(texts, unseen, 1, settings).to_parquet(home / "held_out.parquet")
    done = _run_all(home, base, [(name, seed) for name in VARIANTS for seed in seeds], settings, workers or os.cpu_count() or 1)
    if work is None:
        shutil.rmtree(home)
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
    """The ledger as a Markdown table, and what its brackets mean."""
    header = [
        "variant",
        "loss on the answer, nats a token",
        "change of the loss",
        "ends with the end token",
        "hits the cap",
        "format pass",
        "effect kept",
        "effect kept at a 1 % change of the weights",
        "leaked rows",
        "own validation loss less that on new articles",
    ]
    rows = []
    for name, found in results["variants"].items():
        change = found["change"].get("answer_loss")
        rows.append(
            [
                f"{name}: {DEFECTS[name].what}" if name in DEFECTS else name,
                _nats(found["answer_loss"]),
                "" if change is None else _nats(change, sign="+"),
                *(_percent(found[measure]) for measure in ("ended", "cap_hit", "format_pass")),
                _kept(found["effect_kept"]),
                _kept(found["effect_kept_gentle"]),
                f"{found['leaked_rows']['value']:.0f} of {found['held_rows']['value']:.0f}",
                f"{found['optimism']['value']:+.2f} ({found['optimism']['low']:+.2f} to {found['optimism']['high']:+.2f})",
            ]
        )
    note = (
        f"Each variant was trained with seeds {', '.join(map(str, results['seeds']))} on {results['train_rows']} rows of "
        f"{results['articles']} articles, and asked about {results['held_out']} articles that no variant was trained on "
        f"({results['data']}); scripts were sampled. A tenth of the teacher's replies were made to fail, which is an assumption. "
        "Square brackets: 95 % interval over seeds and articles. Round brackets: lowest and highest seed. Changes are against "
        f'"{RIGHT}", paired by seed and article; those of D5 against "{RIGHT_4BIT}". Scripts that neither end with the end token '
        "nor hit the cap stop at another control token. The base is so small that an adapter changes its weights by "
        f"{results['variants'][RIGHT]['weight_change']['value']:.0%}, which hides D5: so the adapters of QLoRA were also merged "
        "when scaled to a change of 1 %, as in the tuning of a large model. With D1, and so with all seven, the own validation "
        "loss scores prompts too."
    )
    return markdown_table(header, rows) + f"\n\n{note}"


def write_plot(results: Mapping[str, Any], path: Path) -> None:
    """What each defect changes, with 95 % intervals, and its effect kept and leaked rows, as a PNG."""
    panels = (
        ("answer_loss", "change of the loss on the answer"),
        ("ended", "change: ends with the end token"),
        ("format_pass", "change: format pass"),
        ("effect_kept_gentle", "effect kept at a 1 % weight change"),
        ("leaked_rows", "leaked rows"),
    )
    shown = [name for name, found in results["variants"].items() if found["against"]]
    figure, axes = new_figure(13.0, 3.8, columns=len(panels))
    for axis, (measure, title) in zip(axes, panels, strict=True):
        for place, name in enumerate(reversed(shown)):
            found = results["variants"][name]
            figures = found["change"].get(measure, found[measure])
            if figures is None:
                continue
            apart = measure in ROWWISE and (figures["low"] > 0 or figures["high"] < 0)
            color = PALETTE[4] if apart else PALETTE[5]
            axis.plot([figures["low"], figures["high"]], [place, place], color=color, linewidth=2)
            axis.plot([figures["value"]], [place], "o", color=color)
        axis.axvline(1.0 if measure == "effect_kept_gentle" else 0.0, color=PALETTE[5], linewidth=0.8)
        labels = [f"{name}: {DEFECTS[name].what}" if name in DEFECTS else name for name in reversed(shown)]
        axis.set_yticks(range(len(shown)), labels if axis is axes[0] else [""] * len(shown), fontsize=8)
        axis.set_ylim(-0.5, len(shown) - 0.5)
        axis.set_title(title, fontsize=8)
    save_figure(figure, path)


def seeds_and_articles(values: NDArray[Any], *, rate: bool = False) -> dict[str, float]:
    """Mean of `values` [seeds, articles] with a 95 % interval for other seeds and other articles.

    Seeds and articles are crossed random effects; the variance of the mean is (MS_seeds + MS_articles - MS_rest) / n, with
    Satterthwaite's degrees of freedom (Searle, Casella, McCulloch: Variance Components, 1992, chapter 4). Where every value
    is 0 or every value is 1, a rate gets the exact binomial interval over articles.
    """
    import numpy as np
    from scipy.stats import binomtest, t

    seeds, articles = values.shape
    mean = float(values.mean())
    if rate and mean in (0.0, 1.0):
        exact = binomtest(round(mean * articles), articles).proportion_ci()
        return {"value": mean, "low": float(exact.low), "high": float(exact.high)}
    by_seed, by_article = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_article[None, :] + mean
    squares = [
        (articles * by_seed.var(ddof=1) if seeds > 1 else 0.0, seeds - 1),
        (seeds * by_article.var(ddof=1), articles - 1),
        (float((rest**2).sum()) / max(1, (seeds - 1) * (articles - 1)), (seeds - 1) * (articles - 1)),
    ]
    total = max(squares[0][0] + squares[1][0] - squares[2][0], squares[2][0])
    if total == 0:
        return {"value": mean, "low": mean, "high": mean}
    freedom = total**2 / sum(square**2 / degrees for square, degrees in squares if degrees)
    half = float(t.ppf(0.975, freedom) * np.sqrt(total / (seeds * articles)))
    low, high = mean - half, mean + half
    return {"value": mean, "low": max(0.0, low) if rate else low, "high": min(1.0, high) if rate else high}


def _summary(name: str, done: Mapping[tuple[str, int], Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    import numpy as np

    against = {RIGHT: None, RIGHT_4BIT: None, "D5": RIGHT_4BIT}.get(name, RIGHT)
    runs = [done[name, seed] for seed in seeds]
    summary: dict[str, Any] = {"against": against, "change": {}}
    for measure in ROWWISE:
        values = np.array([run[measure] for run in runs])
        summary[measure] = seeds_and_articles(values, rate=measure != "answer_loss")
        if against is not None:
            summary["change"][measure] = seeds_and_articles(values - np.array([done[against, seed][measure] for seed in seeds]))
    summary["optimism"] = _spread([run["validation_loss"] - run["answer_loss_by_token"] for run in runs])
    for measure in ("effect_kept", "weight_change", "leaked_rows", "held_rows", "train_rows", "rows_cut", "validation_loss"):
        summary[measure] = _spread([float(run[measure]) for run in runs])
    gentle = [run["effect_kept_gentle"] for run in runs if run.get("effect_kept_gentle") is not None]
    summary["effect_kept_gentle"] = _spread(gentle) if gentle else None
    return summary


def _spread(found: Sequence[float]) -> dict[str, float]:
    return {"value": sum(found) / len(found), "low": min(found), "high": max(found)}


def _kept(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def _percent(found: Mapping[str, float]) -> str:
    return f"{found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"


def _nats(found: Mapping[str, float], sign: str = "") -> str:
    return f"{found['value']:{sign}.2f} [{found['low']:{sign}.2f}, {found['high']:{sign}.2f}]"


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
    """Articles by id, shuffled the same way each time; of near-duplicates one is kept, so that none is on two sides."""
    file = DEMO_ARTICLES if data is None else data / ARTICLES_FILE
    if not file.is_file():
        raise ValueError(f"there is no {ARTICLES_FILE} in {data}: give a folder that has it, or leave --data out.")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["article_id"])
    random.Random(0).shuffle(rows)
    groups = group_rows([{"article_id": row["article_id"], "chunk_text": row["content"]} for row in rows], SIMILARITY)
    return {rows[place]["article_id"]: rows[place]["content"] for place in sorted(group[0] for group in groups)}


def _code() -> str:
    """A fingerprint of this package's code and of the libraries' versions: runs of other code are not taken over."""
    package = Path(newsjuice_pipelines.__file__).parent
    files = [*package.joinpath("podcast").rglob("*.py"), *package.joinpath("benchmarks").glob("defect*.py")]
    return fingerprint([{str(file.relative_to(package)): file_fingerprint(file) for file in files}, dict(package_versions())])


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
