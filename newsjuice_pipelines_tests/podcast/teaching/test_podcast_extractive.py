from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from newsjuice_pipelines.database.load import chunk_text
from newsjuice_pipelines.podcast.teaching.extractive import ExtractiveTeacher
from newsjuice_pipelines.podcast.teaching.script_filters import script_problem
from newsjuice_pipelines.podcast.teaching.teacher import TeacherReply
from newsjuice_pipelines.podcast.text.sentences import ends_complete, split_sentences

ODD_PIECES = (
    *(
        "The rain fell.",
        "Twenty",
        "twenty-five men came.",
        "\n\n",
        "\n",
        " ",
        "Dr.",
        "U.S.",
        "No. 5",
        "“Quoted.”",
        "1.5m",
        "£600m",
    ),
    *(
        "and a half",
        "two hundred and",
        "hundred and three",
        "point",
        "fifth billion",
        "1990s",
        "’98",
        "IV",
        "3:30",
        "2004-05",
        "½",
    ),
    *(
        "Host:",
        "**bold**",
        "[music]",
        "https://a.example",
        "Karl Weiss",
        "AT&T",
        "G8",
        "TimeWarner",
        "O’Neill",
        "É",
        "ß",
        "\x00",
        "…",
    ),
    *("a", "The same eight words stand here once again.", "!", "?", ",", "one", "İ", "ﬁ", "٣", "²"),
)


def ask(article: str, **settings: Any) -> TeacherReply:
    return asyncio.run(ExtractiveTeacher(**settings).ask(article, timeout_s=1))


def test_scripts_of_the_demo_corpus_are_all_fit(demo_articles: list[dict[str, Any]]) -> None:
    for article in demo_articles:
        reply = ask(article["content"])
        assert reply.status == "ok"
        assert script_problem(reply.text, article["content"]) is None
        assert 60 <= len(reply.text.split()) <= 150


def test_scripts_of_real_news_are_fit_for_nearly_every_chunk(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()
    chunks = [chunk for line in lines[::5] for chunk in chunk_text(json.loads(line)["content"])]
    replies = [ask(chunk) for chunk in chunks]
    assert all(
        script_problem(reply.text, chunk) is None for reply, chunk in zip(replies, chunks, strict=True) if reply.status == "ok"
    )
    statuses = Counter(reply.status for reply in replies)
    assert statuses["ok"] / statuses.total() > 0.99
    assert set(statuses) <= {"ok", "empty"}


@given(st.lists(st.sampled_from(ODD_PIECES) | st.text(max_size=8), max_size=30).map(" ".join))
@example("")
@example("It rained for twenty\n\nfive days. " * 3)
@example("He paid a million and a half. Two and, point five oh. The third and fourth quarters rose.")
def test_whatever_the_text_a_script_is_fit_or_there_is_none(article: str) -> None:
    reply = ask(article)
    if reply.status == "ok":
        assert script_problem(reply.text, article) is None
    else:
        assert (reply.status, reply.text) == ("empty", "")
        assert reply.finish_reason


@given(st.lists(st.sampled_from([piece for piece in ODD_PIECES if piece.isprintable()]), max_size=30).map(" ".join))
def test_no_text_is_left_out_for_its_own_names_and_numbers(article: str) -> None:
    assert ask(article).finish_reason not in {"unsupported_number", "unsupported_name", "looping", "markup", "copy_of_article"}


def test_a_script_is_the_lead_of_its_article_in_a_frame(demo_articles: list[dict[str, Any]]) -> None:
    content = demo_articles[0]["content"]
    script = ask(content).text
    lead = " ".join(split_sentences(content)[0].split())
    assert "NewsJuice" in script[: script.index(lead)]
    assert ends_complete(script)


def test_the_answer_is_the_same_every_time_and_free(demo_articles: list[dict[str, Any]]) -> None:
    content = demo_articles[3]["content"]
    assert ask(content) == ask(content)
    assert ask(content).cost_usd == 0.0
    assert (ExtractiveTeacher().most_tokens(content), ExtractiveTeacher().most_usd(content)) == (0, 0.0)


def test_the_frame_varies_over_articles(demo_articles: list[dict[str, Any]]) -> None:
    assert len({ask(article["content"]).text[:40] for article in demo_articles}) == 4


def test_an_article_without_a_sentence_gives_an_empty_reply_not_a_frame() -> None:
    reply = ask("HEADLINE WORDS ONLY\n\nand a fragment")
    assert (reply.status, reply.text, reply.finish_reason) == ("empty", "", "NO_COMPLETE_SENTENCE")


def test_headings_links_and_cut_ends_stay_out() -> None:
    script = ask("THE HEADING\n\nRain fell on Monday. See https://rain.example for more. It stopped on Tues").text
    assert "Rain fell on Monday." in script
    assert not {"HEADING", "https://rain.example", "Tues"} & set(script.split())


def test_a_sentence_that_comes_twice_is_said_once() -> None:
    sentence = "The river came over its wall at high water that night."
    assert ask(f"{sentence} {sentence} Nobody was hurt.").text.count(sentence) == 1


@pytest.mark.parametrize("body_words", [0, 19, 151])
def test_a_body_that_no_script_can_have_is_refused(body_words: int) -> None:
    with pytest.raises(ValueError, match=rf"body_words is {body_words}: give 20 to 150"):
        ExtractiveTeacher(body_words=body_words)


def test_the_longest_body_is_no_copy_of_its_article(demo_articles: list[dict[str, Any]]) -> None:
    for article in demo_articles:
        assert ask(article["content"], body_words=150).status == "ok"
