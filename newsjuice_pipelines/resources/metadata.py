"""Facts of the domain packages as Dagster metadata, for materialisations and for checks."""

from collections.abc import Mapping
from typing import Any

import dagster as dg


def facts_metadata(facts: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """Facts as typed metadata: numbers can be plotted over runs, nested values are shown as JSON, None as "not measured"."""
    return {name: _value(value) for name, value in facts.items()}


def _value(value: Any) -> dg.MetadataValue:
    if value is None:
        return dg.MetadataValue.text("not measured")
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    if isinstance(value, str):
        return dg.MetadataValue.url(value) if value.startswith("https://") else dg.MetadataValue.text(value)
    return dg.MetadataValue.json(value)
