from __future__ import annotations

from typing import Any

import pytest
from markdown_it import MarkdownIt

from newsjuice_pipelines.podcast.training.chat_tokens import IGNORED_LABEL, encode_example
from newsjuice_pipelines.podcast.training.masked_rows import masked_rows

SCRIPT = "Welcome. The swifts are back. Goodbye."


def example(tokenizer: Any, article: str, script: str = SCRIPT) -> tuple[list[int], list[int]]:
    return encode_example(tokenizer, [{"role": "user", "content": article}], [{"role": "assistant", "content": script}])


def blocks(page: str) -> list[str]:
    """The code blocks of the page, and the proof that nothing else in it is HTML, a link or an image."""
    tokens = MarkdownIt("commonmark").parse(page)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"html_inline", "link_open", "image"} & set(inline)
    assert not any(token.type == "html_block" for token in tokens)
    return [token.content for token in tokens if token.type == "fence"]


def test_the_page_shows_what_is_trained_and_where_the_row_ends(tokenizer: Any) -> None:
    page = masked_rows(tokenizer, [example(tokenizer, "The swifts have returned.")])
    untrained, trained = blocks(page)
    assert "The swifts have returned." in untrained
    assert SCRIPT not in untrained
    assert trained == SCRIPT + "<|im_end|>\n"
    assert "The last trained token is the end token" in page


def test_a_row_without_its_end_token_is_marked(tokenizer: Any) -> None:
    ids, labels = example(tokenizer, "The swifts have returned.")
    assert "does not end with a trained end token" in masked_rows(tokenizer, [(ids[:-1], labels[:-1])])
    assert "does not end with a trained end token" in masked_rows(tokenizer, [(ids, [*labels[:-1], IGNORED_LABEL])])


def test_loss_over_the_prompt_shows_as_one_trained_block(tokenizer: Any) -> None:
    ids, _ = example(tokenizer, "The swifts have returned.")
    page = masked_rows(tokenizer, [(ids, ids)])
    assert len(blocks(page)) == 1
    assert "Not trained" not in page


def test_as_many_rows_as_asked_for_are_shown(tokenizer: Any) -> None:
    rows = [example(tokenizer, f"Report {number}.") for number in range(4)]
    assert masked_rows(tokenizer, rows, 3).count("## Row") == 3
    assert masked_rows(tokenizer, rows[:1]).count("## Row") == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "```\n<script>alert(1)</script>\n```\n",
        "````````\n# heading ![x](http://evil.example/x.png)",
        "~~~\n[link](javascript:alert(1))\n~~~",
        "\r```\r<img src=x onerror=alert(1)>",
        "a\u2028```\u2028<b>b</b>\x00\x1b[31m",
    ],
)
def test_no_article_can_format_the_page(tokenizer: Any, hostile: str) -> None:
    page = masked_rows(tokenizer, [example(tokenizer, hostile, f"Hello. {hostile} Goodbye.")])
    assert len(blocks(page)) == 2
    assert all(letter.isprintable() or letter in "\n\t" for letter in page)
