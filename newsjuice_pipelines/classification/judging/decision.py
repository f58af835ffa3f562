"""The decision: adopt the best classifier or not, against thresholds written down before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.judging.report import decision_page
from newsjuice_pipelines.runtime.reports import write_json
from newsjuice_pipelines.runtime.yaml_files import find_yaml, read_yaml

PACKAGED = Path(__file__).parent / "thresholds"
ADOPT, DO_NOT_ADOPT = "adopt", "do not adopt"
PASS, FAIL, NOT_MEASURED = "pass", "fail", "not measured"


class ThresholdsError(ValueError):
    """A thresholds file is missing or mistyped."""


@dataclass(frozen=True)
class Criterion:
    """One threshold: `metric` is a dotted path into an evaluation's results; exactly one of `at_least` and `at_most` is set."""

    name: str
    metric: str
    at_least: float | None
    at_most: float | None
    judged_by: str


@dataclass(frozen=True)
class Thresholds:
    """A version of the criteria."""

    version: str
    criteria: tuple[Criterion, ...]


def load_thresholds(name_or_path: str | Path = "v1") -> Thresholds:
    """Load packaged thresholds by their name, or a YAML file by its path.

    Raises:
        ThresholdsError: no such file, or an entry that is mistyped.
    """
    path = find_yaml(name_or_path, PACKAGED, "thresholds file", ThresholdsError)
    content = read_yaml(path, ThresholdsError)
    entries = content.get("criteria")
    if not isinstance(entries, list) or not entries or not isinstance(content.get("version"), str):
        raise ThresholdsError(f"{path.name} needs `version: <text>` and a list `criteria`.")
    return Thresholds(content["version"], tuple(_criterion(entry, path) for entry in entries))


def decide(
    leaderboard: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]], thresholds: Thresholds
) -> dict[str, Any]:
    """Judge the leaderboard's best model; `evaluations` maps a model to the content of its `results.json`.

    Adopted only when every criterion passes; one that was not measured does not pass.

    Raises:
        ThresholdsError: a criterion names a metric that evaluations do not have.
    """
    model = leaderboard["best"]
    results = {**evaluations[model], "worst_class_f1": _worst_class_f1(evaluations[model])}
    criteria = [_judge(criterion, results) for criterion in thresholds.criteria]
    adopted = all(criterion["status"] == PASS for criterion in criteria)
    return {
        "decision": ADOPT if adopted else DO_NOT_ADOPT,
        "model": model,
        "thresholds": thresholds.version,
        "passed": sum(criterion["status"] == PASS for criterion in criteria),
        "failed": sum(criterion["status"] == FAIL for criterion in criteria),
        "not_measured": sum(criterion["status"] == NOT_MEASURED for criterion in criteria),
        "criteria": criteria,
    }


def write_decision(decision: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write `results.json` and `report.md`; returns the decision as facts."""
    write_json(out / "results.json", decision)
    (out / "report.md").write_text(decision_page(decision), encoding="utf-8")
    return dict(decision)


def _criterion(entry: Any, path: Path) -> Criterion:
    """One entry of a thresholds file."""
    known = {"name", "metric", "at_least", "at_most", "judge"}
    if not isinstance(entry, dict) or set(entry) - known or not {"name", "metric", "judge"} <= set(entry):
        raise ThresholdsError(f"{path.name}: {entry!r} needs name, metric, judge, and one of at_least and at_most.")
    limits = [entry[name] for name in ("at_least", "at_most") if name in entry]
    if len(limits) != 1 or isinstance(limits[0], bool) or not isinstance(limits[0], int | float):
        raise ThresholdsError(f"{path.name}: criterion {entry['name']!r} needs one number, at_least or at_most.")
    if entry["judge"] not in ("value", "interval"):
        raise ThresholdsError(
            f"{path.name}: criterion {entry['name']!r} is judged by 'value' or 'interval', not {entry['judge']!r}."
        )
    return Criterion(entry["name"], entry["metric"], entry.get("at_least"), entry.get("at_most"), entry["judge"])


def _judge(criterion: Criterion, results: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion with the value, the interval and whether it passes."""
    found = _lookup(results, criterion.metric)
    value, interval = (found["value"], found["interval"]) if isinstance(found, Mapping) else (found, None)
    judged = value
    if criterion.judged_by == "interval":
        judged = None if interval is None else interval[0 if criterion.at_least is not None else 1]
    if judged is None:
        status = NOT_MEASURED
    elif criterion.at_least is not None:
        status = PASS if judged >= criterion.at_least else FAIL
    else:
        status = PASS if criterion.at_most is not None and judged <= criterion.at_most else FAIL
    limit = f"at least {criterion.at_least}" if criterion.at_least is not None else f"at most {criterion.at_most}"
    return {
        "name": criterion.name,
        "metric": criterion.metric,
        "limit": limit,
        "value": value,
        "interval": interval,
        "judged_by": criterion.judged_by,
        "status": status,
    }


def _lookup(results: Mapping[str, Any], metric: str) -> Any:
    """The value at a dotted path; an unknown path is a mistake in the thresholds, not a missing measurement."""
    found: Any = results
    for name in metric.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise ThresholdsError(f"The evaluation has no metric {metric!r}: correct the thresholds file.")
        found = found[name]
    return found


def _worst_class_f1(results: Mapping[str, Any]) -> float | None:
    """The lowest F1 over the classes with test rows."""
    measured = [row["f1"] for row in results["per_class"] if row["f1"] is not None]
    return min(measured) if measured else None
