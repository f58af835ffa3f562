"""Measures of scripts."""

import json
from pathlib import Path

import pytest

from newsjuice_pipelines.podcast.judging.evaluate import (
    FAILURE_KINDS,
    cluster_interval,
    lead_script,
    measure_script,
    rouge_l,
    summarise,
)

WORDS = [
    "the",
    "council",
    "met",
    "on",
    "a",
    "cold",
    "evening",
    "to",
    "hear",
    "what",
    "engineers",
    "had",
    "found",
    "under",
    "an",
    "old",
    "bridge",
    "beside",
    "our",
    "river",
    "and",
    "nobody",
    "in",
    "that",
    "crowded",
    "room",
    "expected",
    "good",
    "news",
    "because",
    "every",
    "earlier",
    "survey",
    "since",
    "the",
    "great",
    "flood",
    "had",
    "pointed",
    "toward",
    "costly",
    "work",
]
GOOD = " ".join(["Welcome back.", *WORDS, "and yet the report", *reversed(WORDS)]) + "."


def failures(script: str) -> list[str]:
    measures = measure_script(script)
    return [kind for kind in FAILURE_KINDS if getattr(measures, kind)]


def test_a_whole_script_passes() -> None:
    assert failures(GOOD) == []
    assert measure_script(GOOD).passes


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (GOOD[:-1] + " and then", ["cut_off"]),
        (GOOD + " It was a very long night for all of them." * 2, ["looping"]),
        (GOOD + " We will see" * 4 + ".", ["looping"]),
        (GOOD + "\n### Response\nWelcome back.", ["markers"]),
        (GOOD + " <|im_end|> Done.", ["markers"]),
        ("Response: " + GOOD, ["markers"]),
        ("Welcome back. Goodbye.", ["too_short"]),
        ("", ["cut_off", "too_short"]),
        (" ".join(f"Word{number}." for number in range(301)), ["too_long"]),
    ],
)
def test_each_failure_is_told_apart(script: str, expected: list[str]) -> None:
    assert failures(script) == expected


def test_a_script_that_talks_about_a_response_holds_no_marker() -> None:
    assert not measure_script("The mayor's response was short: no.").markers


def test_names_are_supported_by_the_words_of_the_article() -> None:
    article = "Ana Lopez met the mayor of Bruges."

    measures = measure_script("Today Ana Lopez's visit to Bruges ended. Then Karl Weiss came.", article)

    assert measures.names_supported == pytest.approx(3 / 5)


def test_invented_names_are_not_supported() -> None:
    assert measure_script("We met Karl Weiss.", "Ana Lopez met the mayor.").names_supported == 0


def test_accents_and_lower_case_words_are_no_names() -> None:
    assert measure_script("So the café in élan closed.", "A bar closed.").names_supported is None


def test_numbers_may_be_written_out_in_the_article() -> None:
    measures = measure_script("It cost 1,200 euros for 3 days and 7 nights.", "It cost 1200 euros for three days.")

    assert measures.numbers_supported == pytest.approx(2 / 3)


def test_copied_sequences_are_a_share_of_the_script() -> None:
    article = "one two three four five six"

    assert measure_script("one two three four five six", article).copied_5 == 1
    assert measure_script("six five four three two one", article).copied_5 == 0


def test_rouge_l_follows_the_longest_common_subsequence() -> None:
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("same words here", "Same words, here.") == 1
    assert rouge_l("", "words") == 0


def test_the_lead_baseline_takes_whole_sentences_up_to_its_limit() -> None:
    assert lead_script("One two three. Four five. Six.", max_words=5) == "One two three. Four five."
    assert lead_script("One two three four.", max_words=2) == "One two three four."


def test_the_interval_resamples_articles_and_not_scripts() -> None:
    values = [float(number % 2) for number in range(40) for _ in range(25)]
    by_article = cluster_interval(values, [str(index // 25) for index in range(1000)], seed=1)
    by_script = cluster_interval(values, [str(index) for index in range(1000)], seed=1)

    assert by_article is not None
    assert by_script is not None
    assert by_article[1] - by_article[0] > 3 * (by_script[1] - by_script[0])


def test_few_articles_give_a_mean_without_an_interval() -> None:
    summary = summarise([measure_script(GOOD)] * 4, ["a", "b", "c", "c"])

    assert summary["passes"] == {"value": 1.0, "low": None, "high": None, "scripts": 4}


def test_what_no_script_allows_to_measure_is_none() -> None:
    assert summarise([measure_script("No numbers.", "None.")], ["a"])["numbers_supported"]["value"] is None


def test_the_failures_of_the_original_student_are_found_again(real_data: Path) -> None:
    path = real_data / "original_student_outputs.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {real_data}")
    scripts = [json.loads(line)["script"] for line in path.read_text(encoding="utf-8").splitlines()]

    measures = [measure_script(script) for script in scripts]

    shares = {kind: sum(getattr(entry, kind) for entry in measures) / len(measures) for kind in FAILURE_KINDS}
    assert shares["cut_off"] == pytest.approx(0.77, abs=0.04)
    assert shares["markers"] == pytest.approx(0.14, abs=0.03)
    assert shares["too_short"] == pytest.approx(0.33, abs=0.02)
    assert shares["too_long"] == pytest.approx(0.14, abs=0.02)
    # The earlier check called five words that come twice a loop (29 %), which blames ordinary prose as well.
    assert 0.15 < shares["looping"] < 0.29
    assert sum(entry.passes for entry in measures) / len(measures) == pytest.approx(0.17, abs=0.04)


def test_human_news_hardly_ever_counts_as_looping(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    articles = [" ".join(json.loads(line)["content"].split()[:250]) for line in lines]

    assert sum(measure_script(text).looping for text in articles) / len(articles) < 0.03
