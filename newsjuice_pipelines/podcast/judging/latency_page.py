"""The page and the plots of the latency report. Every number comes from `latency.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.runtime.reports import NOT_MEASURED, PALETTE, cell, markdown_table, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = ("p50", "p95", "p99")


def write_page(results: Mapping[str, Any], out: Path) -> None:
    """Write `report.md` and its plots `latency.png`, `batches.png` and `by_length.png`."""
    _latency_plot(results, out / "latency.png")
    _batches_plot(results, out / "batches.png")
    _length_plot(results, out / "by_length.png")
    (out / "report.md").write_text(_page(results), encoding="utf-8")


def _page(results: Mapping[str, Any]) -> str:
    single, engine, teacher = results["single_stream"], results["engine"], results["teacher"]
    alone = [("whole script", single, "latency"), ("first token", single, "ttft"), ("each further token", single, "inter_token")]
    asked = f"teacher ({', '.join(teacher['models']) or 'none'})"
    lookup = results["prompt_lookup_tokens"]
    guessing = f" {lookup} tokens are guessed ahead from the article and checked." if lookup else ""
    return f"""# Latency

{results["answer"]}

Timed with the engine {cell(engine["engine"])} ({cell(engine["dtype"])}) on {cell(engine["device"])}, at most
{results["max_new_tokens"]:,} new tokens a script, after a warm-up that does not count. A 95th percentile is given from 20
timings on, a 99th from 100 on; below that it is little more than the slowest timing.

## One script at a time

{single["measured"]:,} scripts, {single["errors"]:,} more ended in an error.{guessing}

{_times_table(alone)}

{markdown_table(("measure", "value"), _single_rows(single))}

![Where the time goes](latency.png)

### By length of the prompt

{_length_table(results)}

![By length](by_length.png)

## In batches

Requests that run at once share the machine, so each takes longer and all together are done sooner. Scripts an hour are
answers by the time from the first request to the last answer, the start of the batch included. Memory on a CPU is the peak of
this process so far.

Asked again are prompts that were asked before in this measurement: one at a time, in a smaller batch, or in the same batch
where the test split has fewer prompts than it needs. A server that caches prompts, and ran all the while, need not read these
again: its first tokens come sooner and it writes more scripts an hour than it would for new articles. An engine in this
process is opened anew for each batch, and can find again only what is asked twice within one.

{_batch_table(results)}
{_missing_batches(results)}
![Batches](batches.png)

## Beside the teacher

{_times_table([("student, alone", single, "latency"), (asked, teacher, "latency")])}

{_teacher_text(results)}

## Cost

{_cost_text(results)}

## Scripts as they were generated

The engine ran several requests at once, so that these times include work on the neighbours.

{_generation_table(results)}
"""


def _times_table(rows: list[tuple[str, Mapping[str, Any], str]]) -> str:
    header = ("seconds", "timed", *PERCENTILES)
    return markdown_table(
        header, [(name, source["measured"], *(source[f"{kind}_{part}_s"] for part in PERCENTILES)) for name, source, kind in rows]
    )


def _single_rows(single: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("share of prefill (%)", _percent(single["prefill_share"])),
        ("share of decoding (%)", _percent(single["decode_share"])),
        ("prompt tokens read a second", single["prefill_tokens_per_s"]),
        ("tokens written a second, after the first", single["decode_tokens_per_s"]),
        ("tokens written a second, all in all", single["tokens_per_s"]),
        ("prompt tokens, mean", single["prompt_tokens_mean"]),
        ("new tokens, mean", single["new_tokens_mean"]),
        ("scripts cut off at the cap", single["finish_reasons"].get("length", 0)),
        ("peak memory (MiB)", single["memory_mib"]),
    ]


def _length_table(results: Mapping[str, Any]) -> str:
    if not results["by_length"]:
        return "Too few scripts were timed for groups."
    header = ("prompt tokens", "timed", "script p50 (s)", "first token p50 (s)", "further token p50 (s)", "new tokens")
    rows = [
        (
            _range(group),
            *(group[name] for name in ("measured", "latency_p50_s", "ttft_p50_s", "inter_token_p50_s", "new_tokens_mean")),
        )
        for group in results["by_length"]
    ]
    return markdown_table(header, rows)


def _batch_table(results: Mapping[str, Any]) -> str:
    names = ("measured", "repeated", "errors", "latency_p50_s", "latency_p95_s", "latency_p99_s", "ttft_p50_s", "ttft_p95_s")
    header = (
        "at once",
        "timed",
        "asked again",
        "errors",
        "p50 (s)",
        "p95 (s)",
        "p99 (s)",
        "first token p50 (s)",
        "first token p95 (s)",
    )
    rows = [
        (str(entry["batch"]), *(entry[name] for name in (*names, "tokens_per_s", "scripts_per_hour", "memory_mib")))
        for entry in results["batches"]
    ]
    return markdown_table((*header, "tokens a second", "scripts an hour", "memory (MiB)"), rows)


def _missing_batches(results: Mapping[str, Any]) -> str:
    notes = [f"- {entry['batch']} at once: {cell(entry['why'])}" for entry in results["batches"] if entry["why"]]
    fewer = [
        f"- {entry['batch']} at once: the engine ran {entry['concurrent_requests']}"
        for entry in results["batches"]
        if entry["concurrent_requests"] not in (None, entry["batch"])
    ]
    return "".join(f"\n{note}" for note in (*notes, *fewer)) + ("\n" if notes or fewer else "")


def _teacher_text(results: Mapping[str, Any]) -> str:
    teacher, ratio = results["teacher"], results["student_over_teacher"]
    parts = []
    if not teacher["hosted"] and teacher["models"]:
        parts.append("The extractive teacher copies lead sentences: it is free and no hosted model, so there is no call to time.")
    if ratio is not None:
        parts.append(f"A script of the student alone takes {cell(ratio)} times as long as one of the teacher (p50 over p50).")
    else:
        parts.append("The student's time is not compared with the teacher's: one of them was not timed.")
    if teacher["hosted"]:
        parts.append(
            f"Of the teacher's {teacher['calls']:,} calls, {teacher['usable']:,} gave a script that can be used; the times are "
            "those of these calls."
        )
    if teacher["free_calls_left_out"]:
        parts.append(f"{teacher['free_calls_left_out']:,} scripts of the free extractive teacher are left out.")
    if teacher["batch_calls"]:
        parts.append(f"{teacher['batch_calls']:,} answers of batch jobs have no time of their own and are left out.")
    return " ".join(parts)


def _cost_text(results: Mapping[str, Any]) -> str:
    cost, teacher = results["cost"], results["teacher"]
    rows = [("student", cost["student_usd_per_1000"]), ("teacher", cost["teacher_usd_per_1000"])]
    table = markdown_table(("system", "US dollars per 1,000 scripts"), rows)
    if cost["student_usd_per_1000"] is None:
        basis = f"The student's cost is {NOT_MEASURED}: {cell(cost['why'])}."
    else:
        seen = f", seen on {cost['price_seen_on']}" if cost["price_seen_on"] else ""
        basis = (
            f"The student's is {cell(cost['hourly_usd'])} US dollars an hour ({cell(cost['machine'] or 'this machine')}; "
            f"{cell(cost['price_source'])}{seen}) by {cell(cost['scripts_per_hour'])} scripts an hour, {cost['batch']} at once, "
            "on one machine that is never idle. It holds where that machine is the one timed."
        ) + (f" Note: {cell(cost['why'])}." if cost["why"] else "")
    if not teacher["hosted"] and teacher["models"]:
        free = "The extractive teacher costs nothing, since no hosted model is asked."
    elif cost["teacher_usd_per_1000"] is None:
        free = "What a script of the teacher costs is not known."
    else:
        free = (
            f"The teacher's is what {teacher['calls_with_cost']:,} of its {teacher['calls']:,} calls cost, by the "
            f"{teacher['usable_with_cost']:,} of them that gave one; the others have no cost on record."
            if teacher["calls_with_cost"] < teacher["calls"]
            else f"The teacher's is what its {teacher['calls']:,} calls cost, by the {teacher['usable']:,} of them that gave one."
        )
    return f"{table}\n\n{basis} {free}"


def _generation_table(results: Mapping[str, Any]) -> str:
    header = ("system", "scripts", "errors", "cut off", "p50 (s)", "p95 (s)", "p99 (s)", "new tokens", "engine")
    rows = []
    for name, entry in results["generation"].items():
        if entry is None:
            rows.append((name, *[None] * (len(header) - 1)))
            continue
        times = (entry[f"latency_{part}_s"] for part in PERCENTILES)
        cut = entry["finish_reasons"].get("length", 0)
        rows.append((name, entry["scripts"], entry["errors"], cut, *times, entry["new_tokens_mean"], entry["engine"]))
    return markdown_table(header, rows)


def _latency_plot(results: Mapping[str, Any], path: Path) -> None:
    figure, (left, right) = new_figure(width_in=9, columns=2)
    single, teacher = results["single_stream"], results["teacher"]
    if single["prefill_share"] is None:
        _nothing(left)
    else:
        shares = [100 * single["prefill_share"], 100 * single["decode_share"]]
        left.bar(["prefill", "decoding"], shares, color=[PALETTE[2], PALETTE[0]])
        left.set_ylabel("% of the time of a script")
        left.set_ylim(0, 100)
    left.set_title("where the time goes, one script at a time", fontsize=9)
    shown = [
        (name, source) for name, source in (("student", single), ("teacher", teacher)) if source["latency_p50_s"] is not None
    ]
    for number, part in enumerate(PERCENTILES):
        places = [place + 0.25 * (number - 1) for place in range(len(shown))]
        right.bar(places, [source[f"latency_{part}_s"] or 0 for _, source in shown], 0.25, color=PALETTE[number], label=part)
    right.set_xticks(range(len(shown)), [name for name, _ in shown])
    right.set_ylabel("seconds a script")
    right.set_title("student alone beside the teacher", fontsize=9)
    if shown:
        right.margins(y=0.2)  # room for the legend
        right.legend(frameon=False, loc="upper center", ncols=3)
    else:
        _nothing(right)
    save_figure(figure, path)


def _batches_plot(results: Mapping[str, Any], path: Path) -> None:
    figure, (left, right) = new_figure(width_in=9, columns=2)
    timed = [entry for entry in results["batches"] if entry["scripts_per_hour"] is not None]
    names = [str(entry["batch"]) for entry in timed]
    if timed:
        left.bar(names, [entry["scripts_per_hour"] for entry in timed], color=PALETTE[0])
        left.set_ylabel("scripts an hour")
        for number, part in enumerate(("p50", "p95")):
            values = [entry[f"latency_{part}_s"] for entry in timed]
            known = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
            right.plot([name for name, _ in known], [value for _, value in known], "o-", color=PALETTE[number], label=part)
        right.set_ylim(bottom=0)
        right.set_ylabel("seconds a script")
        right.legend(frameon=False)
    for axis, title in ((left, "throughput"), (right, "time of one script")):
        axis.set_xlabel("requests at once")
        axis.set_title(title, fontsize=9)
        if not timed:
            _nothing(axis)
    save_figure(figure, path)


def _length_plot(results: Mapping[str, Any], path: Path) -> None:
    figure, (axis,) = new_figure()
    groups = [group for group in results["by_length"] if group["ttft_p50_s"] is not None]
    if groups:
        names = [_range(group) for group in groups]
        first = [group["ttft_p50_s"] for group in groups]
        rest = [max(0.0, group["latency_p50_s"] - group["ttft_p50_s"]) for group in groups]
        axis.bar(names, first, 0.6, color=PALETTE[2], label="to the first token (p50)")
        axis.bar(names, rest, 0.6, bottom=first, color=PALETTE[0], label="to the whole script (p50)")
        axis.margins(y=0.2)  # room for the legend
        axis.legend(frameon=False, loc="upper center", ncols=2)
    else:
        _nothing(axis)
    axis.set_xlabel("prompt tokens")
    axis.set_ylabel("seconds")
    save_figure(figure, path)


def _nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, NOT_MEASURED, ha="center", va="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])


def _range(group: Mapping[str, Any]) -> str:
    least, most = group["prompt_tokens_least"], group["prompt_tokens_most"]
    return str(least) if least == most else f"{least} to {most}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
