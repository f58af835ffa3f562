"""How fast requests may go: the settings, adaptive concurrency, budgets a minute, waits before another try, and money.

Pure arithmetic: times are seconds on any clock that never goes back, passed in, and nothing here sleeps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class AskingConfig:
    """How a paid teacher is asked: pace, retries and budget. None of it changes what is written."""

    max_concurrency: int = 64
    """Most requests under way at once."""
    start_concurrency: int = 16
    """Requests under way at the start; grows while all is clean, and halves when the service says 429."""
    requests_per_minute: int = 0
    """Most requests a minute, evenly spread; 0 leaves the pace to the service."""
    tokens_per_minute: int = 0
    """Most tokens a minute, prompt and answer; 0 leaves the pace to the service."""
    request_timeout_s: float = 60.0
    """Longest time for one request, seconds."""
    attempts: int = 6
    """Most requests for one script; only server and transport errors are tried again, and rate limits, which do not count."""
    first_delay_s: float = 1.0
    """Upper bound of the random wait before the second request, seconds; it doubles with each one."""
    max_delay_s: float = 60.0
    """Largest such bound. What the service asks to wait comes on top."""
    row_deadline_s: float = 600.0
    """Longest time for one script with all its retries, seconds; then it has failed in this run."""
    lease_s: float = 120.0
    """How long a script that is being asked for stays reserved when this run falls silent, seconds."""
    max_budget_usd: float | None = None
    """Most that this run may spend, US dollars. It stops before the limit is passed, and what is done stays done."""

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "start_concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        for name in ("request_timeout_s", "row_deadline_s", "lease_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0.")
        for name in ("requests_per_minute", "tokens_per_minute", "first_delay_s", "max_delay_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more.")
        if self.max_budget_usd is not None and not self.max_budget_usd >= 0:
            raise ValueError(f"max_budget_usd={self.max_budget_usd}: must be 0 or more, or empty for no limit.")


class AdaptiveConcurrency:
    """How many requests may be under way: starts small, grows while all is clean, halves when the service says "too fast".

    Grows by one with every answer until the first rate limit (so it doubles within one latency), then by one with every full
    round of answers: slow start and additive increase, multiplicative decrease, as in V. Jacobson, "Congestion Avoidance and
    Control", 1988.
    """

    def __init__(self, start: int, most: int) -> None:
        self._limit = float(min(start, most))
        self._most = most
        self._slow_start = True
        self._halved_at = float("-inf")

    @property
    def limit(self) -> int:
        """Requests that may be under way now, at least 1."""
        return int(self._limit)

    def answered(self) -> None:
        """A request was answered."""
        self._limit = min(self._most, self._limit + (1 if self._slow_start else 1 / self._limit))

    def rate_limited(self, sent_at: float, now: float) -> None:
        """The service refused a request sent at `sent_at` as too fast.

        Refusals of requests that were sent before the last halving are of the same burst and count once.
        """
        if sent_at >= self._halved_at:
            self._limit = max(1.0, self._limit / 2)
            self._slow_start = False
            self._halved_at = now


class MinuteBudget:
    """At most `per_minute` units a minute, evenly spread; 0 is no limit. The generic cell rate algorithm without bursts."""

    def __init__(self, per_minute: float) -> None:
        self._seconds_a_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = float("-inf")

    def wait_s(self, now: float) -> float:
        """Seconds until the next request may go."""
        return max(0.0, self._free_at - now)

    def take(self, now: float, units: float = 1.0) -> None:
        """A request of this many units goes now."""
        self._free_at = max(self._free_at, now) + units * self._seconds_a_unit

    def give_back(self, units: float) -> None:
        """Of what was taken, this many units were not needed after all."""
        self._free_at -= units * self._seconds_a_unit


@dataclass(frozen=True)
class Backoff:
    """Waits between the tries of one request: full jitter under an exponential bound, on top of what the service asked for.

    Full jitter as in M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    first_s: float
    """Bound of the wait after the first failure; it doubles with each one."""
    most_s: float
    """Largest bound."""

    def wait_s(self, failures: int, asked_s: float, rng: random.Random) -> float:
        """Seconds to wait after this many failures (from 1) when the service asked for `asked_s`."""
        return asked_s + rng.uniform(0, min(self.most_s, self.first_s * 2 ** (failures - 1)))


class Spending:
    """Money of one run, US dollars: what was spent, and what requests under way could cost at most. Never passes its limit."""

    def __init__(self, limit_usd: float | None) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = 0.0
        self.unanswered_usd = 0.0
        """Most that requests without an answer may have cost, should the service bill them."""
        self.reserved_usd = 0.0

    def may_reserve(self, most_usd: float) -> bool:
        """Whether a request that costs at most this fits into what is left."""
        if self.limit_usd is None:
            return True
        return self.spent_usd + self.unanswered_usd + self.reserved_usd + most_usd <= self.limit_usd

    def reserve(self, most_usd: float) -> None:
        """A request goes out."""
        self.reserved_usd += most_usd

    def settle(self, most_usd: float, cost_usd: float | None) -> None:
        """A request came back: with its cost, or without one where the price is not known or it was not billed."""
        self.reserved_usd -= most_usd
        self.spent_usd += cost_usd or 0.0

    def settle_unanswered(self, most_usd: float) -> None:
        """A request was sent and its answer was lost: it may have been billed."""
        self.reserved_usd -= most_usd
        self.unanswered_usd += most_usd
