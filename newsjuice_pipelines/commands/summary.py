"""The result table of the terminal: the figures that answer whether to adopt, and where the reports are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.site.catalogue import ASSETS, REPORT
from newsjuice_pipelines.site.figures import NOT_YET, classifier_figures, podcast_figures
from newsjuice_pipelines.site.records import Records

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings


def summary(settings: Settings) -> str:
    """Two columns of results, one line a figure, then the path of each report."""
    records = Records(ArtifactStore(settings.artifact_root, settings.cache))
    rows = [*podcast_figures(records), *classifier_figures(records)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    reports = [f"{key:<{width}}  {path}" for key, path in _reports(records)]
    return "\n".join(["Results", *lines, "", "Reports", *(reports or [NOT_YET])])


def _reports(records: Records) -> Iterator[tuple[str, str]]:
    for asset in ASSETS:
        for key in records.of(asset.name, asset.partitioned_by) if asset.document == REPORT else []:
            record = records.find(key)
            if record is not None:
                yield key, str(record.folder / REPORT)
