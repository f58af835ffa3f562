"""Launchpad forms from domain dataclasses, recipes, and what a materialisation shows."""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from newsjuice_pipelines.assets.describe import materialized
from newsjuice_pipelines.assets.launchpad import from_form, from_overrides, launchpad_config, override_config
from newsjuice_pipelines.runtime.artifacts import ArtifactStore, Draft


@dataclass(frozen=True)
class Sampling:
    """How rows are drawn."""

    size: int = 10
    """Rows
    at most."""
    sources: tuple[str, ...] = ("a", "b")
    """Only these."""
    rate: float | None = None
    """Share of rows."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1.")


def test_a_form_has_the_fields_defaults_and_docstrings_of_its_dataclass() -> None:
    form = launchpad_config(Sampling, extra=(str | None, None, "Something more."))

    assert {name: field.description for name, field in form.model_fields.items() if name != "force"} == {
        "size": "Rows at most.",
        "sources": "Only these.",
        "rate": "Share of rows.",
        "extra": "Something more.",
    }
    assert from_form(form(), Sampling) == Sampling()
    assert form().values() == {"size": 10, "sources": ["a", "b"], "rate": None, "extra": None}


def test_a_filled_form_gives_the_dataclass_and_its_own_errors() -> None:
    form = launchpad_config(Sampling)

    assert from_form(form(size=3, sources=["c"], rate=0.5), Sampling) == Sampling(3, ("c",), 0.5)
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        from_form(form(size=0), Sampling)


def test_an_override_form_replaces_only_what_was_filled_in() -> None:
    form = override_config(Sampling, preset=(str, "usual", "Which preset."))

    assert from_overrides(form(), Sampling(size=7)) == Sampling(size=7)
    assert from_overrides(form(rate=0.1), Sampling(size=7)) == Sampling(size=7, rate=0.1)
    assert form.model_fields["size"].description == "Rows at most. Empty: the preset's."


def test_dagster_accepts_a_form_as_run_configuration() -> None:
    form = launchpad_config(Sampling)
    seen = []

    @dg.asset
    def rows(config: form) -> None:  # type: ignore[valid-type]
        seen.append(from_form(config, Sampling))

    config = {"ops": {"rows": {"config": {"size": 4, "sources": ["x"]}}}}
    assert dg.materialize([rows], run_config=config, instance=dg.DagsterInstance.ephemeral()).success
    assert seen == [Sampling(4, ("x",))]


def test_a_materialisation_shows_version_schema_plots_and_what_was_not_measured(tmp_path: Path) -> None:
    def write(draft: Draft) -> dict[str, object]:
        pd.DataFrame({"id": [1, 2], "text": ["a", "b"]}).to_parquet(draft.path / "rows.parquet")
        (draft.path / "loss.png").write_bytes(b"\x89PNG small")
        (draft.path / "report.md").write_text("# Report")
        return {"accuracy": 0.5, "steps": 3, "latency_s": None, "per_class": {"a": 1}, "tracking_url": "https://example.org/run"}

    artifact = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache").publish("thing", {}, write)

    result = materialized(artifact, row_count=2, vertex_model="models/7")

    assert result.data_version == dg.DataVersion(artifact.version)
    shown = dict(result.metadata)
    assert shown["dagster/row_count"] == 2
    assert [column.name for column in shown["dagster/column_schema"].schema.columns] == ["id", "text"]
    assert shown["accuracy"] == dg.MetadataValue.float(0.5)
    assert shown["latency_s"] == dg.MetadataValue.text("not measured")
    assert shown["tracking_url"] == dg.MetadataValue.url("https://example.org/run")
    assert shown["plot: loss"].value.startswith("![loss](data:image/png;base64,")
    assert shown["vertex_model"] == dg.MetadataValue.text("models/7")
