"""The decision: adopt the best classifier or not, against thresholds written down before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.classification.judging.decision_page import decision_page
from newsjuice_pipelines.runtime.reports import write_json
from newsjuice_pipelines.runtime.yaml_files import find_yaml, read_yaml

PACKAGED = Path(__file__).parent / "thresholds"
ADOPT, DO_NOT_ADOPT = "adopt", "do not adopt"
PASS, FAIL, NOT_MEASURED = "pass", "fail", "not measured"
IF_MEASURED = "if measured"
LINEAR, ORIGINAL_SUFFIX = "linear", "-original"
_REQUIRED_KEYS = {"name", "metric", "judge"}
_LIMITS = {"at_least": "at least", "above": "above", "at_most": "at most"}
_KEYS = _REQUIRED_KEYS | set(_LIMITS) | {"required", "why", "to_measure"}


class ThresholdsError(ValueError):
    """A thresholds file is missing or mistyped."""


@dataclass(frozen=True)
class Criterion:
    """One threshold: `metric` is a dotted path into an evaluation's results.

    Exactly one of `at_least`, `above` (strictly) and `at_most` is set. `required` is True, or "if measured" for a comparison that
    may have nothing to compare with.
    """

    name: str
    metric: str
    at_least: float | None
    at_most: float | None
    judged_by: str
    required: bool | str = True
    why: str = ""
    to_measure: str = "materialise 'classifier_eval_report' of the candidate"
    above: float | None = None

    @property
    def bound(self) -> str:
        """Which of the limits is set."""
        return next(name for name in _LIMITS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """The limit that is set."""
        return float(getattr(self, self.bound))

    def passes(self, number: float) -> bool:
        """Whether a number keeps the limit."""
        if self.bound == "above":
            return number > self.limit
        return number <= self.limit if self.bound == "at_most" else number >= self.limit


@dataclass(frozen=True)
class Thresholds:
    """A version of the criteria."""

    version: str
    criteria: tuple[Criterion, ...]


def load_thresholds(name_or_path: str | Path = "v2") -> Thresholds:
    """Load packaged thresholds by their name, or a YAML file by its path.

    Raises:
        ThresholdsError: no such file, or an entry that is mistyped.
    """
    path = find_yaml(name_or_path, PACKAGED, "thresholds file", ThresholdsError)
    content = read_yaml(path, ThresholdsError)
    entries = content.get("criteria")
    if not isinstance(entries, list) or not entries or not isinstance(content.get("version"), str):
        raise ThresholdsError(f"{path.name} needs `version: <text>` and a list `criteria`.")
    criteria = tuple(_criterion(entry, path) for entry in entries)
    names = [criterion.name for criterion in criteria]
    if len(set(names)) < len(names):
        raise ThresholdsError(f"{path.name} has two criteria of one name: give each its own.")
    if not any(criterion.required is True for criterion in criteria):
        raise ThresholdsError(
            f"{path.name} requires nothing, so anything would be adopted: leave out `required` of at least one."
        )
    return Thresholds(content["version"], criteria)


def decide(
    leaderboard: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]], thresholds: Thresholds
) -> dict[str, Any]:
    """Judge the leaderboard's best model; `evaluations` maps a model to the content of its `results.json`.

    Adopted only when every criterion passes; one that was not measured does not, unless it is required "if measured". Beside the
    results' own values, a criterion may name `worst_class_f1`, and `over_linear` and `over_original`: the accuracy on the test
    part minus that of the linear model, and of the same encoder by the original's recipe.

    Returns:
        `decision`, `model` (None without an eligible one), counts by status, and each criterion with its value, its interval, its
        status and, in `change`, what would let it pass (None for one that does).

    Raises:
        ThresholdsError: a criterion names a metric that evaluations do not have.
    """
    model = leaderboard["best"]
    criteria = [_no_candidate()] if model is None else _judged(model, leaderboard, evaluations[model], thresholds)
    against = [item for item in criteria if item["status"] == FAIL or (item["status"] != PASS and item["required"] is True)]
    return {
        "decision": DO_NOT_ADOPT if against else ADOPT,
        "model": model,
        "thresholds": thresholds.version,
        "passed": sum(criterion["status"] == PASS for criterion in criteria),
        "failed": sum(criterion["status"] == FAIL for criterion in criteria),
        "not_measured": sum(criterion["status"] == NOT_MEASURED for criterion in criteria),
        "reasons": [criterion["name"] for criterion in against],
        "criteria": criteria,
    }


def write_decision(decision: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write `results.json` and `report.md`; returns the decision as facts."""
    write_json(out / "results.json", decision)
    (out / "report.md").write_text(decision_page(decision), encoding="utf-8")
    return dict(decision)


def _criterion(entry: Any, path: Path) -> Criterion:
    """One entry of a thresholds file."""
    if not isinstance(entry, dict) or set(entry) - _KEYS or not set(entry) >= _REQUIRED_KEYS:
        raise ThresholdsError(f"{path.name}: {entry!r} needs name, metric, judge, and one of {', '.join(_LIMITS)}.")
    limits = {name: entry[name] for name in _LIMITS if name in entry}
    numbers = [limit for limit in limits.values() if isinstance(limit, int | float) and not isinstance(limit, bool)]
    if len(limits) != 1 or not numbers:
        raise ThresholdsError(f"{path.name}: criterion {entry['name']!r} needs one number: at_least, above or at_most.")
    if entry["judge"] not in ("value", "interval"):
        raise ThresholdsError(
            f"{path.name}: criterion {entry['name']!r} is judged by 'value' or 'interval', not {entry['judge']!r}."
        )
    if entry.get("required", True) not in (True, IF_MEASURED):
        raise ThresholdsError(f"{path.name}: criterion {entry['name']!r} has required: true, or `{IF_MEASURED}`.")
    given = {name: entry[name] for name in ("required", "why", "to_measure", "above") if name in entry}
    return Criterion(entry["name"], entry["metric"], entry.get("at_least"), entry.get("at_most"), entry["judge"], **given)


def _judged(
    model: str, leaderboard: Mapping[str, Any], evaluation: Mapping[str, Any], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Every criterion, judged on the candidate."""
    results = {
        **evaluation,
        "worst_class_f1": _worst_class_f1(evaluation),
        "over_linear": _difference(leaderboard, model, LINEAR),
        "over_original": _difference(leaderboard, model, f"{model}{ORIGINAL_SUFFIX}"),
    }
    return [_judge(criterion, results) for criterion in thresholds.criteria]


def _no_candidate() -> dict[str, Any]:
    """The only criterion when the test part selected every checkpoint."""
    return {
        "name": "a candidate",
        "metric": "best",
        "limit": "one",
        "value": None,
        "interval": None,
        "judged_by": "value",
        "required": True,
        "why": "the test part selected the checkpoint of every model, so that its scores prove nothing",
        "status": FAIL,
        "change": "train a model that is selected on the validation part: materialise 'classifier_checkpoint' of any other model",
    }


def _difference(leaderboard: Mapping[str, Any], model: str, other: str) -> dict[str, Any] | None:
    """The model's accuracy over another's on the same texts; None where the leaderboard does not compare them."""
    for pair in leaderboard.get("pairs", ()):
        if (pair["first"], pair["second"]) == (model, other):
            return {"value": pair["difference"], "interval": pair["interval"]}
        if (pair["first"], pair["second"]) == (other, model):
            low, high = pair["interval"]
            return {"value": -pair["difference"], "interval": [-high, -low]}
    return None


def _judge(criterion: Criterion, results: Mapping[str, Any]) -> dict[str, Any]:
    """A criterion with the value, the interval, whether it passes, and what would change that."""
    found = _lookup(results, criterion.metric)
    value, interval = (found["value"], found["interval"]) if isinstance(found, Mapping) else (found, None)
    judged = value
    if criterion.judged_by == "interval":
        judged = None if interval is None else interval[1 if criterion.bound == "at_most" else 0]
    status = NOT_MEASURED if judged is None else PASS if criterion.passes(judged) else FAIL
    limit = f"{_LIMITS[criterion.bound]} {getattr(criterion, criterion.bound)}"
    return {
        "name": criterion.name,
        "metric": criterion.metric,
        "limit": limit,
        "value": value,
        "interval": interval,
        "judged_by": criterion.judged_by,
        "required": criterion.required,
        "why": criterion.why,
        "status": status,
        "change": _change(criterion, judged, limit, status),
    }


def _change(criterion: Criterion, judged: float | None, limit: str, status: str) -> str | None:
    """What would let a criterion pass, in words."""
    if status == PASS:
        return None
    if judged is None:
        return f"not measured; {criterion.to_measure}"
    side, direction = ("upper", "less") if criterion.bound == "at_most" else ("lower", "more")
    end = f"the {side} end of the interval, " if criterion.judged_by == "interval" else ""
    gap = abs(criterion.limit - judged)
    missing = f"{gap:.3g} {direction}" if gap else f"{direction} than that"
    return f"{end}{judged:.4g}, must become {limit} ({missing})"


def _lookup(results: Mapping[str, Any], metric: str) -> Any:
    """The number, or the mapping with `value` and `interval`, at a dotted path; None where it was not measured."""
    found: Any = results
    for name in metric.split("."):
        if found is None:
            return None
        if not isinstance(found, Mapping) or name not in found:
            raise ThresholdsError(f"The evaluation has no metric {metric!r} (no {name!r}): correct the thresholds file.")
        found = found[name]
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if found is not None and not is_number and not (isinstance(found, Mapping) and {"value", "interval"} <= set(found)):
        raise ThresholdsError(f"The metric {metric!r} is no number: correct the thresholds file.")
    return found


def _worst_class_f1(results: Mapping[str, Any]) -> float | None:
    """The lowest F1 over the classes with test rows."""
    measured = [row["f1"] for row in results["per_class"] if row["f1"] is not None]
    return min(measured) if measured else None
