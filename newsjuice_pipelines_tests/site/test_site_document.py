"""Markdown of a report as HTML: what an article can do to it, and what tables, headings and pictures become."""

import base64
from html.parser import HTMLParser

import pytest

from newsjuice_pipelines.site.document import convert

PNG = b"\x89PNG pretended"


def tags(html: str) -> list[str]:
    """The elements of a piece of HTML, as a browser would find them."""
    found: list[str] = []

    class Finder(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)

    Finder().feed(html)
    return found


@pytest.mark.parametrize(
    "attempt",
    [
        "<script>alert(1)</script>",
        "text <img src=x onerror=alert(1)> text",
        "<svg onload=alert(1)>",
        "[click](javascript:alert(1))",
        "[click](https://evil.example)",
        "<https://evil.example>",
        "![spy](https://evil.example/a.png)",
        "![spy](../../../etc/passwd)",
        '![a](b "c<script>")',
        "| a |\n| --- |\n| <b onclick=x>cell</b> |",
        "[a]: https://evil.example\n\n[a]",
    ],
)
def test_article_text_becomes_no_element_and_no_link(attempt: str) -> None:
    html = convert(attempt, {}).html

    assert set(tags(html)) <= {"p", "span", "div", "table", "thead", "tbody", "tr", "th", "td"}
    assert "href=" not in html


def test_a_picture_of_the_report_is_inside_the_page() -> None:
    html = convert("![Where the time goes](latency.png)\n", {"latency.png": PNG}).html

    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in html
    assert 'alt="Where the time goes"' in html
    assert '<figure class="plot">' in html


def test_a_picture_that_is_not_there_becomes_its_description() -> None:
    assert "[picture: Batches]" in convert("![Batches](batches.png)\n", {}).html


def test_the_first_title_is_taken_out_and_headings_skip_no_level() -> None:
    page = convert("# Latency\n\n## Cost\n\n#### Deep\n\n## Cost\n\n### Less\n", {})

    assert page.title == "Latency"
    assert page.parts == (("cost", "Cost"), ("cost-2", "Cost"))
    assert [tag for tag in tags(page.html) if tag[0] == "h"] == ["h2", "h3", "h2", "h3"]


def test_headings_move_down_below_a_heading_of_the_page() -> None:
    page = convert("# Bench\n\n## Part\n", {}, level=3, prefix="teacher-")

    assert '<h3 id="teacher-part">' in page.html


def test_table_headers_have_their_scope_and_words_do_not_stand_on_the_right() -> None:
    html = convert("| name | n | range | why |\n| --- | ---: | ---: | ---: |\n| a | 1,000 | 4.70 [4.60, 4.80] | b |\n", {}).html

    assert '<th scope="col">name</th>' in html
    assert '<th scope="row">a</th>' in html
    assert '<td class="number">1,000</td>' in html
    assert '<td class="interval">4.7' in html
    assert "<td>b</td>" in html
    assert 'role="region" tabindex="0" aria-label="Table: table"' in html


def test_statuses_have_a_colour_beside_their_word() -> None:
    html = convert("| a | status |\n| --- | ---: |\n| x | pass |\n| y | fail |\n", {}).html

    assert '<td class="good">pass</td>' in html
    assert '<td class="bad">fail</td>' in html


def test_front_matter_of_a_model_card_is_left_out() -> None:
    page = convert("---\nlibrary_name: peft\n---\n# Adapter\n\nWords.\n", {})

    assert page.title == "Adapter"
    assert "library_name" not in page.html


def test_a_fence_keeps_control_tokens_as_text() -> None:
    assert "&lt;|im_start|&gt;" in convert("```text\n<|im_start|>system\n```\n", {}).html
