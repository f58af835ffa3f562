"""The paid judge through the real SDK, against a local server: no answer is paid for twice, and errors are told apart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from newsjuice_pipelines.benchmarks.gemini_answers import blocked_prompt_answer, error_answer, script_answer
from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer
from newsjuice_pipelines.podcast.judging.gemini_judge import gemini_judge
from newsjuice_pipelines.podcast.judging.pairwise import Pair, judge_pairs
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused

MODEL = "gemini-3.1-flash-lite"


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    with GeminiServer() as running:
        yield running


def asked(server: GeminiServer) -> int:
    return len(server.received)


def test_the_same_question_is_asked_once_even_by_another_process(server: GeminiServer, tmp_path: Path) -> None:
    answers = tmp_path / "judge.jsonl"
    server.always(script_answer("WINNER: A"))

    first = gemini_judge(server.client, MODEL, answers)
    assert [first("one?"), first("one?"), first("two?")] == ["WINNER: A"] * 3
    later = gemini_judge(server.client, MODEL, answers)
    assert later("two?") == "WINNER: A"

    assert asked(server) == 2


def test_an_answer_that_a_crash_tore_is_asked_for_again(server: GeminiServer, tmp_path: Path) -> None:
    answers = tmp_path / "judge.jsonl"
    server.always(script_answer("WINNER: B"))
    gemini_judge(server.client, MODEL, answers)("one?")
    with answers.open("a") as stream:
        stream.write('{"key": "to')

    again = gemini_judge(server.client, MODEL, answers)

    assert [again("one?"), again("two?")] == ["WINNER: B"] * 2
    assert asked(server) == 2
    assert gemini_judge(server.client, MODEL, answers)("two?") == "WINNER: B"


def test_a_damaged_answer_among_the_kept_ones_is_asked_for_again(
    server: GeminiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = tmp_path / "judge.jsonl"
    server.always(script_answer("WINNER: B"))
    first = gemini_judge(server.client, MODEL, answers)
    for question in ("one?", "two?", "three?"):
        first(question)
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(lines[0] + b'\xff{"key"\n' + lines[2])

    again = gemini_judge(server.client, MODEL, answers)

    assert [again(question) for question in ("one?", "two?", "three?")] == ["WINNER: B"] * 3
    assert asked(server) == 4
    assert "line 2 of" in caplog.text


def test_an_empty_answer_is_not_kept_and_its_reason_is_logged_once(
    server: GeminiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = tmp_path / "judge.jsonl"
    server.prepare(*[script_answer(None, finish_reason="MAX_TOKENS")] * 2, script_answer("WINNER: A"))
    ask = gemini_judge(server.client, MODEL, answers)

    assert [ask("one?"), ask("two?")] == ["", ""]
    assert not answers.exists()
    assert caplog.text.count("MAX_TOKENS") == 1
    assert gemini_judge(server.client, MODEL, answers)("one?") == "WINNER: A"


def test_a_model_whose_thinking_cannot_be_switched_down_has_room_for_it(server: GeminiServer, tmp_path: Path) -> None:
    server.always(script_answer("WINNER: A"))
    for model in (MODEL, "gemini-9-pro"):
        gemini_judge(server.client, model, tmp_path / "judge.jsonl")("one?")

    assert [received.body["generationConfig"]["maxOutputTokens"] for received in server.received] == [512, 4096]


def test_what_passes_is_tried_again_and_what_does_not_stops(server: GeminiServer, tmp_path: Path) -> None:
    server.prepare(error_answer(503, "UNAVAILABLE"), script_answer("WINNER: TIE"), error_answer(403, "PERMISSION_DENIED"))
    ask = gemini_judge(server.client, MODEL, tmp_path / "judge.jsonl", waits_s=(0.0,))

    assert ask("one?") == "WINNER: TIE"
    with pytest.raises(TeacherRefused, match="lacks the right"):
        ask("two?")


def test_a_judge_that_never_answers_ends_the_work_and_keeps_the_answers(server: GeminiServer, tmp_path: Path) -> None:
    server.prepare(script_answer("WINNER: A"))
    server.always(error_answer(429, "RESOURCE_EXHAUSTED"))
    ask = gemini_judge(server.client, MODEL, tmp_path / "judge.jsonl", waits_s=(0.0, 0.0))
    ask("one?")

    with pytest.raises(TeacherRefused, match="did not answer after 3 attempts"):
        ask("two?")

    assert (tmp_path / "judge.jsonl").read_text().count("\n") == 1


def test_a_blocked_question_has_no_answer(server: GeminiServer, tmp_path: Path) -> None:
    server.always(blocked_prompt_answer())

    assert gemini_judge(server.client, MODEL, tmp_path / "judge.jsonl")("one?") == ""


def test_a_retired_judge_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(TeacherRefused, match="retired"):
        gemini_judge(lambda: pytest.fail("no client is needed"), "gemini-2.5-flash", tmp_path / "judge.jsonl")


def test_pairs_are_judged_in_both_orders_through_the_sdk(server: GeminiServer, tmp_path: Path) -> None:
    server.always(script_answer("WINNER: A"))  # whoever stands first: a judge without an opinion
    pairs = [Pair(f"Article {number}.", f"Student {number}.", f"Teacher {number}.", str(number)) for number in range(6)]

    judged = judge_pairs(pairs, gemini_judge(server.client, MODEL, tmp_path / "judge.jsonl"), most=6)

    assert (judged["ties"], judged["disagreements"], judged["wins"]) == (6, 6, 0)
    assert asked(server) == 12
    assert all("generationConfig" in received.body for received in server.received)
