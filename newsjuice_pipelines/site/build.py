"""The site on disk: built beside its folder and put in place as a whole, so that a reader never sees half of it."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from newsjuice_pipelines.runtime.artifacts import TEMPORARY
from newsjuice_pipelines.site.pages import Site, render

START = "index.html"
MARKER = ".newsjuice-site"  # a folder without it is not ours to replace


class NotOurs(ValueError):
    """The folder for the site holds something else."""


def build(site: Site, folder: Path) -> Path:
    """Write the whole site into `folder`, in place of an earlier one; returns its start page.

    Raises:
        NotOurs: `folder` is a file, or holds files that are no site of ours.
    """
    _refuse_what_is_not_ours(folder)
    pages = render(site)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{TEMPORARY}{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        fresh.mkdir()
        for name, html in pages.items():
            (fresh / name).write_text(html, encoding="utf-8")
        (fresh / MARKER).write_text("Made by `newsjuice report`; the next one replaces this folder.\n", encoding="utf-8")
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder / START


def _refuse_what_is_not_ours(folder: Path) -> None:
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / MARKER).exists()):
        return
    if folder.exists():
        raise NotOurs(f"{folder} is not empty and no report site: give --site a new folder, or empty this one.")


def _put_in_place(fresh: Path, folder: Path) -> None:
    earlier = fresh.with_name(f"{fresh.name}-earlier")
    if folder.exists():
        os.rename(folder, earlier)
    try:
        os.rename(fresh, folder)
    except OSError:
        if earlier.exists() and not folder.exists():
            os.rename(earlier, folder)
        raise
    finally:
        shutil.rmtree(earlier, ignore_errors=True)
