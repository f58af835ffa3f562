"""`newsjuice report --open`: writes the report site and shows it in the browser."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.site.build import build
from newsjuice_pipelines.site.pages import Site
from newsjuice_pipelines.site.records import Records

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings

BENCHMARKS = Path("docs/benchmarks")


def write_site(settings: Settings, folder: Path | None = None, benchmarks: Path | None = None, open_it: bool = False) -> Path:
    """Write the site of a home; returns its start page.

    Args:
        settings: of that home.
        folder: where the site is written; default HOME/site. An earlier site there is replaced as a whole.
        benchmarks: folder of `newsjuice bench` results; default ./docs/benchmarks where that is there.
        open_it: show it in the browser of this machine.

    Raises:
        ValueError: `folder` holds something that is no site.
    """
    records = Records(ArtifactStore(settings.artifact_root, settings.cache))
    results = benchmarks or (BENCHMARKS if BENCHMARKS.is_dir() else None)
    start = build(Site(records, results), (folder or settings.home / "site").expanduser().absolute())
    print(f"Site                                      {start}")
    if open_it and not webbrowser.open(start.as_uri()):
        print("newsjuice: no browser could be started: open the file above in one.", file=sys.stderr)
    return start
