"""Comparing the answers of two engines, and scoring answers under the micro model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.engines import EngineError, Request, Result, parity
from newsjuice_pipelines.podcast.engines.parity import compare, model_scorer, score_tokens
from newsjuice_pipelines.podcast.training.base_model import load_model
from newsjuice_pipelines.runtime.devices import Device

CPU = Device("cpu", "CPU", "float32")


def answer(name: str, *tokens: int) -> Result:
    return Result(name, tokens, "", "length" if tokens else "error", 3, None, None, None if tokens else "lost")


def made_up_scores(names: Any, answers: Any) -> list[float]:
    return [-float(sum(tokens)) / len(tokens) for tokens in answers]


def test_answers_are_compared_by_request_in_the_order_of_the_reference() -> None:
    reference = [answer("a", 1, 2), answer("b", 1, 2, 3), answer("c", 5), answer("d", 4, 4)]
    other = [answer("d", 4, 4, 4), answer("b", 1, 9, 3), answer("a", 1, 2), answer("c", 6)]

    found = compare(reference, other, made_up_scores)

    assert (found.requests, found.exact, found.unanswered) == (4, 1, 0)
    assert found.first_divergence == (None, 1, 0, 2)
    assert found.score_difference_nats == pytest.approx((0 + 7 / 3 + 1 + 0) / 4)
    assert found.worst_score_difference_nats == pytest.approx(7 / 3)


def test_an_answer_that_is_missing_or_an_error_is_unanswered_and_not_scored() -> None:
    reference = [answer("a", 1), answer("b", 2), answer("c"), answer("d", 3)]
    other = [answer("a", 1), answer("b"), answer("c")]

    found = compare(reference, other, made_up_scores)

    assert (found.exact, found.unanswered, found.first_divergence) == (1, 3, (None, 0, 0, 0))
    assert found.score_difference_nats == 0.0


def test_without_a_scorer_or_answers_the_score_is_not_measured() -> None:
    assert compare([answer("a", 1)], [answer("a", 2)]).score_difference_nats is None
    assert compare([answer("a", 1)], [answer("a")], made_up_scores).worst_score_difference_nats is None
    assert compare([], [], made_up_scores).requests == 0


@pytest.mark.parametrize(
    ("reference", "other", "named"),
    [
        ([answer("a", 1)], [answer("a", 1), answer("b", 1)], "no answer to request 'b'"),
        ([answer("a", 1)], [answer("a", 1), answer("a", 2)], "'a' has two answers"),
        ([answer("a", 1), answer("a", 1)], [answer("a", 1)], "'a' has two answers"),
    ],
)
def test_answers_to_other_requests_are_refused(reference: list[Result], other: list[Result], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        compare(reference, other)


def test_a_comparison_can_be_written_as_json() -> None:
    found = compare([answer("a", 1)], [answer("a", 2)], made_up_scores)

    assert json.loads(json.dumps(found.as_json())) == {
        "requests": 1,
        "exact": 0,
        "first_divergence": [0],
        "score_difference_nats": 1.0,
        "worst_score_difference_nats": 1.0,
        "unanswered": 0,
    }


@pytest.mark.parametrize("positions", [2, 64])
def test_the_score_is_the_mean_log_probability_of_the_answers_tokens(
    positions: int, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(parity, "SCORED_POSITIONS", positions)
    prompts, answers = [[5, 6, 7], [9]], [[10, 11, 12, 13, 14], [20]]
    model = load_model(base)
    by_hand = []
    with torch.inference_mode():
        for prompt, tokens in zip(prompts, answers, strict=True):
            steps = [model(torch.tensor([prompt + tokens[:index]])).logits[0, -1].log_softmax(-1) for index in range(len(tokens))]
            by_hand.append(sum(float(step[token]) for step, token in zip(steps, tokens, strict=True)) / len(tokens))

    assert score_tokens(base, CPU, prompts, answers) == pytest.approx(by_hand, abs=1e-4)
    assert all(score < 0 and math.isfinite(score) for score in by_hand)


def test_the_scorer_finds_the_prompt_of_each_request(base: Path) -> None:
    requests = [Request("a", (5, 6, 7)), Request("b", (9, 8))]
    score = model_scorer(base, CPU, requests)

    assert score(["b", "a"], [[1, 2], [3]]) == score_tokens(base, CPU, [(9, 8), (5, 6, 7)], [[1, 2], [3]])


@pytest.mark.parametrize(("prompts", "answers"), [([[1]], [[2], [3]]), ([[1], [1]], [[2], []]), ([[]], [[1]])])
def test_rows_that_have_no_score_are_refused(prompts: Any, answers: Any, base: Path) -> None:
    with pytest.raises(EngineError, match=r"answers: give|row \d has an empty"):
        score_tokens(base, CPU, prompts, answers)
