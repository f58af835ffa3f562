"""How fast requests may go: adaptive concurrency, budgets a minute, waits before another try, and money. Pure arithmetic.

Times are seconds on any monotonic clock, passed in; nothing here sleeps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


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
