"""What the tables of this domain must look like (pandera schemas), and what is wrong with one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

TEXT_SHOWN = 60
COLUMN_RULES = {"column_in_dataframe": "missing column", "column_in_schema": "unknown column"}
ID_PATTERN = r"[0-9a-f]{40}"
DATE_PATTERN = r"(\d{4}-\d{2}-\d{2})?"


def rows_schema() -> Any:
    """The schema of the kept HuffPost rows: unique ids, texts and sections that say something, ISO dates or none."""
    optional = {name: _text_column() for name in ("headline", "short_description", "link", "authors", "section_counts")}
    return _schema({**_common_columns(), **optional})


def part_schema(classes: Sequence[str]) -> Any:
    """The schema of one part of a split over these classes; `label_id` must be the place of `label` among them."""
    import pandera.pandas as pa

    number_of = {name: number for number, name in enumerate(classes)}
    columns = {
        **_common_columns(),
        "label": pa.Column(checks=pa.Check.isin(list(classes), error="a class of the split")),
        "label_id": pa.Column(int, checks=pa.Check.in_range(0, len(classes) - 1)),
        "group": pa.Column(checks=_filled()),
    }
    aligned = pa.Check(
        lambda frame: frame["label"].map(number_of).eq(frame["label_id"]),
        error="label_id is the place of label among the classes",
    )
    return _schema(columns, aligned)


def schema_problems(frame: pd.DataFrame, schema: Any) -> list[str]:
    """One sentence a broken rule, with how many rows break it and the first value; empty when the table is as it should be."""
    from pandera.errors import SchemaErrors

    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as failed:
        cases = failed.failure_cases
        columns = cases["check"].isin(list(COLUMN_RULES))
        of_table = cases["schema_context"] == "DataFrameSchema"  # one case a column for every row that breaks the rule
        found = [f"{COLUMN_RULES[case.check]} {case.failure_case}" for case in cases[columns].itertuples()]
        for check, those in cases[of_table & ~columns].groupby("check", sort=True):
            found.append(f"{check} does not hold for {those['index'].nunique()} rows")
        for (column, check), those in cases[~of_table & ~columns].groupby(["column", "check"], sort=True):
            first = str(those["failure_case"].iloc[0])[:TEXT_SHOWN]
            found.append(f"column {column}: {check} does not hold for {len(those)} rows, such as {first!r}")
        return found
    return []


def _common_columns() -> dict[str, Any]:
    import pandera.pandas as pa

    return {
        "row_id": pa.Column(checks=pa.Check.str_matches(f"^{ID_PATTERN}$", error="SHA-1 in hexadecimal digits"), unique=True),
        "text": pa.Column(checks=_filled()),
        "category": pa.Column(checks=_filled()),
        "date": pa.Column(checks=pa.Check.str_matches(f"^{DATE_PATTERN}$", error="ISO date or empty")),
    }


def _text_column() -> Any:
    import pandera.pandas as pa

    return pa.Column(checks=pa.Check(lambda values: values.map(type).eq(str).all(), error="text"))


def _filled() -> Any:
    import pandera.pandas as pa

    return pa.Check(lambda values: values.str.strip().ne(""), error="not empty")


def _schema(columns: dict[str, Any], check: Any = None) -> Any:
    import pandera.pandas as pa

    return pa.DataFrameSchema(columns, checks=check, strict=True, name="table")
