"""The verdict on the student: adopt or do not adopt, against thresholds that were written down before the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newsjuice_pipelines.runtime.reports import cell, markdown_table, write_json
from newsjuice_pipelines.runtime.yaml_files import find_yaml, read_yaml

THRESHOLDS = Path(__file__).parent / "thresholds"
ADOPT, DO_NOT_ADOPT = "adopt", "do not adopt"
PASS, FAIL, NOT_MEASURED = "pass", "fail", "not measured"
REPORTS = ("quality", "latency")
IF_MEASURED = "if measured"
BOUNDS = {"at_least": "at least", "at_most": "at most", "below": "below"}
_KEYS = {"name", "report", "value", *BOUNDS, "required", "why", "to_measure"}


class ThresholdsError(ValueError):
    """The thresholds cannot be read or do not make sense."""


def load_thresholds(name_or_path: str | Path = "v2") -> dict[str, Any]:
    """Load packaged thresholds by their version, or a YAML file by its path; every criterion is checked.

    Raises:
        ThresholdsError: no such file, no valid YAML, or a criterion that is incomplete.
    """
    path = find_yaml(name_or_path, THRESHOLDS, "thresholds file", ThresholdsError)
    thresholds = read_yaml(path, ThresholdsError)
    criteria = thresholds.get("criteria")
    if not isinstance(criteria, list) or not criteria or not isinstance(thresholds.get("version"), str):
        raise ThresholdsError(f"{path.name} needs `version: <text>` and a list `criteria`.")
    for criterion in criteria:
        check_criterion(criterion)
    names = [criterion["name"] for criterion in criteria]
    if len(set(names)) < len(names):
        raise ThresholdsError(f"{path.name} has two criteria of one name: give each its own.")
    return thresholds


def check_criterion(criterion: Any) -> None:
    """Raise `ThresholdsError` unless a criterion names a report, a value, exactly one bound, and whether it is required."""
    if not isinstance(criterion, Mapping) or not isinstance(criterion.get("name"), str):
        raise ThresholdsError(f"criterion {criterion!r} needs a name: correct the thresholds file.")
    name = criterion["name"]
    unknown = sorted(str(key) for key in set(criterion) - _KEYS)
    if unknown:
        raise ThresholdsError(f"criterion {name!r} has unknown keys {', '.join(unknown)}: correct the thresholds file.")
    value, required = criterion.get("value"), criterion.get("required")
    if criterion.get("report") not in REPORTS or not value or not isinstance(value, str):
        raise ThresholdsError(f"criterion {name!r} needs report ({' or '.join(REPORTS)}) and value (a path in that report).")
    if not isinstance(required, bool) and required != IF_MEASURED:
        raise ThresholdsError(f"criterion {name!r} needs required: true, false, or `{IF_MEASURED}`.")
    if sum(bound in criterion for bound in BOUNDS) != 1:
        raise ThresholdsError(f"criterion {name!r} needs exactly one of {', '.join(BOUNDS)}.")
    if "below" in criterion:
        if not isinstance(criterion["below"], str) or not criterion["below"]:
            raise ThresholdsError(f"criterion {name!r} needs a path in the same report behind `below`.")
        return
    bound = criterion.get("at_least", criterion.get("at_most"))
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        raise ThresholdsError(f"criterion {name!r} needs a number as its bound, not {bound!r}.")


def decide(latency: Mapping[str, Any], quality: Mapping[str, Any], thresholds: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the reports against the thresholds. What is required and was not measured counts against adopting.

    Args:
        latency: the numbers of the latency report.
        quality: the numbers of the quality report.
        thresholds: as `load_thresholds` gives them.

    Returns:
        `decision` (`adopt` or `do not adopt`), `reasons` (names of the criteria that stand against adopting), and each
        criterion with what was measured, its 95 % interval (None without one), the limit, the status, and in `change` what
        would let it pass (None for one that does).
    """
    reports = {"latency": latency, "quality": quality}
    criteria = []
    for criterion in thresholds["criteria"]:
        check_criterion(criterion)
        report = reports[criterion["report"]]
        value = _look_up(report, criterion["value"])
        bound = next(name for name in BOUNDS if name in criterion)
        limit = _look_up(report, criterion["below"]) if bound == "below" else criterion[bound]
        status = _status(value, bound, limit)
        criteria.append(
            {
                **criterion,
                "measured": value,
                "interval": _interval(report, criterion["value"]),
                "limit": limit,
                "status": status,
                "change": _change(criterion, value, bound, limit, status),
            }
        )
    if not any(criterion["required"] is True for criterion in criteria):
        raise ThresholdsError("no criterion is required, so anything would be adopted: mark at least one as required.")
    against = [criterion["name"] for criterion in criteria if _stands_against(criterion)]
    return {
        "decision": DO_NOT_ADOPT if against else ADOPT,
        "thresholds": thresholds["version"],
        "reasons": against,
        "criteria": criteria,
    }


def write_decision(decision: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the decision as `results.json` and as the page `report.md`; returns it as facts."""
    write_json(out / "results.json", decision)
    rows = [
        (
            criterion["name"],
            criterion["measured"],
            _interval_cell(criterion["interval"]),
            _limit_cell(criterion),
            criterion["status"],
            criterion["required"],
            criterion.get("why", ""),
        )
        for criterion in decision["criteria"]
    ]
    changes = [
        f"- {cell(criterion['name'])}: {cell(criterion['change'])}"
        for criterion in decision["criteria"]
        if criterion["change"] is not None
    ]
    change = "\n".join(changes) if changes else "Every criterion passes; the first one that fails again would."
    page = f"""# Decision on the student: {decision["decision"]}

Thresholds {cell(decision["thresholds"])}. Every required criterion must pass, and one that was not measured does not; one
that is required "if measured" may stay open.

{markdown_table(("criterion", "measured", "95 % interval", "threshold", "status", "required", "why"), rows)}

## What would change it

{change}
"""
    (out / "report.md").write_text(page, encoding="utf-8")
    return dict(decision)


def _stands_against(criterion: Mapping[str, Any]) -> bool:
    if criterion["required"] == IF_MEASURED:
        return bool(criterion["status"] == FAIL)
    return bool(criterion["required"] and criterion["status"] != PASS)


def _change(criterion: Mapping[str, Any], value: float | None, bound: str, limit: float | None, status: str) -> str | None:
    """What would let a criterion pass, in words."""
    if status == PASS:
        return None
    if value is None or limit is None:
        return f"not measured; {criterion.get('to_measure', 'materialise the report that measures it')}"
    gap = f" ({abs(limit - value):.3g} {'more' if value < limit else 'less'})" if value != limit else ""
    return f"{value:.4g} must become {BOUNDS[bound]} {limit:.4g}{gap}"


def _limit_cell(criterion: Mapping[str, Any]) -> str:
    bound = next(name for name in BOUNDS if name in criterion)
    limit = criterion["limit"]
    shown = NOT_MEASURED if limit is None else f"{limit:.4g}"
    return f"below {shown} ({criterion['below']})" if bound == "below" else f"{BOUNDS[bound]} {shown}"


def _interval_cell(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"


def _interval(report: Mapping[str, Any], path: str) -> tuple[float, float] | None:
    """The interval that stands beside a value, as `low` and `high`; None where there is none."""
    place: Any = report
    for part in path.split("/")[:-1]:
        place = place.get(part) if isinstance(place, Mapping) else None
    if not isinstance(place, Mapping) or place.get("low") is None or place.get("high") is None:
        return None
    return place["low"], place["high"]


def _look_up(report: Mapping[str, Any], path: str) -> float | None:
    """The number at `a/b/c`; None where a part of the report was not measured. A path that cannot exist is an error."""
    value: Any = report
    for part in path.split("/"):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            raise ThresholdsError(f"the report has no value {path!r} (no {part!r}): correct the thresholds file.")
        value = value[part]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ThresholdsError(f"the value {path!r} is {value!r}, not a number: correct the thresholds file.")
    return value


def _status(value: float | None, bound: str, limit: float | None) -> str:
    if value is None or limit is None:
        return NOT_MEASURED
    met = {"at_least": value >= limit, "at_most": value <= limit, "below": value < limit}[bound]
    return PASS if met else FAIL
