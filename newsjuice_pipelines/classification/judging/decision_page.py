"""The page of the decision, made from its results. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from newsjuice_pipelines.runtime.reports import cell, markdown_table


def decision_page(decision: Mapping[str, Any]) -> str:
    """The page of the decision."""
    rows = [
        (
            criterion["name"],
            criterion["limit"],
            criterion["value"],
            "–" if criterion["interval"] is None else " to ".join(f"{bound:.4g}" for bound in criterion["interval"]),
            criterion["judged_by"],
            criterion["status"],
            criterion["required"],
            criterion["why"],
        )
        for criterion in decision["criteria"]
    ]
    changes = [
        f"- {cell(criterion['name'])}: {cell(criterion['change'])}"
        for criterion in decision["criteria"]
        if criterion["change"] is not None
    ]
    candidate = "There is no candidate." if decision["model"] is None else f"Candidate: {cell(decision['model'])}."
    header = ("criterion", "must be", "value", "95 % interval", "judged by", "status", "required", "why")
    return "\n".join(
        [
            f"# Decision: {decision['decision']}",
            "",
            f"{candidate} The candidate is the leaderboard's best, chosen by validation accuracy. Thresholds "
            f"{cell(decision['thresholds'])}, written down before the run. Adopted only when every required criterion passes; "
            'one that was not measured does not, unless it is required "if measured".',
            "",
            markdown_table(header, rows),
            "",
            "## What would change it",
            "",
            "\n".join(changes) if changes else "Every criterion passes; the first one that fails again would.",
            "",
        ]
    )
