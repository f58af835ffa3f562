"""The page and the plots of the quality report, made from its numbers. Nothing is measured here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.judging.script_form import FAILURE_KINDS, HEADLINE_WORDS, MAX_WORDS, MIN_WORDS, is_empty
from newsjuice_pipelines.runtime.reports import PALETTE, cell, markdown_table, new_figure, save_figure

EXCERPT_CHARACTERS = 2600  # of a longer text its beginning and its end, where a script fails most
CONTENT = {
    "words": "words, mean",
    "words_median": "words, median",
    "words_p95": "words, 95th percentile",
    "distinct_2": "different word pairs",
    "repeated_4": "repeated runs of four words",
    "copied_5": "runs of five words copied from the article",
    "longest_copied_words": "longest copied run, words",
    "has_names": "scripts with a name",
    "has_numbers": "scripts with a number",
    "names_supported": "names supported",
    "numbers_supported": "numbers supported",
    "quotations_supported": "quotations supported",
    "entailed": "sentences entailed by the article",
    "rouge_l": "ROUGE-L to the teacher",
    "similarity": "embedding similarity to the teacher",
}
_BLOCK_SIGN = re.compile(r"^(\d*)([#+~=.)-])")
SUPPORT = ("names_supported", "numbers_supported", "quotations_supported", "entailed")
_KIND_COLOURS = (
    "#3f8f5f",  # passes
    "#4b5563",
    "#9ca3af",
    "#b5443c",
    "#d9822b",
    "#8a5fa8",
    "#2f6f9f",
    "#7fb2d6",
    "#e3b778",
    "#c9b3d9",
)


def failure_plot(results: Mapping[str, Any], path: Path) -> None:
    """One bar a system: the scripts that pass, and the others by the failure that dominates them. They add up to all."""
    shares = {name: entry for name, entry in results["failures_first"].items() if entry is not None}
    figure, (axis,) = new_figure(width_in=9, height_in=1.6 + 0.5 * len(shares))
    left = [0.0] * len(shares)
    for kind, colour in zip(("passes", *FAILURE_KINDS), _KIND_COLOURS, strict=True):
        widths = [100 * entry[kind] for entry in shares.values()]
        axis.barh(list(shares), widths, left=left, color=colour, label=kind.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of the scripts, each by its first failure")
    axis.grid(visible=False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def support_plot(results: Mapping[str, Any], path: Path) -> None:
    """Support by the article, a group of bars a measure, with the intervals."""
    systems = {name: entry for name, entry in results["systems"].items() if entry is not None and name != "original student"}
    shown = [measure for measure in SUPPORT if any(entry[measure]["value"] is not None for entry in systems.values())]
    figure, (axis,) = new_figure(width_in=8)
    width = 0.8 / max(len(systems), 1)
    for number, (name, entry) in enumerate(systems.items()):
        known = [(place, entry[measure]) for place, measure in enumerate(shown) if entry[measure]["value"] is not None]
        places = [place + (number - (len(systems) - 1) / 2) * width for place, _ in known]
        values = [100 * estimate["value"] for _, estimate in known]
        axis.bar(places, values, width, color=PALETTE[number], label=name)
        for place, (_, estimate) in zip(places, known, strict=True):
            if estimate["low"] is not None:
                axis.plot([place, place], [100 * estimate["low"], 100 * estimate["high"]], color="#111827", linewidth=1)
    axis.set_xticks(range(len(shown)), [CONTENT[measure] for measure in shown], fontsize=8)
    axis.set_ylabel("% per script, mean")
    axis.set_ylim(0, 105)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def quality_page(results: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """The report as Markdown; all text of articles and scripts in it is escaped."""
    systems = results["systems"]

    def table(measures: Mapping[str, str]) -> str:
        rows = [
            (label, *(None if entry is None else _with_scripts(entry[measure], entry["scripts"]) for entry in systems.values()))
            for measure, label in measures.items()
        ]
        return markdown_table(("measure", *systems), [("scripts", *_counts(systems)), *rows])

    kinds = {kind: kind.replace("_", " ") for kind in FAILURE_KINDS}
    return f"""# Script quality

{results["rows"]:,} scripts of the split {", ".join(results["splits"])}, about {results["articles"]:,} different articles;
{_errors(results)}
Intervals in brackets are 95 % bootstrap intervals that draw whole articles; below five articles there are none. Where all
scripts agree the interval has no width: with n articles and no failure, up to 3/n may still fail. A value of fewer scripts
than the system has says of how many.{_gaps(results)}

## Format

A script passes when it has none of these failures. One script can have several. Shares of the scripts; opening and closing
are shares of the scripts that they can be judged on.

{table({"passes": "passes", **kinds})}

Empty: no letter and no digit. Looping: eight words in a row twice, or four words four times. Markers: labels, headings,
instructions or control tokens of a prompt, a remark about the script, speaker's labels, stage directions, lists and links.
Too short and too long: under {MIN_WORDS} and over {MAX_WORDS} words. An opening greets the listeners or speaks to them in the
first two sentences, or is a first sentence of at most {HEADLINE_WORDS} words. A closing thanks, says goodbye, speaks to the
listeners or concludes in the last two. A script that is cut off is not blamed for its closing as well, and an empty one for
neither its length nor its ends. These rules are for English: a script in another language fails as not English, and opening,
closing, names and numbers are not measured on it.

By the failure that dominates a script, causes before consequences, the shares add up to 1:

{_first_table(results)}

![Failures](failures.png)

## Content

Means over the scripts, as shares where nothing else is said. Support is a matter of words, not of meaning: the name, the
number's value, the quotation (three words or more) stands in the article. A script without any is left out of the mean.
Similarity and ROUGE-L are 0 for an empty script.

{table(CONTENT)}

![Support](support.png)

### Student minus teacher

The same rows, where both are known. Where the teacher's script has names (or numbers) and the student's has none, the
student's counts as supported in none of them: saying nothing is no way out.

{_difference_table(results)}

## Judged in pairs

{_judged(results["judged"])}

## Examples

By turns the worst, the median and the best student script by each measure. A row is shown once: where it was shown before,
the next one by that measure follows. Of a long text the beginning and the end are shown.

{_examples(examples)}
"""


def _counts(systems: Mapping[str, Any]) -> list[int | None]:
    return [None if entry is None else entry["scripts"] for entry in systems.values()]


def _errors(results: Mapping[str, Any]) -> str:
    base = results["base_errors"]
    also = "" if base is None else f" and {base:,} of the base"
    return f"{results['errors']:,} of the student{also} ended in an error and count as empty."


def _gaps(results: Mapping[str, Any]) -> str:
    """What was not measured, and why."""
    systems = results["systems"]
    reasons = [f"{CONTENT[name]}: {cell(why)}" for name, why in results["not_measured"].items()]
    if systems["base"] is None:
        reasons.append("the untuned base: it has no scripts")
    if systems["original student"] is None:
        reasons.append("the original student: no file with its outputs is configured")
    listed = f"\n\nNot measured: {'; '.join(reasons)}." if reasons else ""
    if systems["original student"] is not None:
        listed += (
            "\n\nOf the original student only the outputs are known, so that its form alone is measured, and its intervals take"
            "\neach output for an article of its own."
        )
    return listed


def _first_table(results: Mapping[str, Any]) -> str:
    shares = results["failures_first"]
    rows = [
        (kind.replace("_", " "), *(None if entry is None else entry[kind] for entry in shares.values()))
        for kind in ("passes", *FAILURE_KINDS)
    ]
    return markdown_table(("first failure", *shares), rows)


def _difference_table(results: Mapping[str, Any]) -> str:
    estimates = {name: entry["student_minus_teacher"] for name, entry in results["differences"].items()}
    rows = [(name.replace("_", " "), _with_interval(entry), entry["scripts"]) for name, entry in estimates.items()]
    return markdown_table(("measure", "difference", "scripts"), rows)


def _judged(judged: Mapping[str, Any] | None) -> str:
    if judged is None:
        return "Not measured: no judge was asked for."
    counts = [(name, judged[name]) for name in ("pairs", "wins", "ties", "losses", "disagreements", "unreadable", "asked")]
    rows = [*counts, ("wins or ties", _with_interval(judged["win_or_tie"]))]
    why = "" if judged["why"] is None else f"\n\nThe rate of wins or ties is not measured: {cell(judged['why'])}."
    return f"""The teacher's model compared the student's script with the teacher's, in both orders. Answers that disagree are a
tie; a pair with an answer that cannot be read is left out of the rate. Equal and empty scripts are not asked about: a tie, and
a loss for the empty one. A model may favour its own scripts.{why}

{markdown_table(("student", "value"), rows)}"""


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(_example(number, example) for number, example in enumerate(examples, start=1)) or "None."


def _example(number: int, example: Mapping[str, Any]) -> str:
    measure = example["measure"]
    chosen = (
        example["rank"] if measure is None else f"{example['rank']} by {measure.replace('_', ' ')} ({cell(example['value'])})"
    )
    parts = [f"### Example {number}: {chosen}", f"Chunk {cell(example['chunk_id'])}.", _quoted("article", example["article"])]
    for name, (script, failures) in example["scripts"].items():
        parts.append(_quoted(name, script, ", ".join(failures).replace("_", " ") or "passes"))
    return "\n\n".join(parts)


def _quoted(name: str, text: str, note: str = "") -> str:
    return f"**{name}**{f' ({note})' if note else ''}\n\n> {_excerpt(text)}"


def _with_interval(entry: Mapping[str, Any]) -> str | None:
    if entry["value"] is None:
        return None
    if entry["low"] is None:
        return f"{entry['value']:.3g}"
    return f"{entry['value']:.3g} ({entry['low']:.3g} to {entry['high']:.3g})"


def _with_scripts(entry: Mapping[str, Any], total: int) -> str | None:
    shown = _with_interval(entry)
    return shown if shown is None or entry["scripts"] == total else f"{shown}, of {entry['scripts']:,}"


def _excerpt(text: str) -> str:
    if is_empty(text):
        return "(empty)"
    if len(text) <= EXCERPT_CHARACTERS:
        return _paragraph(text)
    half = EXCERPT_CHARACTERS // 2
    return f"{_paragraph(text[:half])} […] {cell(text[-half:])}"


def _paragraph(text: str) -> str:
    """Escaped text that begins neither a heading nor a list nor a fence nor a quote."""
    return _BLOCK_SIGN.sub(r"\1\\\2", cell(text))
