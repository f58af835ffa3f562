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
_KEYS = {"name", "report", "value", "at_least", "at_most", "required", "why"}


class ThresholdsError(ValueError):
    """The thresholds cannot be read or do not make sense."""


def load_thresholds(name_or_path: str | Path = "v1") -> dict[str, Any]:
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
    return thresholds


def check_criterion(criterion: Any) -> None:
    """Raise `ThresholdsError` unless a criterion names a report, a value, exactly one bound, and whether it is required."""
    if not isinstance(criterion, Mapping) or not isinstance(criterion.get("name"), str):
        raise ThresholdsError(f"criterion {criterion!r} needs a name: correct the thresholds file.")
    name = criterion["name"]
    unknown = set(criterion) - _KEYS
    if unknown:
        raise ThresholdsError(f"criterion {name!r} has unknown keys {', '.join(sorted(unknown))}: correct the thresholds file.")
    value, required = criterion.get("value"), criterion.get("required")
    if criterion.get("report") not in REPORTS or not value or not isinstance(value, str) or not isinstance(required, bool):
        raise ThresholdsError(f"criterion {name!r} needs report ({' or '.join(REPORTS)}), value, and required (true or false).")
    if ("at_least" in criterion) == ("at_most" in criterion):
        raise ThresholdsError(f"criterion {name!r} needs exactly one of at_least and at_most.")
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
        `decision` (`adopt` or `do not adopt`), `reasons` (names of the required criteria that were not met), and each
        criterion with its value and status.
    """
    reports = {"latency": latency, "quality": quality}
    criteria = []
    for criterion in thresholds["criteria"]:
        check_criterion(criterion)
        value = _look_up(reports[criterion["report"]], criterion["value"])
        criteria.append({**criterion, "measured": value, "status": _status(value, criterion)})
    if not any(criterion["required"] for criterion in criteria):
        raise ThresholdsError("no criterion is required, so anything would be adopted: mark at least one as required.")
    unmet = [criterion["name"] for criterion in criteria if criterion["required"] and criterion["status"] != PASS]
    return {
        "decision": DO_NOT_ADOPT if unmet else ADOPT,
        "thresholds": thresholds["version"],
        "reasons": unmet,
        "criteria": criteria,
    }


def write_decision(decision: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the decision as `results.json` and as the page `report.md`; returns it as facts."""
    write_json(out / "results.json", decision)
    rows = [
        (
            criterion["name"],
            criterion["measured"],
            f"at least {criterion['at_least']}" if "at_least" in criterion else f"at most {criterion['at_most']}",
            criterion["status"],
            criterion["required"],
            criterion.get("why", ""),
        )
        for criterion in decision["criteria"]
    ]
    because = "" if not decision["reasons"] else f" Not met: {', '.join(map(cell, decision['reasons']))}."
    page = f"""# Decision on the student: {decision["decision"]}

Thresholds {cell(decision["thresholds"])}; every required criterion must pass, and one that was not measured does not.{because}

{markdown_table(("criterion", "measured", "threshold", "status", "required", "why"), rows)}
"""
    (out / "report.md").write_text(page, encoding="utf-8")
    return dict(decision)


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


def _status(value: float | None, criterion: Mapping[str, Any]) -> str:
    if value is None:
        return NOT_MEASURED
    met = value >= criterion["at_least"] if "at_least" in criterion else value <= criterion["at_most"]
    return PASS if met else FAIL
