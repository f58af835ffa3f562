"""The pages: whole whatever is there, without scripts or requests, with links that lead somewhere, readable by anyone."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from newsjuice_pipelines.runtime.artifacts import ArtifactStore
from newsjuice_pipelines.site.catalogue import PAGES
from newsjuice_pipelines.site.pages import NAVIGATION, Site, render
from newsjuice_pipelines.site.records import Records

Element = tuple[str, dict[str, str]]


def elements(html: str) -> list[Element]:
    """Every element with its attributes, in order."""
    found: list[Element] = []

    class Finder(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, {name: value or "" for name, value in attrs}))

    Finder().feed(html)
    return found


def words(html: str) -> str:
    """The text of a page, in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.split("</style>")[1]).split())


def test_a_site_without_any_artefact_is_whole_and_says_how_to_get_each(store: ArtifactStore) -> None:
    pages = render(Site(Records(store), None))

    assert {file for file, _ in NAVIGATION} <= set(pages)
    assert "no verdict yet" in pages["index.html"]
    for name in (name for names in PAGES.values() for name in names):
        page = words(pages[f"{name.replace('_', '-')}.html"])
        assert f"{name} is not materialised. Run “newsjuice run --select {name}”" in page


def test_every_link_leads_to_a_page_and_a_place_that_are_there(sample: Site) -> None:
    pages = render(sample)
    places = {file: {found["id"] for _, found in elements(html) if "id" in found} for file, html in pages.items()}

    for file, html in pages.items():
        for link in (found["href"] for tag, found in elements(html) if tag == "a"):
            target, _, place = link.partition("#")
            assert (target or file) in pages, f"{file} links to {link}"
            assert not place or place in places[target or file], f"{file} links to {link}"


def test_no_page_holds_a_script_or_asks_for_anything_outside(sample: Site) -> None:
    for file, html in render(sample).items():
        tags = elements(html)
        assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}, file
        assert not [name for _, found in tags for name in found if name.startswith("on")], file
        sources = [found[name] for tag, found in tags for name in ("src", "href", "srcset") if name in found and tag != "a"]
        assert all(source.startswith("data:") for source in sources), file
        assert "@import" not in html
        assert "url(" not in html
        policy = next(found["content"] for tag, found in tags if found.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'")


def test_article_text_and_facts_stay_text(sample: Site) -> None:
    pages = render(sample)

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages["latency-report.html"]
    assert "enough &lt;b&gt;scripts&lt;/b&gt;" in pages["index.html"]
    assert "b" not in {tag for html in pages.values() for tag, _ in elements(html)}


def test_both_verdicts_their_criteria_and_what_to_do_are_on_the_first_page(sample: Site) -> None:
    page = words(render(sample)["index.html"])

    assert "do not adopt 1 of 3 criteria passed, against thresholds v2" in page
    assert "adopt 1 of 1 criteria passed" in page
    assert "judged – not measured, required if measured" in page
    assert "Keep the hosted teacher" in page
    assert "5, must be 100" in page
    assert "Let it file alone" in page
    assert "0.98 s" in page


def test_pages_have_landmarks_one_title_and_headings_in_order(sample: Site) -> None:
    for file, html in render(sample).items():
        tags = elements(html)
        names = [tag for tag, _ in tags]
        assert ("html", {"lang": "en"}) in tags
        assert [names.count(name) for name in ("h1", "main", "header", "footer", "title")] == [1, 1, 1, 1, 1], file
        assert ("a", {"class": "skip", "href": "#content"}) in tags
        levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in pairwise(levels)), (file, levels)
        identities = [found["id"] for _, found in tags if "id" in found]
        assert len(identities) == len(set(identities)), file
        assert all(found.get("scope") in ("col", "row") for tag, found in tags if tag == "th"), file
        assert all(found.get("alt") for tag, found in tags if tag == "img"), file
        assert [found for tag, found in tags if tag == "a" and "aria-current" in found], file


def test_a_damaged_report_is_named_and_the_others_are_there(sample: Site, store: ArtifactStore) -> None:
    report = store.open("latency_report").path / "report.md"
    report.write_text("changed\n", encoding="utf-8")

    pages = render(sample)

    assert "checksum error in report.md: materialise 'latency_report' again" in words(pages["latency-report.html"]).replace(
        "&#39;", "'"
    )
    assert "Leaderboard" in pages["model-leaderboard.html"]


def test_a_damaged_decision_is_said_to_be_damaged(sample: Site, store: ArtifactStore) -> None:
    (store.open("podcast_decision").path / "facts.json").write_text("{}", encoding="utf-8")

    assert "checksum error in facts.json" in words(render(sample)["index.html"])


def test_each_classifier_has_its_reports_side_by_side(sample: Site) -> None:
    pages = render(sample)

    assert 'href="classifier-eval-report-minilm.html"' in pages["classifier.html"]
    assert "exported_classifier of minilm is not materialised" in words(pages["exported-classifier-minilm.html"])


def test_benchmarks_are_taken_from_their_folder(sample: Site) -> None:
    assert "newsjuice bench teacher" in words(render(sample)["benchmarks.html"])
    assert "Hours." in words(render(sample)["defects.html"])


def test_a_broken_benchmark_file_is_named(sample: Site) -> None:
    assert sample.benchmarks
    (sample.benchmarks / "defects.json").write_text("{", encoding="utf-8")

    with pytest.raises(ValueError, match=r"defects\.json"):
        render(sample)


def luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_stands_out_from_every_ground(store: ArtifactStore, scheme: int) -> None:
    style = render(Site(Records(store), None))["index.html"].split("</style>")[0]
    block = style.split(":root {")[scheme + 1].split("}")[0]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))

    pairs = [(text, ground) for text in ("ink", "muted", "accent") for ground in ("ground", "surface", "sunken")]
    pairs += [(state, ground) for state in ("good", "bad", "wait") for ground in ("surface", f"{state}-ground")]
    for text, ground in pairs:
        darker, lighter = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_pages_hold_no_path_of_this_machine(sample: Site, tmp_path: Path) -> None:
    assert all(str(tmp_path) not in html for html in render(sample).values())
