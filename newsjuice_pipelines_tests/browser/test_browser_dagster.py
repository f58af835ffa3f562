"""Dagster's web UI on our definitions, as a person uses it: the graph, an asset materialised by clicking, a backfill, a plot."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.site.catalogue import ASSETS

pytestmark = pytest.mark.whole_system

START_S, RUN_S, SHOWN_MS = 600.0, 600.0, 180_000  # for a machine with much else to do; a quiet one needs a tenth
A_DAY = re.compile(r"^\d{4}-\d\d-\d\d$")
DAYS = ("2026-09-16", "2026-09-17")  # of the demo corpus, both with articles


def within(seconds: float, what: str, done: Callable[[], bool]) -> None:
    """Wait until `done`, and fail with `what` when it takes longer than the generous deadline."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


@dataclass(frozen=True)
class WebUI:
    """A running web UI and the artefacts of its home."""

    url: str
    store: ArtifactStore

    def is_there(self, key: str) -> bool:
        """Whether the artefact is in force."""
        return self.store.current_version(key) is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def web_ui(browser: Any) -> Iterator[WebUI]:
    """`newsjuice dev` in a home of its own; it needs a browser, or nothing is started."""
    folder = Path(tempfile.mkdtemp(prefix="njui", dir="/tmp"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEWSJUICE_", "DAGSTER", "WANDB"))}
    variables = {**kept, "NEWSJUICE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    port = free_port()
    command = [sys.executable, "-m", "newsjuice_pipelines.cli", "dev", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, start_new_session=True, cwd=folder, env=variables, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert server.poll() is None, (folder / "log").read_text(encoding="utf-8", errors="replace")
        return answers(f"{url}/server_info")

    try:
        within(START_S, "the web UI answers", is_up)
        yield WebUI(url, ArtifactStore(str(folder / "home" / "artifacts"), folder / "cache"))
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(SHOWN_MS)
    yield context.new_page()
    context.close()


def open_partitions(page: Any, web_ui: WebUI, asset: str, days: str) -> Any:
    """The dialog that launches partitions of an asset, with `days` chosen, in the UI's own notation."""
    page.goto(f"{web_ui.url}/assets/{asset}")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Launch runs to materialize").wait_for()
    dialog.get_by_text(A_DAY).first.wait_for()
    clear = dialog.get_by_text("Clear", exact=True)
    if clear.count():  # it opens on the latest 90 days where there are any, and the corpus may be older
        clear.click()
    field = dialog.get_by_role("textbox").first
    field.fill(days)
    field.press("Enter")
    return dialog


def reload_until(page: Any, url: str, wanted: Any) -> None:
    """Open `url` until `wanted` is on it: an artefact is there before the event that tells of it."""

    def is_shown() -> bool:
        page.goto(url)
        page.wait_for_timeout(5_000)
        return bool(wanted.count())

    within(RUN_S, f"{url} shows {wanted}", is_shown)


@pytest.mark.parametrize("group", ["podcast", "classification"])
def test_the_graph_of_a_group_shows_every_asset_by_name(web_ui: WebUI, page: Any, pictures: Path, group: str) -> None:
    page.set_viewport_size({"width": 4200, "height": 2400})  # from a certain size on the names are not shortened
    page.goto(f"{web_ui.url}/asset-groups~group%3A%22{group}%22/")

    for asset in (asset.name for asset in ASSETS if asset.group == group):
        page.locator(f'[data-tooltip="{asset}"]').get_by_text(asset, exact=True).wait_for()
    page.get_by_text("Loading").first.wait_for(state="hidden")
    page.screenshot(path=pictures / f"dagster-graph-{group}.png")


def test_an_asset_is_materialised_by_clicking(web_ui: WebUI, page: Any, pictures: Path) -> None:
    page.goto(f"{web_ui.url}/assets/huffpost_articles")

    page.get_by_role("button", name="Materialize").first.click()

    within(RUN_S, "huffpost_articles is materialised", lambda: web_ui.is_there("huffpost_articles"))
    reload_until(page, page.url, page.get_by_text("Row count"))
    assert page.get_by_text("504", exact=True).first.is_visible(), "the packaged headlines are counted"
    assert page.get_by_text("short_description").first.is_visible(), "their columns are named"
    page.screenshot(path=pictures / "dagster-asset.png")


def test_a_backfill_over_two_days_is_launched_and_its_plot_is_seen(web_ui: WebUI, page: Any, pictures: Path) -> None:
    dialog = open_partitions(page, web_ui, "article_chunks", f"[{DAYS[0]}...{DAYS[1]}]")
    page.screenshot(path=pictures / "dagster-backfill.png")
    dialog.get_by_role("button", name="Launch backfill").click()

    within(RUN_S, "the chunks of two days", lambda: all(web_ui.is_there(f"article_chunks/{day}") for day in DAYS))

    dialog = open_partitions(page, web_ui, "teacher_scripts", DAYS[0])
    dialog.get_by_role("button", name="Launch 1 run").click()
    within(RUN_S, "the scripts of a day", lambda: web_ui.is_there(f"teacher_scripts/{DAYS[0]}"))
    row = page.get_by_role("row").filter(has_text="plot: outcomes")
    reload_until(page, f"{web_ui.url}/assets/teacher_scripts?view=partitions&partition={DAYS[0]}", row)
    row.get_by_text("Show Markdown").click()
    plot = page.get_by_role("dialog").locator("img")
    plot.wait_for()

    assert plot.evaluate("image => image.naturalWidth") > 300
    page.screenshot(path=pictures / "dagster-plot.png")
