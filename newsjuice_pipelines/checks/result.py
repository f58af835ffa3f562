"""The outcome of a check, free of Dagster, and its one translation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from newsjuice_pipelines.resources.metadata import facts_metadata


@dataclass(frozen=True)
class CheckOutcome:
    """Whether a check passed, one sentence that says why, and the figures behind it."""

    passed: bool
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def as_result(outcome: CheckOutcome, *, warn_only: bool = False) -> dg.AssetCheckResult:
    """The outcome as Dagster shows it; `warn_only` for findings that should not stop a run."""
    return dg.AssetCheckResult(
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.WARN if warn_only else dg.AssetCheckSeverity.ERROR,
        description=outcome.sentence,
        metadata=facts_metadata(outcome.figures),
    )
