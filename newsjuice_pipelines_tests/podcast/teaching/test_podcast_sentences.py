from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.podcast.text.sentences import ends_complete, sentence_spans, split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Rain fell. Nobody minded!", ["Rain fell.", "Nobody minded!"]),
        ("Dr. Ana J. Lopez met Sen. Diaz. They spoke.", ["Dr. Ana J. Lopez met Sen. Diaz.", "They spoke."]),
        ("The U.S. Senate voted. It passed.", ["The U.S. Senate voted.", "It passed."]),
        ("She moved to the U.S. The year was 1999.", ["She moved to the U.S.", "The year was 1999."]),
        ("It rose 3.5 percent on Jan. 4 at 9 a.m. in Boston.", ["It rose 3.5 percent on Jan. 4 at 9 a.m. in Boston."]),
        ("“Why?” she asked. He left.", ["“Why?” she asked.", "He left."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("It was ... odd. Truly…", ["It was ... odd.", "Truly…"]),
        ("A heading\n\nThe first sentence.", ["A heading", "The first sentence."]),
        ("A line\nbroken in two. Done", ["A line\nbroken in two.", "Done"]),
        ("1. Sift the flour. 2. Stir.", ["1. Sift the flour.", "2. Stir."]),
        ("雨が降った。誰も気にしない。", ["雨が降った。", "誰も気にしない。"]),
        ("  \n\n ", []),
    ],
)
def test_a_text_is_split_into_its_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet=st.sampled_from("aB1 .!?\n\"'”。…Dr"), max_size=120))
def test_splitting_loses_nothing_but_blanks(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@given(st.text(alphabet=st.sampled_from('aB1 .!?\n"”'), max_size=120))
def test_spans_rise_and_never_overlap(text: str) -> None:
    ends = [offset for span in sentence_spans(text) for offset in span]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    "text", ["Done.", "Really?", 'He said "go."', "Stop!”", "It was 2024.", "in the U.S.", "終わり。", "Bye. \n"]
)
def test_a_whole_last_sentence_is_recognised(text: str) -> None:
    assert ends_complete(text)


@pytest.mark.parametrize(
    "text", ["", "no end", "he saw Dr.", "First.\n\n2.", "and then...", "so it goes…", "the end,", "a colon:"]
)
def test_a_cut_end_is_recognised(text: str) -> None:
    assert not ends_complete(text)


def test_a_long_run_of_marks_takes_no_time() -> None:
    assert split_sentences("a. " * 50_000 + "\n" * 50_000 + "!" * 50_000)
