"""The report site in a browser: on a phone and a desktop, light and dark, by keyboard, without a request to anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.runtime.artifacts import ArtifactStore, Draft
from newsjuice_pipelines.runtime.reports import markdown_table, new_figure, save_figure
from newsjuice_pipelines.site.build import build
from newsjuice_pipelines.site.pages import Site
from newsjuice_pipelines.site.records import Records

pytestmark = pytest.mark.whole_system

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

CRITERIA = [
    {"name": f"criterion {number}", "required": True, "why": "why", "status": status, "change": "5 must become 100"}
    for number, status in enumerate(("pass", "fail", "not measured"))
]
DECISION = {"decision": "do not adopt", "thresholds": "v2", "reasons": ["criterion 1"], "criteria": CRITERIA}

# Text whose colour is too close to what is behind it, by the formula of WCAG 2: ratio below 4.5, or 3 for large text.
FAINT_TEXT = """() => {
  const shares = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = shares(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const svg = element.closest('svg');
    const ink = light(shares(svg ? style.fill : style.color));
    const ground = light(behind(svg ? svg.closest('figure') : element));
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (ratio < (size >= 24 || (size >= 18.7 && style.fontWeight >= 700) ? 3 : 4.5))
      faint.push(ratio.toFixed(2) + ' ' + walker.currentNode.textContent.trim().slice(0, 40));
  }
  return faint;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a site over a few artefacts."""
    folder = tmp_path_factory.mktemp("site")
    store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
    wide = markdown_table(["model", *(f"measure {number}" for number in range(12))], [["minilm", *range(12)]])
    report = f"# Latency\n\n{wide}\n\n![Where the time goes](latency.png)\n\n## Examples\n\n> {'0' * 600}\n\n## More\n\n## End\n"

    def publish(key: str, facts: dict[str, Any], markdown: str, **inputs: str) -> str:
        def fill(draft: Draft) -> dict[str, Any]:
            (draft.path / "report.md").write_text(markdown, encoding="utf-8")
            figure, (axis,) = new_figure()
            axis.plot([1, 2, 3], [2, 1, 3])
            save_figure(figure, draft.path / "latency.png")
            return facts

        return store.publish(key, {"code_version": "1", "config": {"seed": 42}, "inputs": inputs}, fill).version

    latency = publish("latency_report", {"single_stream": {"latency_p50_s": 0.98}}, report)
    publish("podcast_decision", DECISION, "# Decision: do not adopt\n\nWords.\n", latency_report=latency)
    publish("classifier_decision", {**DECISION, "decision": "adopt"}, "# Decision: adopt\n\nWords.\n")
    benchmarks = folder / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "defects.json").write_text(json.dumps({}))
    (benchmarks / "defects.md").write_text(f"# Defects\n\n{wide}\n", encoding="utf-8")
    return build(Site(Records(store), benchmarks), folder / "site").parent


@pytest.fixture(params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def viewport(request: pytest.FixtureRequest) -> dict[str, int]:
    viewport: dict[str, int] = request.param
    return viewport


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    scheme: str = request.param
    return scheme


@pytest.fixture
def page(browser: Any, viewport: dict[str, int], scheme: str) -> Iterator[Any]:
    context = browser.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=2)
    yield context.new_page()
    context.close()


def test_every_page_fits_its_screen_is_readable_and_asks_for_nothing(page: Any, scheme: str, site: Path, pictures: Path) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))

    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path.name} is wider than the screen"
        assert page.evaluate(FAINT_TEXT) == [], path.name
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), path.name

    assert complaints == [], "the page's own policy must not be broken"
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri() for path in site.glob("*.html")}
    width = page.viewport_size["width"]
    for name in ("index", "latency-report", "lineage"):
        page.goto((site / f"{name}.html").as_uri())
        page.screenshot(path=pictures / f"site-{name}-{width}-{scheme}.png")


def test_light_and_dark_follow_the_reader(browser: Any, site: Path) -> None:
    def ground(scheme: str) -> str:
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto((site / "index.html").as_uri())
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
        return colour

    assert ground("light") != ground("dark")


def test_a_reader_gets_from_the_verdict_to_its_figures_and_to_what_they_were_made_from(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())

    page.get_by_role("link", name="The whole decision, with every figure").first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "Decision: do not adopt"
    page.get_by_role("link", name="latency_report").click()

    assert page.url.endswith("lineage.html#latency_report")
    assert page.locator("#latency_report").is_visible()
    page.close()


def test_the_keyboard_reaches_the_content_first_and_shows_where_it_is(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "latency-report.html").as_uri())

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0"), "it is shown once it has the focus"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")

    assert page.evaluate("document.activeElement.id") == "content"
    page.close()


def test_the_site_works_without_scripts(browser: Any, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "lineage.html").as_uri())

    assert page.get_by_role("link", name="podcast_decision").first.is_visible()
    context.close()
