"""What the web UI shows of a materialisation: row counts, schema, figures, plots, and where the artefact is."""

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from newsjuice_pipelines.resources.metadata import facts_metadata
from newsjuice_pipelines.runtime.artifacts import Artifact
from newsjuice_pipelines.runtime.provenance import fingerprint

EMBEDDED_PLOT_BYTES = 400_000


def materialized(
    artifact: Artifact, row_count: int | None = None, checks: Sequence[dg.AssetCheckResult] = (), **more: Any
) -> dg.MaterializeResult:
    """The result of an asset: its data version and everything worth showing of its artefact; `more` is further metadata."""
    metadata: dict[str, Any] = {
        "dagster/uri": artifact.uri,
        "reused": dg.MetadataValue.bool(artifact.reused),
        "version": artifact.version,
        **facts_metadata(artifact.facts),
        **_plots(artifact.path),
        **_reports(artifact.path),
        **_schema(artifact.path),
        **facts_metadata(more),
    }
    if row_count is not None:
        metadata["dagster/row_count"] = row_count
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(artifact.version), check_results=checks)


def materialized_days(
    artifacts: Sequence[Artifact],
    facts: Mapping[str, Any],
    row_count: int,
    check: dg.AssetCheckResult,
    shown: Mapping[str, dg.MetadataValue] | None = None,
) -> dg.MaterializeResult:
    """The result of a run over several days: one data version over all of them, and what was counted and checked in this run.

    `shown` is metadata as it is, such as a page or a plot of the run.
    """
    metadata: dict[str, Any] = {
        "dagster/row_count": row_count,
        "days": len(artifacts),
        "days_reused": sum(artifact.reused for artifact in artifacts),
        "reused": all(artifact.reused for artifact in artifacts),
        "uri_of_last_day": artifacts[-1].uri,
        **facts_metadata(facts),
        **_schema(artifacts[-1].path),
        **(shown or {}),
    }
    version = fingerprint([artifact.version for artifact in artifacts])[:16]
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version), check_results=[check])


def drawn(name: str, draw: Callable[[Path], None]) -> dict[str, dg.MetadataValue]:
    """A plot of a run that no artefact keeps; `draw` writes it as a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / f"{name}.png")
        return _plots(Path(folder))


def dry_run(
    context: dg.AssetExecutionContext, asset: str, sentence: str, figures: Mapping[str, Any], check: dg.AssetCheckSpec
) -> dg.AssetCheckResult:
    """Shows what a dry run found, in the log and as an observation of the asset; its check is left open, with a warning."""
    context.log.info(f"Dry run: {sentence}")
    context.log_event(dg.AssetObservation(asset, metadata={"dry run": sentence, **facts_metadata(figures)}))
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Not judged: this was a dry run. {sentence}",
    )


def _plots(directory: Path) -> dict[str, dg.MetadataValue]:
    plots: dict[str, dg.MetadataValue] = {}
    for path in sorted(directory.glob("*.png")):
        if path.stat().st_size <= EMBEDDED_PLOT_BYTES:
            data = base64.b64encode(path.read_bytes()).decode()
            plots[f"plot: {path.stem}"] = dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{data})")
        else:
            plots[f"plot: {path.stem}"] = dg.MetadataValue.path(path)
    return plots


def _reports(directory: Path) -> dict[str, dg.MetadataValue]:
    """The report as a path, and the rows that show what is trained as a page."""
    report, masked = directory / "report.md", directory / "masked_rows.md"
    pages: dict[str, dg.MetadataValue] = {"report": dg.MetadataValue.path(report)} if report.exists() else {}
    if masked.exists():
        pages["what is trained"] = dg.MetadataValue.md(masked.read_text(encoding="utf-8"))
    return pages


def _schema(directory: Path) -> dict[str, dg.MetadataValue]:
    """The columns of the artefact's table: its first Parquet or CSV file."""
    parquet = sorted(directory.glob("*.parquet"))
    if parquet:
        from pyarrow.parquet import read_schema

        columns = [dg.TableColumn(field.name, str(field.type)) for field in read_schema(parquet[0])]
    else:
        tables = sorted(directory.glob("*.csv"))
        if not tables:
            return {}
        import pandas as pd

        columns = [dg.TableColumn(str(name), str(kind)) for name, kind in pd.read_csv(tables[0], nrows=200).dtypes.items()]
    return {"dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns=columns))}
