"""The defect ledger: what the first experiment did wrong, what is done now, and what each defect cost where that was measured.

The measuring is `newsjuice bench defects`; its results are read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defect:
    """One defect: `benchmark` names another benchmark that shows its cost."""

    name: str
    what: str
    effect: str
    now: str
    benchmark: str | None = None


DEFECTS: tuple[Defect, ...] = (
    Defect(
        "D1",
        "Loss over the prompt too",
        "Capacity was spent on copying the prompt.",
        "The loss covers the script alone; two rows show it before anything is trained.",
    ),
    Defect(
        "D2",
        "No end token in the labels",
        "Generation ran to the cap: most of the 37 to 45 s of a script.",
        "Every row ends with the end token, and a blocking check looks.",
    ),
    Defect(
        "D3",
        "The length limit cut the answer",
        "Scripts were truncated, again without an end token.",
        "The article is cut at the end of a sentence, the script never.",
    ),
    Defect(
        "D4",
        "No chat template, and a long instruction in every prompt",
        "The prompt took longer to read, and no token said stop.",
        "The model's own chat template, and one system line.",
    ),
    Defect(
        "D5",
        "Merged into the 4-bit weights",
        "Rounding wiped out small changes of the weights.",
        "Merged into the dequantised base; the merge gate measures how much of the adapter is left.",
    ),
    Defect(
        "D6",
        "Random draws, 2,000 times, and a split by row",
        "Duplicates, a table scan a row, and rows of one article on both sides.",
        "One pass by hash rank; split by article and cluster of near-duplicates, with a blocking check.",
        "chunks",
    ),
    Defect(
        "D7",
        "Errors and empty replies kept as training text",
        "The student learnt them.",
        "Only scripts with status ok are trained on; every row left out is named with its reason.",
    ),
    Defect("D8", "One request at a time", "Hours.", "Many at once, for teacher and student.", "teacher"),
    Defect(
        "D9",
        "Latency blamed on reading the prompt, never measured",
        "The work went to the wrong place: writing took about 99 %.",
        "Reading and writing are timed apart in the latency report.",
        "inference",
    ),
    Defect(
        "D10",
        "Texts of 40 tokens padded to 512",
        "Over ten times the work.",
        "Batches are padded to their longest text and sorted by length.",
        "classifier",
    ),
    Defect(
        "D11",
        "The test part picked the checkpoint",
        "Scores that are too good.",
        "Validation picks; the test part is read once, and the report says when it was not.",
    ),
    Defect(
        "D12",
        "No look for near-duplicates between the parts",
        "Scores that are too good.",
        "Whole clusters go to one side, and what leaks is counted.",
    ),
    Defect(
        "D13",
        "86 % of the labelled rows thrown away",
        "Lower accuracy.",
        "The preset “full” trains on every row that is not held out.",
    ),
    Defect(
        "D14",
        "Renamed and overlapping sections kept as classes",
        "A ceiling on accuracy.",
        "Taxonomies with joined sections, and a report that proposes more.",
    ),
    Defect(
        "D15",
        "An answer for every article",
        "69 % right is of no use, though 90 % on the sure ones would be.",
        "Calibrated: filed above a certified threshold, else a parent class, three classes, or none.",
    ),
    Defect(
        "D16",
        "Another source's labels compared as strings",
        "0 % was reported as a result; compared properly it was 41 %.",
        "Labels are compared through a crosswalk, and too few counterparts fail a check.",
    ),
)
SHARES = {
    "ended": "scripts that end by themselves",
    "cap_hit": "scripts that run into the cap",
    "format_pass": "scripts in form",
}
NOTHING_FOUND = "no difference found at this size"


def measured(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sentences on what each defect cost, by its name, from the results of `newsjuice bench defects`."""
    found: dict[str, list[str]] = {}
    variants = (results.get("defects") or {}).get("variants", {})
    for name, variant in variants.items():
        right = variants.get(variant.get("against") or "")
        if right is not None and name.startswith("D"):
            found[name] = list(_podcast(variant, right)) or [NOTHING_FOUND]
    for finding in (results.get("classifier_defects") or {}).get("findings", ()):
        sentence = _classifier(finding)
        if sentence is not None:
            found.setdefault(finding["defect"], []).append(sentence)
    return found


def _podcast(variant: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """What differs beyond chance: the 95 % interval of the change leaves zero out."""
    change = variant.get("change") or {}
    loss = change.get("answer_loss")
    if loss and _beyond_chance(loss):
        yield f"loss on the script {loss['value']:+.2f} nats a token ({loss['low']:+.2f} to {loss['high']:+.2f})"
    for measure, words in SHARES.items():
        if change.get(measure) and _beyond_chance(change[measure]):
            yield f"{words}: {variant[measure]['value']:.0%} instead of {right[measure]['value']:.0%}"
    kept, kept_right = variant.get("effect_kept_gentle"), right.get("effect_kept_gentle")
    if kept and kept_right:
        yield f"left of an adapter that changes the weights by 1 %: {kept['value']:.0%} instead of {kept_right['value']:.0%}"
    leaked = variant.get("leaked_rows")
    if leaked and leaked["value"]:
        yield f"held-out rows that leaked: {leaked['value']:.0f} of {variant['held_rows']['value']:.0f}"


def _beyond_chance(change: Mapping[str, float]) -> bool:
    return change["low"] > 0 or change["high"] < 0


def _classifier(finding: Mapping[str, Any]) -> str | None:
    original, right = finding.get("original"), finding.get("right")
    if not original or not right:
        return None
    if finding["kind"] == "speed":
        return f"{finding['measure']}: {original['value']:.3g} instead of {right['value']:.3g}"
    if finding["kind"] == "share":
        return f"{finding['measure']}: {original['value']:.1%} instead of {right['value']:.1%}"
    return None
