"""The result table of the terminal: the figures that answer whether to adopt, and where the reports are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.runtime.artifacts import ArtifactMissing, ArtifactStore

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings

REPORTS = (
    "latency_report",
    "script_quality_report",
    "podcast_decision",
    "overlap_report",
    "classifier_eval_report",
    "exported_classifier",
    "external_predictions",
    "model_leaderboard",
    "classifier_decision",
)
NOT_YET = "not materialised"


def summary(settings: Settings) -> str:
    """Two columns of results, one line a figure, then the path of each report."""
    store = ArtifactStore(settings.artifact_root, settings.cache)
    rows = [*_podcast(store), *_classification(store)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    reports = [f"{key:<{width}}  {path}" for key, path in _reports(store)]
    return "\n".join(["Results", *lines, "", "Reports", *(reports or [NOT_YET])])


def _podcast(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    days = [store.open(f"article_chunks/{day}").facts for day in store.partitions("article_chunks")]
    yield (
        "chunks sampled",
        f"{sum(day['rows'] for day in days):,} on {sum(day['rows'] > 0 for day in days)} days" if days else NOT_YET,
    )
    scripts = [store.open(f"teacher_scripts/{day}").facts for day in store.partitions("teacher_scripts")]
    asked = sum(day["rows"] for day in scripts)
    yield "teacher scripts fit for training", f"{sum(day['ok'] for day in scripts):,} of {asked:,}" if scripts else NOT_YET
    quality, latency = _facts(store, "script_quality_report"), _facts(store, "latency_report")
    yield "format pass: student / untuned / teacher", NOT_YET if quality is None else _passes(quality["systems"])
    yield "one script, median", NOT_YET if latency is None else f"{latency['single_stream']['latency_p50_s']:.2f} s"
    yield "podcast decision", _verdict(_facts(store, "podcast_decision"))


def _classification(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    split = _facts(store, "balanced_split")
    yield "headlines in the split", NOT_YET if split is None else f"{split['row_count']:,} in {split['class_count']} classes"
    board = _facts(store, "model_leaderboard")
    for row in board["ranking"] if board else []:
        low, high = row["accuracy_interval"]
        yield f"accuracy of {row['model']}", f"{row['accuracy']:.1%}  (95 % interval {low:.1%} to {high:.1%})"
        report = _facts(store, f"classifier_eval_report/{row['model']}")
        yield f"filed by {row['model']} at certified precision", _certified(report)
    yield "classifier decision", _verdict(_facts(store, "classifier_decision"))


def _facts(store: ArtifactStore, key: str) -> Mapping[str, Any] | None:
    try:
        return store.open(key).facts
    except ArtifactMissing:
        return None


def _passes(systems: Mapping[str, Any]) -> str:
    shares = [systems[name]["passes"]["value"] if systems.get(name) else None for name in ("student", "base", "teacher")]
    return " / ".join("not measured" if share is None else f"{share:.0%}" for share in shares)


def _certified(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return NOT_YET
    if facts["threshold"] is None:
        return "none: no threshold could be certified"
    return f"{facts['threshold_coverage']:.1%} of the test texts, {facts['threshold_precision']:.1%} of them right"


def _verdict(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return NOT_YET
    passed = sum(criterion["status"] == "pass" for criterion in facts["criteria"])
    return f"{facts['decision']} ({passed} of {len(facts['criteria'])} criteria passed)"


def _reports(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    for name in REPORTS:
        keys = [f"{name}/{partition}" for partition in store.partitions(name)] or [name]
        for key in keys:
            if store.current_version(key) is not None:
                yield key, str(store.open(key).path / "report.md")
