"""Pace and money, as arithmetic on a made-up clock."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.podcast.teaching.pacing import AdaptiveConcurrency, Backoff, MinuteBudget, Spending


def test_concurrency_starts_small_and_doubles_with_each_clean_round() -> None:
    concurrency = AdaptiveConcurrency(4, 64)
    limits = [concurrency.limit]
    for _ in range(6):
        for _ in range(concurrency.limit):
            concurrency.answered()
        limits.append(concurrency.limit)
    assert limits == [4, 8, 16, 32, 64, 64, 64]


def test_a_burst_of_rate_limits_halves_it_once() -> None:
    concurrency = AdaptiveConcurrency(32, 64)
    for sent_at in (0.0, 0.1, 0.2):
        concurrency.rate_limited(sent_at, now=1.0)
    assert concurrency.limit == 16
    concurrency.rate_limited(1.5, now=2.0)
    assert concurrency.limit == 8


def test_after_a_rate_limit_it_grows_by_one_a_round() -> None:
    concurrency = AdaptiveConcurrency(16, 64)
    concurrency.rate_limited(0.0, now=1.0)
    for _ in range(8):
        concurrency.answered()
    assert concurrency.limit == 8
    for _ in range(3):
        concurrency.answered()
    assert concurrency.limit == 9


def test_one_request_may_always_be_under_way() -> None:
    concurrency = AdaptiveConcurrency(1, 64)
    for now in range(10):
        concurrency.rate_limited(now, now)
    assert concurrency.limit == 1


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200), st.integers(1, 600))
def test_no_minute_ever_holds_more_than_its_budget(pauses: list[float], per_minute: int) -> None:
    budget, now, sent = MinuteBudget(per_minute), 0.0, []
    for pause in pauses:
        now += pause + budget.wait_s(now + pause)
        budget.take(now)
        sent.append(now)
    for start in sent:
        assert sum(start <= at < start + 60 - 1e-6 for at in sent) <= per_minute


def test_large_requests_use_up_the_budget_of_several() -> None:
    budget = MinuteBudget(6000)  # a hundred tokens a second
    budget.take(0.0, 500)
    assert budget.wait_s(0.0) == 5.0
    budget.give_back(300)
    assert budget.wait_s(0.0) == 2.0


def test_no_budget_is_no_wait() -> None:
    budget = MinuteBudget(0)
    budget.take(0.0, 10**9)
    assert budget.wait_s(0.0) == 0.0


def test_waits_are_spread_below_a_bound_that_doubles_up_to_a_limit() -> None:
    backoff, rng = Backoff(first_s=1.0, most_s=10.0), random.Random(0)
    for failures, bound in ((1, 1), (2, 2), (4, 8), (9, 10)):
        waits = [backoff.wait_s(failures, 0.0, rng) for _ in range(200)]
        assert 0 <= min(waits) < 0.2 * bound
        assert 0.8 * bound < max(waits) <= bound


def test_what_the_service_asks_for_is_waited_in_full() -> None:
    assert Backoff(1.0, 10.0).wait_s(1, 30.0, random.Random(0)) >= 30.0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1), st.booleans()), max_size=50), st.floats(0, 10))
def test_spending_never_passes_its_limit_whatever_comes_back(requests: list[tuple[float, float, bool]], limit: float) -> None:
    spending = Spending(limit)
    for most, share, answered in requests:
        if spending.may_reserve(most):
            spending.reserve(most)
            if answered:
                spending.settle(most, most * share)
            else:
                spending.settle_unanswered(most)
        assert spending.spent_usd + spending.unanswered_usd <= limit + 1e-9
