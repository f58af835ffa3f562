"""Measures of scripts, on scripts that are made to fail in one known way and on real ones."""

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from newsjuice_pipelines.podcast.judging.evaluate import (
    FAILURE_KINDS,
    cluster_interval,
    lead_script,
    measure_script,
    quotation_support,
    rouge_l,
    summarise,
)
from newsjuice_pipelines.podcast.judging.intervals import article_clusters, quantile_estimate
from newsjuice_pipelines.podcast.teaching import extractive

STORY = (
    "The council met on a cold evening to hear what engineers had found under an old bridge beside the river. Nobody in that "
    "crowded room expected good news, because every earlier survey since the great flood had pointed toward costly work. This "
    "time the report was short. Two pillars have to be replaced before winter, and lorries must take the long way round until "
    "then. The mayor called it a small price for safety."
)
OPENING, CLOSING = "Welcome back to NewsJuice.", "That is the story for now."
GOOD = f"{OPENING} {STORY} {CLOSING}"
GERMAN = (
    "Der Stadtrat traf sich an einem kalten Abend, um zu hören, was die Ingenieure unter der alten Brücke am Fluss gefunden "
    "hatten. Niemand im vollen Saal rechnete mit guten Nachrichten, denn jede frühere Prüfung seit der großen Flut hatte auf "
    "teure Arbeiten gedeutet. Diesmal war der Bericht kurz. Zwei Pfeiler müssen vor dem Winter ersetzt werden, und Lastwagen "
    "müssen bis dahin den langen Weg nehmen. Der Bürgermeister nannte das einen kleinen Preis für die Sicherheit."
)


def failures(script: str) -> list[str]:
    return list(measure_script(script).failures)


def test_a_whole_script_passes() -> None:
    assert failures(GOOD) == []
    assert measure_script(GOOD).passes
    assert measure_script(GOOD).first_failure is None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (GOOD[:-1] + " and then", ["cut_off"]),
        (f"{OPENING} {STORY} We met Dr.", ["cut_off"]),
        (GOOD + " It was a very long night for all of them." * 2 + " Goodbye.", ["looping"]),
        (GOOD + " We will see" * 4 + ".", ["looping"]),
        (GOOD + "\n### Response\nWelcome back.", ["markers"]),
        (GOOD + " <|im_end|> Goodbye.", ["markers"]),
        ("Response: " + GOOD, ["markers"]),
        ("**Narrator (introduction):** " + GOOD, ["markers"]),
        (GOOD + " The script must be no longer than 300 words. Goodbye.", ["markers"]),
        ("[Intro music] " + GOOD, ["markers"]),
        ("ANNA: " + GOOD, ["markers"]),
        ("Sure! Here's a podcast script for you:\n\n" + GOOD, ["markers"]),
        ("# Podcast\n" + GOOD, ["markers"]),
        ("I am [Host Name]. " + GOOD, ["markers"]),
        ("- " + GOOD, ["markers"]),
        (GOOD + " I hope this script helps you.", ["markers"]),
        ("Welcome back. Goodbye.", ["too_short"]),
        (f"{OPENING} {' '.join(f'Word{number}.' for number in range(301))} {CLOSING}", ["too_long"]),
        (f"{STORY} The long way round takes ten minutes by lorry and twelve by bus. {CLOSING}", ["no_opening"]),
        (f"{OPENING} {STORY}", ["no_closing"]),
        ("", ["empty"]),
        (" \n\t", ["empty"]),
        (")", ["empty"]),
        (GERMAN, ["not_english"]),
    ],
)
def test_each_failure_is_told_apart(script: str, expected: list[str]) -> None:
    assert failures(script) == expected


def test_a_student_that_never_stops_fails_by_its_loop_first() -> None:
    measures = measure_script("We will see what happens next and " * 100)

    assert set(measures.failures) >= {"looping", "cut_off", "too_long"}
    assert measures.first_failure == "looping"


@pytest.mark.parametrize("script", ["__ " * 40, "_" * 400, "very " * 40, "很好" * 40])
def test_loops_without_sentences_or_spaces_are_loops(script: str) -> None:
    assert measure_script(script).looping


def test_the_first_failures_and_the_passes_add_up_to_all_scripts() -> None:
    scripts = [GOOD, "", GERMAN, STORY, GOOD[:-1], "Response: " + GOOD[:-1], "Hello."]

    firsts = Counter(measure_script(script).first_failure for script in scripts)

    assert sum(firsts.values()) == len(scripts)
    assert set(firsts) <= {None, *FAILURE_KINDS}
    assert firsts["markers"] == 1, "the markers come before the end that is cut off"


@pytest.mark.parametrize(
    "opening",
    [
        "Hello and good evening.",
        "Good morning, listeners, and thanks for being here on this cold and wet first day of a long week in November.",
        "Have you ever wondered what lies under an old bridge, and why it takes engineers so long to look at it properly?",
        "Let's talk about an old bridge, and about the engineers who have spent the whole of this autumn underneath it.",
        "An old bridge is in trouble.",
    ],
)
def test_a_greeting_an_address_or_a_spoken_headline_opens_a_script(opening: str) -> None:
    assert failures(f"{opening} {STORY} {CLOSING}") == []


@pytest.mark.parametrize(
    "closing",
    [
        "Thanks for listening.",
        "Until next time, goodbye.",
        "For now, the lorries go the long way round.",
        "That was your news in brief.",
        "We will keep an eye on it.",
        "Whether two pillars are enough remains to be seen.",
        "It is a reminder that old bridges need care.",
    ],
)
def test_thanks_a_goodbye_or_a_conclusion_closes_a_script(closing: str) -> None:
    assert failures(f"{OPENING} {STORY} {closing}") == []


def test_what_a_quoted_person_says_neither_opens_nor_closes_a_script() -> None:
    said = 'The mayor said on Monday evening in the town hall, for all to hear: "Welcome, we are glad to see you, thanks."'

    assert failures(f"{said} {STORY} {CLOSING}") == ["no_opening"]
    assert failures(f"{OPENING} {STORY} {said}") == ["no_closing"]


def test_the_country_is_not_the_pronoun() -> None:
    assert "no_opening" in failures(f"The US economy grew more slowly than expected in the third quarter of the year. {STORY}")


def test_every_frame_of_the_free_teacher_opens_and_closes() -> None:
    frames = [f"{first} {STORY} {last}" for first in extractive._OPENINGS for last in extractive._CLOSINGS]

    assert {tuple(failures(script)) for script in frames} == {()}


def test_the_free_teacher_passes_on_real_articles_and_their_lead_sentences_do_not(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()[:120]
    articles = [json.loads(line)["content"] for line in lines]
    replies = [asyncio.run(extractive.ExtractiveTeacher().ask(article, 5)) for article in articles]

    taught = [measure_script(reply.text, article) for reply, article in zip(replies, articles, strict=True) if reply.text]
    leads = [measure_script(lead_script(article)) for article in articles]

    assert len(taught) > 100
    assert all(measures.passes for measures in taught)
    assert sum(measures.no_opening or False for measures in leads) / len(leads) > 0.9
    assert sum(measures.no_closing or False for measures in leads) / len(leads) > 0.85


@pytest.mark.parametrize(
    "sentence",
    [
        "The mayor's response was short: no.",
        "The response should be swift.",
        "Question: who pays?",
        "Response to the flood: slow.",
        "Speaker of the House: he has left.",
        "Host nation Greece has a plan: it wins.",
    ],
)
def test_ordinary_prose_holds_no_marker(sentence: str) -> None:
    assert not measure_script(sentence).markers


@pytest.mark.parametrize("run", ["a" + "\n" * 50_000 + "b", "." * 50_000 + "a", " " * 50_000, "#" * 50_000, "('a" * 15_000])
def test_a_long_run_of_signs_takes_no_time(run: str) -> None:
    assert not measure_script(run, "An article.").passes


def test_word_lists_are_not_held_against_a_script_in_another_language() -> None:
    measures = measure_script(GERMAN, STORY)

    assert (measures.no_opening, measures.no_closing) == (None, None)
    assert (measures.names_supported, measures.numbers_supported) == (None, None)
    assert measures.copied_5 == 0


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


ARTICLE_WITH_QUOTATION = (
    "The mayor said: \u201cWe did not  expect this,\u201d and left. \u2018I don\u2019t know why\u2019, said Ann."
)
SAID = [
    marks.format("We did not expect this.")
    for marks in ("'{}'", "„{}“", "«{}»", "« {} »", "»{}«", "”{}”", "``{}''", "&quot;{}&quot;", "＂{}＂", "‘{}’", "“{}”")
]


@pytest.mark.parametrize(
    ("script", "found", "unsupported"),
    [
        ('She said, "we did not expect this."', 1, ()),
        ("She said, ‘We did not expect this’, and Ann: 'hm'.", 1, ()),
        ("Ann said: “I don't know why.”", 1, ()),
        ("Ann said: ‘I don’t know why’.", 1, ()),
        ("She said: “We did expect this.”", 1, ("We did expect this.",)),
        ("She said: “e did not expect thi”", 1, ("e did not expect thi",)),
        ("He reads “Good Girl” and says “no”.", 0, ()),
        ("It is 5\" long, and the river's bank, the mayor's house and the boys' school are old.", 0, ()),
        ("", 0, ()),
        *((f"She said: {said}", 1, ()) for said in SAID),
        *((f"She said: {said.replace('expect', 'burn')}", 1, ("We did not burn this.",)) for said in SAID),
        ('She said:"We did not burn this."', 1, ("We did not burn this.",)),
        ("‘We’ll burn all the players’ hospitals in town.’", 1, ("We'll burn all the players' hospitals in town.",)),
        ("'We'll burn all the players' hospitals in town.'", 1, ("We'll burn all the players' hospitals in town.",)),
        ("Rock 'n' roll is the boys' favourite, and 'tis the season for the girls'.", 0, ()),
        ("In the '90s the players', girls' and dogs' lives were good.", 0, ()),
    ],
)
def test_quotations_must_stand_in_the_article_word_for_word(script: str, found: int, unsupported: tuple[str, ...]) -> None:
    support = quotation_support(script, ARTICLE_WITH_QUOTATION)

    assert (support.found, support.unsupported) == (found, unsupported)


def test_copied_sequences_are_a_share_of_the_script() -> None:
    article = "one two three four five six"

    assert measure_script("one two three four five six", article).copied_5 == 1
    assert measure_script("six five four three two one", article).copied_5 == 0
    assert measure_script("well, Two Three four! seven", article).longest_copied_words == 3


def test_repetition_is_the_share_of_runs_that_came_before() -> None:
    measures = measure_script("a b c d e a b c d")

    assert measures.repeated_4 == pytest.approx(1 / 6)
    assert measures.distinct_2 == pytest.approx(5 / 8)


def test_rouge_l_follows_the_longest_common_subsequence() -> None:
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("same words here", "Same words, here.") == 1
    assert rouge_l("a b c d a b", "b a d c b a") == pytest.approx(2 * 3 / 12)
    assert rouge_l("", "words") == 0


def test_the_lead_baseline_takes_whole_sentences_up_to_its_limit() -> None:
    assert lead_script("One two three. Four five. Six.", max_words=5) == "One two three. Four five."
    assert lead_script("One two three four.", max_words=2) == "One two three four."


def test_an_article_of_thirty_thousand_words_is_measured_within_a_second() -> None:
    article = " ".join(f"The mayor of Place{number} said that {number} of the lorries were there." for number in range(2500))
    assert len(article.split()) == 30_000
    script = " ".join(article.split()[9000:9300])
    measure_script(GOOD)  # loads the language model

    start = time.perf_counter()
    measures = measure_script(script, article, article)
    stuck = measure_script("the of " * 200, article, article)

    assert time.perf_counter() - start < 2, "two scripts"
    assert (measures.copied_5, measures.longest_copied_words) == (1, 300)
    assert stuck.looping


def test_the_interval_resamples_articles_and_not_scripts() -> None:
    values = [float(number % 2) for number in range(40) for _ in range(25)]
    by_article = cluster_interval(values, [str(index // 25) for index in range(1000)], seed=1)
    by_script = cluster_interval(values, [str(index) for index in range(1000)], seed=1)

    assert by_article is not None
    assert by_script is not None
    assert by_article[1] - by_article[0] > 3 * (by_script[1] - by_script[0])


def test_a_quantile_has_an_interval_around_it() -> None:
    median = quantile_estimate([float(number) for number in range(101)], [str(number) for number in range(101)], 0.5, seed=1)

    assert median["value"] == 50
    assert 35 < median["low"] < 50 < median["high"] < 65


def test_few_articles_give_a_mean_without_an_interval() -> None:
    summary = summarise([measure_script(GOOD).values()] * 4, ["a", "b", "c", "c"])

    assert summary["passes"] == {"value": 1.0, "low": None, "high": None, "scripts": 4}
    assert summary["articles"] == 3


def test_ten_identical_articles_are_one_cluster() -> None:
    clusters = article_clusters([f"a{number}" for number in range(10)], ["the same text"] * 10)

    assert len(set(clusters)) == 1
    assert quantile_estimate([1.0] * 10, clusters, 0.5, seed=1)["low"] is None


def test_articles_hang_together_over_ids_and_texts() -> None:
    assert article_clusters(["a", "a", "b", "c", "d"], ["x", "y", "y", "z", "x"]) == ["a", "a", "a", "c", "a"]


def test_articles_without_an_id_hang_together_by_their_text_alone() -> None:
    clusters = article_clusters(["", "", "", "a"], ["x", "y", "x", "y"])

    assert clusters[0] == clusters[2] != clusters[1] == clusters[3]


def test_what_no_script_allows_to_measure_is_none() -> None:
    assert summarise([measure_script("No numbers.", "None.").values()], ["a"])["numbers_supported"]["value"] is None


def test_scripts_without_their_articles_are_refused() -> None:
    with pytest.raises(ValueError, match="1 scripts but 2 article ids"):
        summarise([measure_script(GOOD).values()], ["a", "b"])


def test_the_failures_of_the_original_student_are_found_again(real_data: Path) -> None:
    path = real_data / "original_student_outputs.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {real_data}")
    scripts = [json.loads(line)["script"] for line in path.read_text(encoding="utf-8").splitlines()]

    measures = [measure_script(script) for script in scripts]

    def share(*kinds: str) -> float:
        return sum(any(getattr(entry, kind) for kind in kinds) for entry in measures) / len(measures)

    # A quarter of the outputs hold no word at all: the earlier check counted them as cut off and as too short.
    assert share("empty") == pytest.approx(0.266, abs=0.002)
    assert share("cut_off", "empty") == pytest.approx(0.77, abs=0.04)
    assert share("too_short", "empty") == pytest.approx(0.33, abs=0.02)
    assert share("too_long") == pytest.approx(0.14, abs=0.02)
    # 14 % hold labels of the prompt; further ones repeat its instructions, or hold emphasis, stage directions and addresses.
    assert share("markers") == pytest.approx(0.289, abs=0.005)
    # The earlier check called five words that come twice a loop (29 %), which blames ordinary prose as well.
    assert 0.15 < share("looping") < 0.29
    # 17 % passed the earlier check, which asked for no opening and no closing.
    assert 1 - share(*(kind for kind in FAILURE_KINDS if kind not in {"no_opening", "no_closing"})) < 0.17
    assert sum(entry.passes for entry in measures) / len(measures) == pytest.approx(0.03, abs=0.01)


def test_human_news_hardly_ever_counts_as_looping(real_data: Path) -> None:
    lines = (real_data / "bbc_articles.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    articles = [" ".join(json.loads(line)["content"].split()[:250]) for line in lines]

    assert sum(measure_script(text).looping for text in articles) / len(articles) < 0.03
    # What marks them are additions in square brackets within quotations, which a speaker cannot say either.
    assert sum(measure_script(text).markers for text in articles) / len(articles) < 0.03
    assert not any(measure_script(re.sub(r"\[[^]]*\]", "", text)).markers for text in articles)
