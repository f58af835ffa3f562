from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.podcast.text.support import name_support, unsupported_names, unsupported_numbers

SAME_NUMBER = [
    ("twenty-five percent", "25%"),
    ("76 per cent", "76%"),
    ("a hundred and four", "104"),
    ("two thousand and four", "in 2004"),
    ("nineteen ninety-eight", "1998"),
    ("ninety-eight", "1998"),
    ("1998", "’98"),
    ("twenty oh five", "2005"),
    ("2005", "2004-05"),
    ("eighteen eighty-six", "1886"),
    ("nineteen hundred", "1900"),
    ("1.5 million", "1,500,000"),
    ("one point five million", "1,500,000"),
    ("one and a half million pounds", "£1.5m"),
    ("one point one three billion dollars", "$1.13bn"),
    ("half a million", "500,000"),
    ("twenty-one thousand, one hundred and sixty", "21,160"),
    ("thirty-eight thousand four hundred and twenty-one", "38,421"),
    ("between two hundred and three hundred", "200 to 300"),
    ("twenty-sixth of May", "26 May"),
    ("the 26th", "the twenty-sixth"),
    ("the nineteen nineties", "1990s"),
    ("the nineties", "in 1994"),
    ("his thirties", "34, a father"),
    ("the twentieth century", "the 20th century"),
    ("five hundred years", "five centuries"),
    ("fifty years", "half a century"),
    ("seven thirty", "7:30"),
    ("seven thirty", "19:30"),
    ("half past seven", "7.30pm"),
    ("one pound twenty", "£1.20"),
    ("nine point four", "nine and four-tenths"),
    ("two thirds", "67%"),
    ("a fifth", "20%"),
    ("three and a half years", "3½ years"),
    ("nine one one", "911"),
    ("two dozen", "24"),
    ("nineteen-seventeen", "19-17"),
    ("three-nil", "3-0"),
    ("Henry the Eighth", "Henry VIII"),
    ("nearly 4,300", "4,296"),
    ("more than four thousand", "4,300"),
    ("eleven billion", "11.1bn"),
]
OTHER_NUMBER = [
    ("seven", "nine"),
    ("seventy", "seventeen"),
    ("25", "20 and 5"),
    ("twenty-five", "20 and 5"),
    ("four thousand", "4,300"),
    ("more than five thousand", "4,300"),
    ("nearly four thousand", "4,300"),
    ("about five thousand", "4,300"),
    ("1.5 billion", "1.5 million"),
    ("1990", "1994"),
    ("the eighties", "in 1994"),
    ("12 percent", "21%"),
    ("nineteen ninety-nine", "1998"),
    ("eight thirty", "7:30"),
]
SAME_NAME = [
    ("Tony Blair", "Mr Blair and Tony"),
    ("the Blairs", "Blair"),
    ("Blair’s house", "Blair"),
    ("the Americans", "the US"),
    ("the United States", "the U.S. team"),
    ("the German car", "Germany"),
    ("the Canadians", "Canada"),
    ("a French man", "France"),
    ("the World Health Organization", "the WHO"),
    ("NATO", "Nato"),
    ("the BBC", "the British Broadcasting Corporation"),
    ("Time Warner", "TimeWarner"),
    ("TimeWarner", "Time Warner"),
    ("Beyoncé", "Beyonce"),
    ("the Osei-Tarrants", "Osei-Tarrant"),
    ("a Council member", "the council"),
    ("President Bush on a Monday in May", "Bush"),
]
OTHER_NAME = [
    ("Karl Weiss", "Karl Marx"),
    ("Dr. Smith", "Dr. Jones"),
    ("J. Smith", "J. Jones"),
    ("Johnson", "Johnston"),
    ("the US", "he told us"),
    ("the G8", "the G7 and 8 men"),
    ("AT&T", "at a T junction"),
    ('the film "Jaws"', "a film"),
]


@pytest.mark.parametrize(("spoken", "written"), SAME_NUMBER)
def test_a_number_is_known_by_its_value(spoken: str, written: str) -> None:
    assert unsupported_numbers(f"It was {spoken} then.", f"Here {written} was it.") == ()


@pytest.mark.parametrize(("spoken", "written"), OTHER_NUMBER)
def test_another_value_is_another_number(spoken: str, written: str) -> None:
    assert unsupported_numbers(f"It was {spoken} then.", f"Here {written} was it.")


@pytest.mark.parametrize("script", ["one of the two", "the first and the second", "at zero", "a third-rate idea of 3"])
def test_counts_that_speech_adds_need_no_support(script: str) -> None:
    assert unsupported_numbers(f"It was {script}.", "Here are 3.") == ()


@pytest.mark.parametrize(("spoken", "written"), SAME_NAME)
def test_a_name_is_known_in_its_other_forms(spoken: str, written: str) -> None:
    assert unsupported_names(f"And so {spoken} came.", f"Here {written} came.") == ()


@pytest.mark.parametrize(("spoken", "written"), OTHER_NAME)
def test_another_name_is_unsupported(spoken: str, written: str) -> None:
    assert unsupported_names(f"And so {spoken} came.", f"Here {written} came.")


@pytest.mark.parametrize(
    "script",
    [
        "Welcome to NewsJuice. Yesterday was a Tuesday in December.",
        'The mayor said, "Nobody came." She left.',
        "One thing is clear: Rain fell.",
        "And I’m glad it’s over, Mr. President.",
    ],
)
def test_what_is_capitalised_for_another_reason_is_no_name(script: str) -> None:
    assert name_support(script, "It rained.").found == 0


@given(st.text(max_size=60))
def test_every_text_supports_itself(text: str) -> None:
    assert (unsupported_numbers(text, text), unsupported_names(text, text)) == ((), ())


@pytest.mark.parametrize("text", ["9" * 5000 + "s", "nineteen " * 1000, "A-" * 3000, "1." * 1000 + "5", "0.0 00:00 0:99 ½ 1e999"])
def test_odd_texts_are_read_without_trouble(text: str) -> None:
    assert unsupported_numbers(text, text) == ()
    assert unsupported_names("x " + text, text) == ()
