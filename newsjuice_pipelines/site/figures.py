"""The figures that answer whether to adopt, and both verdicts, from the facts of the artefacts: for the terminal and the site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from newsjuice_pipelines.site.catalogue import DECISIONS, Group
from newsjuice_pipelines.site.records import Records

NOT_YET = "not materialised"
ADOPT = "adopt"
PROMOTE = {
    "podcast": "Put the student into service by hand: materialise promoted_model with the id of the run that judged it.",
    "classification": (
        "Let it file alone what is above its certified threshold: “newsjuice classify --file in.csv --out out.csv” says "
        "filed, parent, top three or nothing for each row. Certify on texts of your own newsroom first."
    ),
}
KEEP = {
    "podcast": "Keep the hosted teacher: the student is not to be put into service as it is.",
    "classification": "Keep a person on every article: no classifier may file alone as it is.",
}


@dataclass(frozen=True)
class Criterion:
    """One criterion of a decision: `change` says what would turn it, where the decision knows."""

    name: str
    status: Literal["pass", "fail", "not measured"]
    required: str
    why: str
    change: str | None
    decides: bool


@dataclass(frozen=True)
class Verdict:
    """A decision: `decision` is None until it is materialised."""

    group: Group
    decision: str | None
    thresholds: str | None = None
    criteria: tuple[Criterion, ...] = ()

    @property
    def adopted(self) -> bool:
        """Whether the model is to be adopted."""
        return self.decision == ADOPT

    @property
    def passed(self) -> int:
        """How many criteria passed."""
        return sum(criterion.status == "pass" for criterion in self.criteria)

    @property
    def advice(self) -> str | None:
        """What a team should do now."""
        if self.decision is None:
            return None
        return PROMOTE[self.group] if self.adopted else KEEP[self.group]

    @property
    def open_criteria(self) -> tuple[Criterion, ...]:
        """The criteria for which it was not adopted, in their order."""
        return tuple(criterion for criterion in self.criteria if criterion.decides)


def verdict(records: Records, group: Group) -> Verdict:
    """The decision of one pipeline."""
    facts = records.facts(DECISIONS[group])
    if facts is None:
        return Verdict(group, None)
    reasons = facts.get("reasons", ())
    return Verdict(
        group,
        facts["decision"],
        facts.get("thresholds"),
        tuple(_criterion(found, found["name"] in reasons) for found in facts["criteria"]),
    )


def podcast_figures(records: Records) -> Iterator[tuple[str, str]]:
    """Name and value of each figure of the podcast pipeline."""
    days = [_known(records, f"article_chunks/{day}") for day in records.partitions("article_chunks")]
    yield (
        "chunks sampled",
        f"{sum(day['rows'] for day in days):,} on {sum(day['rows'] > 0 for day in days)} days" if days else NOT_YET,
    )
    scripts = [_known(records, f"teacher_scripts/{day}") for day in records.partitions("teacher_scripts")]
    asked = sum(day["rows"] for day in scripts)
    yield "teacher scripts fit for training", f"{sum(day['ok'] for day in scripts):,} of {asked:,}" if scripts else NOT_YET
    quality, latency = records.facts("script_quality_report"), records.facts("latency_report")
    yield "format pass: student / untuned / teacher", NOT_YET if quality is None else _passes(quality["systems"])
    yield "one script, median", NOT_YET if latency is None else _seconds(latency["single_stream"]["latency_p50_s"])
    yield "podcast decision", _summary(verdict(records, "podcast"))


def classifier_figures(records: Records) -> Iterator[tuple[str, str]]:
    """Name and value of each figure of the classification pipeline."""
    split = records.facts("balanced_split")
    yield "headlines in the split", NOT_YET if split is None else f"{split['row_count']:,} in {split['class_count']} classes"
    board = records.facts("model_leaderboard")
    for row in board["ranking"] if board else []:
        low, high = row["accuracy_interval"]
        yield f"accuracy of {row['model']}", f"{row['accuracy']:.1%}  (95 % interval {low:.1%} to {high:.1%})"
        report = records.facts(f"classifier_eval_report/{row['model']}")
        yield f"filed by {row['model']} at certified precision", _certified(report)
    yield "classifier decision", _summary(verdict(records, "classification"))


def _known(records: Records, key: str) -> Mapping[str, Any]:
    facts = records.facts(key)
    assert facts is not None, f"{key} is listed, so it is there"
    return facts


def _criterion(found: Mapping[str, Any], decides: bool) -> Criterion:
    required = found["required"]
    return Criterion(
        name=found["name"],
        status=found["status"],
        required=required if isinstance(required, str) else ("yes" if required else "no"),
        why=found["why"],
        change=found.get("change"),
        decides=decides,
    )


def _passes(systems: Mapping[str, Any]) -> str:
    shares = [systems[name]["passes"]["value"] if systems.get(name) else None for name in ("student", "base", "teacher")]
    return " / ".join("not measured" if share is None else f"{share:.0%}" for share in shares)


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} s"


def _certified(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return NOT_YET
    if facts["threshold"] is None:
        return "none: no threshold could be certified"
    return f"{facts['threshold_coverage']:.1%} of the test texts, {facts['threshold_precision']:.1%} of them right"


def _summary(found: Verdict) -> str:
    if found.decision is None:
        return NOT_YET
    return f"{found.decision} ({found.passed} of {len(found.criteria)} criteria passed)"
