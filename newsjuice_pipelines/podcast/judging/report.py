"""The two reports on the student: how fast it is and how good its scripts are. Measures come from `evaluate.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.engines import Engine, Request
from newsjuice_pipelines.podcast.judging.evaluate import FAILURE_KINDS, lead_script, measure_script, summarise
from newsjuice_pipelines.runtime.reports import PALETTE, cell, markdown_table, new_figure, save_figure, write_json

if TYPE_CHECKING:
    import pandas as pd

WARM_UP_TOKENS = 2
EXAMPLES = 3
EXAMPLE_CHARACTERS = 1200
QUALITY_MEASURES = ("words", "distinct_2", "copied_5", "names_supported", "numbers_supported", "rouge_l")
TEACHER, STUDENT, BASE, LEAD = "teacher", "student", "base", "lead sentences"


class ReportError(ValueError):
    """There is nothing to report on."""


def measure_single_stream(dataset: Path, engine: Engine, prompts: int = 5, max_new_tokens: int = 400) -> list[dict[str, Any]]:
    """Time a few test prompts one at a time, after a short warm-up that is not counted.

    Args:
        dataset: folder of the student data set; its first test rows are the prompts.
        engine: one that runs a single request at a time and measures the time to the first token.
        prompts: how many rows to time.
        max_new_tokens: as for the scripts themselves.

    Returns:
        One entry a prompt: `prompt_tokens`, `new_tokens`, `ttft_s`, `latency_s`, `finish_reason`.
    """
    import pandas as pd

    capabilities = engine.capabilities()
    if capabilities.concurrent_requests != 1 or not capabilities.measures_ttft:
        raise ReportError(f"the engine {capabilities.engine} does not time single requests: use the reference engine.")
    table = pd.read_parquet(dataset / "test.parquet", columns=["chunk_id", "prompt"]).head(prompts)
    requests = [Request(str(chunk_id), list(prompt), max_new_tokens) for chunk_id, prompt in table.to_numpy()]
    list(engine.generate([Request("warm-up", request.prompt, WARM_UP_TOKENS) for request in requests[:1]]))
    return [
        {
            "prompt_tokens": result.prompt_tokens,
            "new_tokens": result.new_tokens,
            "ttft_s": result.ttft_s,
            "latency_s": result.latency_s,
            "finish_reason": result.finish_reason,
        }
        for result in engine.generate(requests)
    ]


def latency_report(
    student: pd.DataFrame,
    base: pd.DataFrame | None,
    teacher_latency_s: Sequence[float | None],
    single_stream: Sequence[Mapping[str, Any]],
    out: Path,
    teacher: str = "teacher",
) -> dict[str, Any]:
    """Write the latency report and return its numbers.

    Args:
        student: scripts of the tuned model, as `generate_scripts` gives them.
        base: scripts of the untuned model, or None.
        teacher_latency_s: seconds of each call of the teacher; None entries are calls without a measurement.
        single_stream: from `measure_single_stream`, for the tuned model.
        out: an existing empty directory.
        teacher: name of the teacher's model, for the page.
    """
    results: dict[str, Any] = {
        "teacher_model": teacher,
        "generation": {
            STUDENT: _generation(student),
            BASE: None if base is None else _generation(base),
            TEACHER: {
                **_percentiles(list(teacher_latency_s)),
                "new_tokens_mean": None,
                "finish_reasons": None,
                "engine": teacher,
            },
        },
        "single_stream": _single_stream(single_stream),
    }
    alone, taught = results["single_stream"]["latency_p50_s"], results["generation"][TEACHER]["latency_p50_s"]
    results["student_over_teacher"] = alone / taught if alone is not None and taught else None
    write_json(out / "results.json", results)
    _latency_plots(results, out)
    (out / "report.md").write_text(_latency_page(results), encoding="utf-8")
    return results


def quality_report(
    student: pd.DataFrame, base: pd.DataFrame | None, out: Path, splits: Sequence[str] = ("test",), seed: int = 42
) -> dict[str, Any]:
    """Write the quality report and return its numbers: teacher, tuned student, untuned base and lead sentences side by side.

    A script that ended in an error counts as an empty one. Base and student are compared on the same rows.

    Args:
        student: scripts of the tuned model, as `generate_scripts` gives them.
        base: scripts of the untuned model, or None.
        out: an existing empty directory.
        splits: rows of these splits are measured; the default is the one that training never saw.
        seed: of the bootstrap intervals.
    """
    rows = student[student["split"].isin(list(splits))].set_index("chunk_id")
    if rows.empty:
        raise ReportError(f"no student script belongs to {', '.join(splits)}: generate scripts for that split first.")
    articles, teacher = rows["chunk_text"], rows["gemini_podcast_text"]
    scripts: dict[str, pd.Series[str] | None] = {
        TEACHER: teacher,
        STUDENT: rows["student_podcast_text"],
        BASE: None,
        LEAD: articles.map(lead_script),
    }
    if base is not None:
        shared = base.set_index("chunk_id")["qwen_podcast_text"]
        missing = rows.index.difference(shared.index)
        if len(missing):
            raise ReportError(
                f"{len(missing)} rows have no base script, such as {missing[0]}: generate base_scripts for the same splits."
            )
        scripts[BASE] = shared.loc[rows.index]
    systems: dict[str, Any] = {}
    for name, column in scripts.items():
        if column is None:
            systems[name] = None
            continue
        measures = [measure_script(column[key], articles[key], None if name == TEACHER else teacher[key]) for key in rows.index]
        systems[name] = summarise(measures, list(rows["article_id"]), seed)
    results = {
        "splits": list(splits),
        "rows": len(rows),
        "errors": int((rows["finish_reason"] == "error").sum()),
        "systems": systems,
    }
    write_json(out / "results.json", results)
    _failure_plot(results, out / "failures.png")
    present = {name: column for name, column in scripts.items() if column is not None}
    examples = [{name: str(column[key]) for name, column in present.items()} for key in rows.index[:EXAMPLES]]
    (out / "report.md").write_text(_quality_page(results, examples), encoding="utf-8")
    return results


def _percentiles(seconds: Sequence[float | None]) -> dict[str, Any]:
    import numpy as np

    known = np.asarray([value for value in seconds if value is not None and value == value], dtype=float)
    p50, p95 = (float(value) for value in np.quantile(known, (0.5, 0.95))) if len(known) else (None, None)
    return {"scripts": len(seconds), "measured": len(known), "latency_p50_s": p50, "latency_p95_s": p95}


def _generation(scripts: pd.DataFrame) -> dict[str, Any]:
    answered = scripts[scripts["finish_reason"] != "error"]
    return {
        **_percentiles([float(value) for value in scripts["latency_s"]]),
        "new_tokens_mean": float(answered["new_tokens"].mean()) if len(answered) else None,
        "finish_reasons": {str(name): int(count) for name, count in scripts["finish_reason"].value_counts().items()},
        "engine": ", ".join(sorted(set(scripts["engine"]))),
    }


def _single_stream(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    timed = [entry for entry in entries if entry["ttft_s"] is not None and entry["latency_s"] is not None]
    prefill = sum(entry["ttft_s"] for entry in timed)
    total = sum(entry["latency_s"] for entry in timed)
    decoded = sum(entry["new_tokens"] - 1 for entry in timed)
    ttft = _percentiles([entry["ttft_s"] for entry in timed])
    return {
        **_percentiles([entry["latency_s"] for entry in entries]),
        "ttft_p50_s": ttft["latency_p50_s"],
        "ttft_p95_s": ttft["latency_p95_s"],
        "prefill_share": prefill / total if total else None,
        "decode_share": 1 - prefill / total if total else None,
        "decode_tokens_per_s": decoded / (total - prefill) if total > prefill else None,
        "prompt_tokens_mean": sum(entry["prompt_tokens"] for entry in timed) / len(timed) if timed else None,
        "new_tokens_mean": sum(entry["new_tokens"] for entry in timed) / len(timed) if timed else None,
    }


def _latency_plots(results: Mapping[str, Any], out: Path) -> None:
    figure, (left, right) = new_figure(width_in=9, columns=2)
    measured = {name: entry for name, entry in results["generation"].items() if entry and entry["latency_p50_s"] is not None}
    places = range(len(measured))
    left.bar(
        [place - 0.2 for place in places],
        [entry["latency_p50_s"] for entry in measured.values()],
        0.4,
        color=PALETTE[0],
        label="p50",
    )
    left.bar(
        [place + 0.2 for place in places],
        [entry["latency_p95_s"] for entry in measured.values()],
        0.4,
        color=PALETTE[1],
        label="p95",
    )
    left.set_xticks(list(places), list(measured))
    left.set_ylabel("seconds a script")
    left.set_title("as generated (student and base share a batch)", fontsize=9)
    if measured:
        left.legend(frameon=False)
    single = results["single_stream"]
    if single["prefill_share"] is not None:
        right.bar(
            ["prefill", "decode"], [100 * single["prefill_share"], 100 * single["decode_share"]], color=[PALETTE[2], PALETTE[3]]
        )
    right.set_ylabel("% of the time")
    right.set_title("one request at a time", fontsize=9)
    save_figure(figure, out / "latency.png")


def _against_teacher(ratio: float | None) -> str:
    """The student's median time for one script beside the teacher's."""
    if ratio is None:
        return "The student's time is not compared with the teacher's: the teacher's calls were not timed."
    return f"A script of the student alone takes {cell(ratio)} times as long as one of the teacher (p50 over p50)."


def _latency_page(results: Mapping[str, Any]) -> str:
    single = results["single_stream"]
    rows = [
        (name, entry["scripts"], entry["latency_p50_s"], entry["latency_p95_s"], entry["new_tokens_mean"], entry["engine"])
        for name, entry in results["generation"].items()
        if entry is not None
    ]
    parts = [
        ("prompts", single["scripts"]),
        ("prompt tokens, mean", single["prompt_tokens_mean"]),
        ("new tokens, mean", single["new_tokens_mean"]),
        ("time to first token p50 (s)", single["ttft_p50_s"]),
        ("time to first token p95 (s)", single["ttft_p95_s"]),
        ("whole script p50 (s)", single["latency_p50_s"]),
        ("whole script p95 (s)", single["latency_p95_s"]),
        ("share of prefill", single["prefill_share"]),
        ("share of decoding", single["decode_share"]),
        ("decoded tokens a second", single["decode_tokens_per_s"]),
    ]
    return f"""# Latency

## Scripts as they were generated

Seconds from a request's start to its last token. Student and base run several requests at once, so theirs include work
for the neighbours; the teacher's ({cell(results["teacher_model"])}) are of single calls.

{markdown_table(("system", "scripts", "p50 (s)", "p95 (s)", "new tokens", "engine"), rows)}

![Latency](latency.png)

## The student, one request at a time

{markdown_table(("measure", "value"), parts)}

{_against_teacher(results["student_over_teacher"])}
"""


def _failure_plot(results: Mapping[str, Any], path: Path) -> None:
    figure, (axis,) = new_figure(width_in=8)
    systems = {name: entry for name, entry in results["systems"].items() if entry is not None}
    width = 0.8 / len(systems)
    for number, (name, entry) in enumerate(systems.items()):
        places = [kind + (number - (len(systems) - 1) / 2) * width for kind in range(len(FAILURE_KINDS))]
        axis.bar(places, [100 * entry[kind]["value"] for kind in FAILURE_KINDS], width, color=PALETTE[number], label=name)
    axis.set_xticks(range(len(FAILURE_KINDS)), [kind.replace("_", " ") for kind in FAILURE_KINDS])
    axis.set_ylabel("% of the scripts")
    axis.set_ylim(0, 100)
    axis.legend(frameon=False)
    save_figure(figure, path)


def _quality_page(results: Mapping[str, Any], examples: Sequence[Mapping[str, str]]) -> str:
    systems = {name: entry for name, entry in results["systems"].items() if entry is not None}

    def table(measures: Sequence[str]) -> str:
        rows = [
            (measure.replace("_", " "), *(_with_interval(entry[measure]) for entry in systems.values())) for measure in measures
        ]
        return markdown_table(("measure", *systems), rows)

    shown = "\n\n".join(
        f"### Example {number}\n\n" + "\n\n".join(f"**{name}**\n\n> {_excerpt(text)}" for name, text in example.items())
        for number, example in enumerate(examples, start=1)
    )
    missing = "" if results["systems"][BASE] is not None else "\nScripts of the untuned base were not measured.\n"
    return f"""# Script quality

{results["rows"]:,} scripts of the split {", ".join(results["splits"])}; {results["errors"]:,} ended in an error and count as
empty ones.
Intervals in brackets are 95 % bootstrap intervals over articles; they are left out below five articles.
{missing}
## Format

A script passes when it has none of the failures below it. Shares of the scripts.

{table(("passes", *FAILURE_KINDS))}

![Failures](failures.png)

## Content

Means over the scripts: number of words; different word pairs; five-word sequences copied from the article; names and
numbers that the article holds; ROUGE-L against the teacher. Support is a matter of words, not of meaning.

{table(QUALITY_MEASURES)}

## Examples

{shown}
"""


def _with_interval(entry: Mapping[str, Any]) -> str | None:
    if entry["value"] is None:
        return None
    if entry["low"] is None:
        return f"{entry['value']:.3g}"
    return f"{entry['value']:.3g} ({entry['low']:.3g} to {entry['high']:.3g})"


def _excerpt(text: str) -> str:
    if not text.strip():
        return "(empty)"
    return cell(text[:EXAMPLE_CHARACTERS]) + (" …" if len(text) > EXAMPLE_CHARACTERS else "")
