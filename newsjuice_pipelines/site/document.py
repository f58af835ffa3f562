"""Markdown of a report as HTML: raw HTML and links stay text, since articles are untrusted; pictures become data URIs; tables get
headers and a box of their own to scroll in.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

WIDEST_BARE_NUMBER, WIDEST_NUMBER, WIDEST_PHRASE = 16, 32, 60  # characters; Markdown aligns columns whatever they hold
NO_VALUE = ("", "–", "not measured")
NUMBER = re.compile(r"[<>+\-−$]?\s*[+\-−]?\d")
STATUS_CLASSES = {"pass": "good", "passed": "good", "fail": "bad", "failed": "bad", "not measured": "open"}
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A converted page: its title (the first heading of level 1, taken out of `html`), and its parts as (anchor, text)."""

    title: str | None
    html: str
    parts: tuple[tuple[str, str], ...]


def convert(markdown: str, pictures: Mapping[str, bytes], *, level: int = 2, prefix: str = "") -> Document:
    """Convert a report.

    Args:
        markdown: CommonMark with tables; YAML in front of it is left out.
        pictures: PNG files by name. A picture that is not among them becomes its description: nothing is fetched.
        level: of the headings that are of level 2 in the report.
        prefix: put before every anchor, so that several documents fit on one page.
    """
    parser = _parser()
    environment: dict[str, Any] = {"pictures": pictures}
    tokens = parser.parse(FRONT_MATTER.sub("", markdown), environment)
    tokens, title = _without_title(tokens)
    parts = _number_headings(tokens, level, prefix)
    _dress_tables(tokens, title)
    _frame_pictures(tokens, pictures)
    return Document(title, parser.renderer.render(tokens, parser.options, environment), tuple(parts))


def data_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def anchor(text: str) -> str:
    """A text as the name of an anchor or file: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])
    parser.add_render_rule("image", _render_image)
    parser.add_render_rule("table_open", _render_table_open)
    parser.add_render_rule("table_close", _render_table_close)
    return parser


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))


def _without_title(tokens: list[Token]) -> tuple[list[Token], str | None]:
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            return tokens[:place] + tokens[place + 3 :], _text(tokens[place + 1])
    return tokens, None


def _number_headings(tokens: Sequence[Token], level: int, prefix: str) -> list[tuple[str, str]]:
    """Shift and level the headings, so that none is skipped, and give each an anchor; returns those of the first level."""
    parts: list[tuple[str, str]] = []
    seen: dict[str, int] = {}
    above = level - 1
    for place, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        here = min(max(int(token.tag[1]) - 2 + level, level), above + 1, 6)
        above = here
        text = _text(tokens[place + 1])
        name = prefix + anchor(text)
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}-{seen[name]}"
        token.tag = tokens[place + 2].tag = f"h{here}"
        token.attrSet("id", name)
        if here == level:
            parts.append((name, text))
    return parts


def _dress_tables(tokens: Sequence[Token], title: str | None) -> None:
    """Give tables a label, header cells their scope, prose columns the left side, and statuses their colour."""
    label, number = title or "table", 0
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            label, number = _text(tokens[place + 1]), 0
        if token.type != "table_open":
            continue
        number += 1
        end = next(index for index in range(place, len(tokens)) if tokens[index].type == "table_close")
        token.meta["label"] = label if number == 1 else f"{label}, {number}"
        _dress_table(tokens[place:end])


def _dress_table(table: Sequence[Token]) -> None:
    rows: list[list[int]] = []
    for place, token in enumerate(table):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(place)
    kinds = [_kind([_text(table[place + 1]) for place in column]) for column in _columns(rows[1:])]
    for number, row in enumerate(rows):
        for column, place in enumerate(row):
            opened, text = table[place], _text(table[place + 1])
            opened.attrs.pop("style", None)
            classes = [kinds[column] if column < len(kinds) else "", STATUS_CLASSES.get(text, "") if number else ""]
            if any(classes):
                opened.attrSet("class", " ".join(filter(None, classes)))
            if number == 0:
                opened.attrSet("scope", "col")
            elif column == 0:
                opened.tag = "th"
                opened.attrSet("scope", "row")
                _closing(table, place).tag = "th"


def _kind(cells: Sequence[str]) -> str:
    """How a column is set: numbers to the right, with room for their intervals, words to the left, sentences with more room."""
    longest = max(map(len, cells), default=0)
    told = [text for text in cells if text not in NO_VALUE]
    numbers = sum(bool(NUMBER.match(text)) for text in told)
    if cells and longest <= WIDEST_NUMBER and numbers * 2 >= len(told):
        return "number" if longest <= WIDEST_BARE_NUMBER else "interval"
    return "prose" if longest > WIDEST_PHRASE else "phrase" if longest > WIDEST_BARE_NUMBER else ""


def _columns(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    count = max((len(row) for row in rows), default=0)
    return [[row[column] for row in rows if column < len(row)] for column in range(count)]


def _closing(table: Sequence[Token], opened: int) -> Token:
    return next(token for token in table[opened:] if token.type in ("td_close", "th_close"))


def _frame_pictures(tokens: Sequence[Token], pictures: Mapping[str, bytes]) -> None:
    """A paragraph that is one picture becomes a figure."""
    for place, token in enumerate(tokens):
        children = token.children or []
        if token.type == "inline" and len(children) == 1 and children[0].type == "image":
            if children[0].attrs.get("src") not in pictures or tokens[place - 1].type != "paragraph_open":
                continue
            tokens[place - 1].tag = tokens[place + 1].tag = "figure"
            tokens[place - 1].attrSet("class", "plot")


def _render_image(_self: Any, tokens: Sequence[Token], place: int, _options: Any, environment: Any) -> str:
    token = tokens[place]
    alternative = token.content or "picture"
    picture = environment["pictures"].get(token.attrs.get("src"))
    if picture is None:
        return f'<span class="muted">[picture: {escape(alternative)}]</span>'
    return f'<img src="{data_uri(picture)}" alt="{escape(alternative)}">'


def _render_table_open(_self: Any, tokens: Sequence[Token], place: int, _options: Any, _environment: Any) -> str:
    label = escape(f"Table: {tokens[place].meta['label']}")
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n<table>\n'


def _render_table_close(*_arguments: Any) -> str:
    return "</table>\n</div>\n"
