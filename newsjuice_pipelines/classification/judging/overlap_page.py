"""The Markdown page and the plots of a split's audit, made from its results. Nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.judging.report import heatmap, interval, percent
from newsjuice_pipelines.runtime.reports import NOT_MEASURED, PALETTE, cell, markdown_table, new_figure, save_figure

SHOWN_CHARACTERS = 160
SHOWN_CLASSES = 12
AUDIBLE_ROWS = 50
FEW_TEXTS = f"Fewer than {AUDIBLE_ROWS} texts a class: read this as a trial of the audit, not as a finding."
CLUSTERS = "What the split found when it clustered near-duplicates; no skill exceeds the best possible accuracy:"
DISAGREEING = "Clusters whose labels disagree:"
CHOSEN = "chosen on one sample of real headlines: judge what is near by its measures."
JOINS = {
    "renamed": "the sections that overlap and whose years follow one another",
    "overlapping": "all sections that overlap, whatever their years",
}
USE = (
    "To use one, set `name` of the asset `taxonomy` to the path of {} and materialise `taxonomy`, `balanced_split` and what "
    "follows. Edit it as you see fit."
)
LABEL_STYLE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "rotation": 45, "ha": "left", "va": "bottom"}
PROPOSALS = ("proposed", "proposed-overlapping")
PAIR_KINDS = (
    ("renamed", "### Renamed: they overlap, their years do not", "The same topic under a new name: these belong in one class."),
    (
        "years not known",
        "### They overlap, years not known",
        "Too few rows have a date to tell a renaming from two sections on one topic: look before merging.",
    ),
    (
        "at the same time",
        "### They overlap at the same time",
        "Editors kept them apart while both existed. Merge them if readers do not need the difference.",
    ),
)


def overlap_page(results: Mapping[str, Any]) -> str:
    """The page of a split's audit; whatever comes from articles or the split is escaped."""
    blocks = [
        ["# Leaks, doubtful labels and overlapping classes"],
        _leaks(results),
        _format(results["format"]),
        _labels("## Doubtful labels", results["labels"]),
        *([_labels("## Doubtful labels: the sections as they were", results["sections"])] if results["sections"] else []),
        _proposal(results["proposal"]),
        _curve(results),
        _similarity(results),
    ]
    return "\n\n".join("\n\n".join(block) for block in blocks) + "\n"


def _leaks(results: Mapping[str, Any]) -> list[str]:
    """What stands on both sides of the split."""
    scope = "every row" if results["checked_every_row"] else "a seeded sample"
    counts = [
        ("texts in more than one part (must be 0)", results["shared_texts"]),
        ("duplicate groups in more than one part (must be 0)", results["shared_groups"]),
        (f"near-duplicate pairs (cosine of at least {results['near_duplicate_cosine']})", results["near_duplicate_pairs"]),
        ("held-out texts in such a pair", results["near_duplicate_rows"]),
    ]
    examples = [
        (
            f"{pair['texts'][0][:100]} / {pair['texts'][1][:100]}",
            *(" / ".join(pair[name]) for name in ("parts", "labels")),
            pair["cosine"],
        )
        for pair in results["near_duplicate_examples"]
    ]
    clusters = results["clusters"] or {}
    measures = [(name.replace("_", " "), value) for name, value in clusters.items() if isinstance(value, str | int | float)]
    disagreeing = [
        (
            ", ".join(f"{name} {rows}" for name, rows in example["labels"].items()),
            " / ".join(row["text"][:100] for row in example["rows"]),
        )
        for example in clusters.get("disagreeing_examples", [])
    ]
    return [
        "## Leaks between the parts",
        f"Near-duplicates were looked for in {scope}: {results['checked_held_out_rows']:,} held-out texts against "
        f"{results['checked_against_rows']:,} texts, by character 3- to 5-grams.",
        markdown_table(("leak", "count"), counts),
        *([markdown_table(("texts", "parts", "classes", "cosine"), examples)] if examples else []),
        *([CLUSTERS, markdown_table(("measure", "value"), measures)] if measures else []),
        *([DISAGREEING, markdown_table(("labels", "texts"), disagreeing)] if disagreeing else []),
    ]


def _format(leak: Mapping[str, Any] | None) -> list[str]:
    """What the format alone gives away."""
    title = "## What the format gives away"
    if leak is None:
        return [title, "Too few texts a class to measure."]
    lowest, highest = leak["lower_case"]
    return [
        title,
        "A decision tree that sees lengths, capitals and punctuation, and no word, names the class of "
        f"{percent(leak['accuracy'])} of {leak['rows']:,} texts; always naming the largest class gives "
        f"{percent(leak['chance'])}. What a classifier gains in this way it loses on articles from elsewhere. "
        f"Wholly in lower case are {percent(lowest['share'])} of the texts of "
        f"{cell(lowest['label'])} and {percent(highest['share'])} of those of {cell(highest['label'])}.",
        markdown_table(("what it looks at", "weight"), [(row["feature"], row["weight"]) for row in leak["features"]]),
    ]


def _labels(title: str, audit: Mapping[str, Any] | None) -> list[str]:
    """The doubtful rows and the overlapping pairs of one audit."""
    if audit is None:
        return [title, "Too few texts a class to audit."]
    listed = [
        (row["text"][:SHOWN_CHARACTERS], row["given"], row["likely"], row["given_probability"], row["likely_probability"])
        for row in audit["listed"]
    ]
    classes = [(row["label"], row["rows"], row["doubtful"], percent(row["share"])) for row in audit["per_class"][:SHOWN_CLASSES]]
    pairs = [(" / ".join(pair["classes"]), pair["rows"], percent(pair["share"])) for pair in audit["overlapping"]]
    left_out = ", ".join(f"{cell(name)} ({rows})" for name, rows in audit["left_out"].items())
    return [
        title,
        f"Every text was judged by a linear model that had not seen it (right on {percent(audit['accuracy'])} of "
        f"{audit['rows']:,} texts in {audit['class_count']} classes). cleanlab doubts {audit['doubtful']:,} labels "
        f"({percent(audit['doubtful_share'])}). A doubt is a place to look: the weaker the model, the more doubts are its own.",
        *([FEW_TEXTS] if audit["rows"] < AUDIBLE_ROWS * audit["class_count"] else []),
        *([f"Not audited, too few texts: {left_out}."] if left_out else []),
        markdown_table(("class, most doubtful first", "texts", "doubtful", "share"), classes),
        *(
            ["The texts to look at first:", markdown_table(("text", "label", "likely", "p(label)", "p(likely)"), listed)]
            if listed
            else []
        ),
        *(
            ["Labelled as one another, by the confident joint:", markdown_table(("classes", "texts", "share"), pairs)]
            if pairs
            else []
        ),
    ]


def _proposal(proposal: Mapping[str, Any] | None) -> list[str]:
    """The proposed taxonomy and what it rests on."""
    title = "## Proposed taxonomy"
    if proposal is None:
        return [title, "Too few texts a section to propose one."]
    more = proposal["overlapping"]
    usable = [f"`{name}.yaml`" for name, entry in zip(PROPOSALS, (proposal, more), strict=True) if entry and entry["merged"]]
    return [
        title,
        *_proposed("proposed", proposal["merge"], proposal),
        *(_proposed("proposed-overlapping", "overlapping", more) if more else []),
        *([USE.format(" or of ".join(usable))] if usable else []),
        "Sections are judged best when each was drawn equally often, as in a split by the taxonomy `raw-42`.",
        "An overlap of 1 means that labels between the two sections might as well be drawn by lot, 0 that they are never "
        f"confused; listed from {proposal['thresholds']['overlap']} on, a limit {CHOSEN}",
        *(part for kind, heading, meaning in PAIR_KINDS for part in _pairs(proposal["pairs"], kind, heading, meaning)),
        *_formats(proposal),
    ]


def _proposed(name: str, merge: str, proposal: Mapping[str, Any]) -> list[str]:
    """What one proposed file holds."""
    parents = f"with {proposal['parent_count']} parents" if proposal["parent_count"] else "without parents"
    file = f"`{name}.yaml`, beside this page, has {proposal['class_count']} classes {parents}"
    if not proposal["merged"]:
        return [f"{file}. It joins no sections and mends nothing: it looked for {JOINS[merge]}, and found none."]
    merged = [(entry["class"], ", ".join(entry["sections"])) for entry in proposal["merged"]]
    look = " Look at the pairs below before you use it." if merge == "overlapping" else ""
    return [f"{file}. It joins {JOINS[merge]}.{look}", markdown_table(("class", "joined sections"), merged)]


def _pairs(pairs: Sequence[Mapping[str, Any]], kind: str, heading: str, meaning: str) -> list[str]:
    """The overlapping pairs of one kind."""
    rows = [
        (
            " / ".join(pair["sections"]),
            pair["overlap"],
            " / ".join(years or "?" for years in pair["years"]),
            percent(pair["shared_time"]),
        )
        for pair in pairs
        if pair["kind"] == kind
    ]
    header = ("sections", "overlap", "years of the dated texts", "texts in common quarters")
    return [heading, meaning, markdown_table(header, rows)] if rows else []


def _formats(proposal: Mapping[str, Any]) -> list[str]:
    """The labels that name a form and not a topic."""
    rows = [
        (
            " / ".join(entry["sections"]),
            entry["rows"],
            entry["f1"],
            entry["f1_to_median"],
            percent(entry["spread"]),
            entry["format"],
            "–" if entry["format"] else percent(entry["missed_by"]),
        )
        for entry in proposal["formats"][:SHOWN_CLASSES]
    ]
    named = ", ".join(cell(name) for name in proposal["format_labels"]) or "none"
    limits = proposal["thresholds"]
    return [
        "### Formats rather than topics",
        f"Flagged: {named}. Their texts are found badly (F1 at most {limits['format_f1']} times the median) and are confused "
        f"with at least {percent(limits['format_spread'])} of all other sections (by entropy): a form takes any topic. "
        f"Sections with fewer than {AUDIBLE_ROWS} texts, or half the median, are not flagged. The limits were {CHOSEN}",
        markdown_table(
            ("section, nearest to the limits first", "texts", "F1", "F1, times median", "spread", "flagged", "missed by"), rows
        ),
    ]


def _curve(results: Mapping[str, Any]) -> list[str]:
    """Accuracy and certified coverage against the number of classes."""
    title, curve = "## What fewer classes buy", results["curve"]
    if not curve["points"]:
        return [title, "Too few texts a section to measure."]
    points = [
        (
            str(point["classes"]),
            percent(point["accuracy"]),
            percent(point["filed_share"]),
            percent(point["filed_precision"]),
            ", ".join(point["joined"]),
        )
        for point in curve["points"]
    ]
    taxonomies = [
        (
            entry["taxonomy"] + (" (chosen on such texts)" if entry["chosen_on_such_texts"] else ""),
            entry["classes"],
            percent(entry["accuracy"]),
            percent(entry["filed_share"]),
            percent(entry["filed_precision"]),
            interval(entry["filed_precision_interval"]),
            _times(entry["filed_times_original"]),
        )
        for entry in results["taxonomies"]
    ]
    packaged = ", ".join(f"`{entry['taxonomy']}`" for entry in results["taxonomies"] if entry["chosen_on_such_texts"])
    built = " and ".join(f"`{entry['taxonomy']}`" for entry in results["taxonomies"] if entry["taxonomy"] in PROPOSALS)
    notes = [
        *(
            [f"{built}: built for this table from the first texts alone; the files use all texts and may differ."]
            if built
            else []
        ),
        *([f"{packaged}: chosen on such texts, so too good here: judge it by `classifier_eval_report`."] if packaged else []),
    ]
    return [
        title,
        f"Filed is a text above the confidence that certifies {percent(curve['target'])} precision with "
        f"{percent(curve['certainty'])} certainty. The order of merging and the thresholds come from {curve['fitted_rows']:,} "
        f"out-of-fold texts, the figures from {curve['shown_rows']:,} others. The linear model has one probability a section; "
        "those of joined sections are added.",
        "![Accuracy and certified coverage against the number of classes](curve.png)",
        "Taxonomies on the same texts:",
        markdown_table(
            ("taxonomy", "classes", "accuracy", "filed", "precision", "95 % interval", "filed, times original-29"), taxonomies
        ),
        *notes,
        "Merging the most confused first:",
        markdown_table(("classes", "accuracy", "filed", "precision", "joined last"), points),
    ]


def _times(times: Mapping[str, Any] | None) -> str:
    """A ratio with its interval."""
    if times is None:
        return NOT_MEASURED
    bounds = times["interval"]
    return f"{times['value']:.2f}" + ("" if bounds is None else f" ({bounds[0]:.2f} to {bounds[1]:.2f})")


def _similarity(results: Mapping[str, Any]) -> list[str]:
    """Classes whose words are alike."""
    similar = [(" / ".join(pair["classes"]), pair["cosine"]) for pair in results["similar_classes"]]
    return [
        "## Classes that read alike",
        "The cosine of two classes' mean TF-IDF vectors. Classes that read alike limit what any classifier can reach.",
        markdown_table(("classes", "cosine"), similar),
        "![Similarity of the classes](class_similarity.png)",
    ]


def similarity_plot(cosines: Sequence[Sequence[float]], classes: Sequence[str], path: Path) -> None:
    """The similarity of every two classes, coloured up to the highest between two; the diagonal, always 1, stays empty."""
    between = [[math.nan if row == column else value for column, value in enumerate(line)] for row, line in enumerate(cosines)]
    highest = max((value for line in between for value in line if value > 0), default=1.0)  # NaN is not above 0
    shares = [[value / highest for value in line] for line in between]
    heatmap(shares, classes, path, f"cosine of the class means, as a share of the highest ({highest:.2g})")


def plot_labels(taxonomies: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """One label for every number of classes; what equals a packaged taxonomy, by its figures, goes by that one's name alone."""
    own = ("this split", *PROPOSALS)
    by_figures: dict[tuple[Any, ...], list[str]] = {}
    for entry in sorted(taxonomies, key=lambda entry: (entry["taxonomy"] in own, entry["taxonomy"])):
        names = by_figures.setdefault((entry["classes"], entry["accuracy"], entry["filed_share"]), [])
        if not names or entry["taxonomy"] not in own:
            names.append(entry["taxonomy"])
    labels: dict[int, list[str]] = {}
    for (classes, *_), names in by_figures.items():
        labels.setdefault(classes, []).extend(names)
    return {classes: ", ".join(names).replace("$", r"\$") for classes, names in labels.items()}


def curve_plot(points: Sequence[Mapping[str, Any]], taxonomies: Sequence[Mapping[str, Any]], target: float, path: Path) -> None:
    """Accuracy and the share filed at the certified precision, against the number of classes; taxonomies as diamonds."""
    figure, (axis,) = new_figure(8.0, 4.4)
    series = (("accuracy", "accuracy"), ("filed_share", f"filed at a certified {100 * target:.0f} % precision"))
    for (key, label), colour in zip(series, PALETTE, strict=False):
        axis.plot(
            [point["classes"] for point in points], [point[key] for point in points], color=colour, label=label, linewidth=1.6
        )
        axis.scatter(
            [entry["classes"] for entry in taxonomies], [entry[key] for entry in taxonomies], color=colour, marker="D", s=26
        )
    for classes, names in plot_labels(taxonomies).items():
        axis.axvline(classes, color="#9ca3af", linewidth=0.6, linestyle=":", zorder=0)
        axis.annotate(names, (classes, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), **LABEL_STYLE)
    axis.set(xlabel="number of classes", ylabel="share of the texts", ylim=(0, 1.02))
    axis.invert_xaxis()
    axis.legend(frameon=False)
    save_figure(figure, path)
