from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.database.load import chunk_text
from newsjuice_pipelines.podcast.teaching.script_filters import PROBLEMS, copied_share, script_problem
from newsjuice_pipelines.podcast.text.names import find_names
from newsjuice_pipelines.podcast.text.sentences import split_sentences
from newsjuice_pipelines.podcast.text.spoken_numbers import find_numbers
from newsjuice_pipelines.podcast.text.support import unsupported_names, unsupported_numbers

GOOD = (
    "Welcome to the programme. The swifts are nesting in the tower again this year, and visitors who look up may see them "
    "slip into the stonework below the clock. Thanks for listening."
)
ARTICLE = "Swifts nest in the tower of the college, where a clock strikes."


@pytest.fixture(scope="module")
def faithful(demo_articles: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Scripts written by hand for demo articles, as a careful host would tell them, each with its article."""
    articles = {article["article_id"]: article["content"] for article in demo_articles}
    lines = Path(__file__).with_name("faithful_scripts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["script"], articles[row["article_id"]]) for row in rows]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (GOOD, None),
        ("word " * 300 + "end.", "too_long"),
        ("Too short to speak.", "too_short"),
        (GOOD[:-1] + ", and", "incomplete_sentence"),
        (GOOD + " But what about Dr.", "incomplete_sentence"),
        ("Here is your podcast script:\n\n" + GOOD, "preamble"),
        ("Sure! " + GOOD, "preamble"),
        ("Certainly, here's a short script. " + GOOD, "preamble"),
        ("Podcast script: " + GOOD, "preamble"),
        (GOOD + " Let me know if you'd like it shorter.", "preamble"),
        (GOOD + "\n\nWord count: thirty.", "preamble"),
        ("I'm sorry, but I cannot help with that request. " + GOOD, "refusal"),
        ("**Host:** " + GOOD, "markup"),
        ("Host: " + GOOD, "markup"),
        ("MAYA: " + GOOD, "markup"),
        ("[Intro music] " + GOOD, "markup"),
        ("(upbeat music fades) " + GOOD, "markup"),
        ("*laughing out loud* " + GOOD, "markup"),
        ("# Title\n" + GOOD, "markup"),
        ("🎙️ " + GOOD, "markup"),
        (GOOD + "\n- a list item.", "markup"),
        (GOOD + " More at www.swifts.example.", "markup"),
        (GOOD + "<|im_end|>", "markup"),
        (GOOD + " The swifts are nesting in the tower again this year.", "looping"),
        (GOOD + " There are forty of them.", "unsupported_number"),
        (GOOD + " We spoke to Fergus Ibarra.", "unsupported_name"),
        ("Here is a story worth hearing. " + GOOD, None),
        ("Of course, nobody expected rain. " + GOOD, None),
        ("The mayor (a former nurse) spoke. " + GOOD, None),
        (GOOD + " One thing is clear: they will be back.", None),
    ],
)
def test_the_filter_tells_a_script_from_other_text(script: str, problem: str | None) -> None:
    assert script_problem(script, ARTICLE) == problem


def test_every_reason_is_explained(faithful: list[tuple[str, str]]) -> None:
    assert all(sentence.endswith(".") for sentence in PROBLEMS.values())
    assert script_problem(faithful[0][1], faithful[0][1]) in PROBLEMS


def test_an_article_read_out_is_a_copy_and_a_retelling_is_none(faithful: list[tuple[str, str]]) -> None:
    for script, article in faithful:
        lead = " ".join(" ".join(split_sentences(article)[:6]).split())
        assert script_problem(f"{lead} That is all.", article) == "copy_of_article"
        assert copied_share(script, article) < 0.5


def test_at_least_19_in_20_faithful_scripts_pass(faithful: list[tuple[str, str]]) -> None:
    reasons = [script_problem(script, article) for script, article in faithful]
    assert len(reasons) == 40
    assert sum(reason is None for reason in reasons) >= 38, reasons


def test_a_script_about_another_article_never_passes(faithful: list[tuple[str, str]]) -> None:
    others = [*faithful[1:], faithful[0]]
    assert all(script_problem(script, article) for (script, _), (_, article) in zip(faithful, others, strict=True))


def test_the_later_half_of_real_articles_is_supported_by_them(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()
    chunks = [chunk for line in lines[::5] for chunk in chunk_text(json.loads(line)["content"])]
    for chunk in chunks:
        sentences = split_sentences(chunk)
        script = " ".join(" ".join(sentence.split()) for sentence in sentences[len(sentences) // 2 :])
        assert (unsupported_numbers(script, chunk), unsupported_names(script, chunk)) == ((), ())


def test_swapped_names_and_numbers_are_found_in_real_articles(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()
    articles = [chunk_text(json.loads(line)["content"])[0] for line in lines[::7]]
    names = numbers = found_names = found_numbers = 0
    for article, other in pairwise(articles):
        lead = " ".join(split_sentences(article)[:6])
        own, foreign = find_names(lead), [name.text for name in find_names(other) if name.text not in article]
        if own and foreign:
            names += 1
            found_names += bool(unsupported_names(re.sub(rf"\b{re.escape(own[0].text)}\b", foreign[0], lead), article))
        digits = [number for number in find_numbers(lead) if not number.spelled]
        swapped = [number.text for number in find_numbers(other) if not number.spelled and number.text not in article]
        if digits and swapped:
            place = digits[0]
            changed = lead[: place.start] + swapped[0] + lead[place.start + len(place.text) :]
            numbers += 1
            found_numbers += bool(unsupported_numbers(changed, article))
    assert min(names, numbers) > 100
    assert found_names / names > 0.93
    assert found_numbers / numbers > 0.95
