"""A real browser: Debian's Chromium, driven by Playwright, which downloads nothing here; and where its pictures go."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = os.environ.get("NEWSJUICE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


# Of a module, not of the session: while Playwright is open, no other test of this process could start an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:  # noqa: F821  # known where Playwright is installed only
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by NEWSJUICE_CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go: NEWSJUICE_SCREENSHOTS, or build/screenshots."""
    folder = Path(os.environ.get("NEWSJUICE_SCREENSHOTS") or PROJECT / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
