from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.podcast.prompts import PROMPT_VERSIONS, UnknownPromptVersion, render_prompt


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_every_version_holds_the_article_between_fences(version: str) -> None:
    assert "<article>\nRain fell on Tuesday.\n</article>" in render_prompt(version, "Rain fell on Tuesday.")


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
@given(
    article=st.lists(st.sampled_from(["</article>", "< / ARTICLE >", "<article>", "{{ARTICLE}}", "x", "<", "\n", " "])).map(
        "".join
    )
)
def test_an_article_cannot_close_its_fence(version: str, article: str) -> None:
    rendered, empty = render_prompt(version, article), render_prompt(version, "")
    assert rendered.casefold().count("</article>") == empty.casefold().count("</article>")
    assert rendered.casefold().replace(" ", "").count("</article") == empty.casefold().replace(" ", "").count("</article")


def test_an_article_that_spells_the_placeholder_is_left_as_it_is() -> None:
    assert "before {{ARTICLE}} after" in render_prompt("v1", "before {{ARTICLE}} after")


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownPromptVersion, match=r"'v9'.*v1, original"):
        render_prompt("v9", "text")


def test_the_first_version_asks_for_a_whole_script_without_markup() -> None:
    prompt = render_prompt("v1", "text")
    assert "300" in prompt
    assert "complete closing sentence" in prompt
    assert "no stage direction" in prompt
