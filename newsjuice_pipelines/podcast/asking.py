"""Asking a teacher for many scripts at once: claims, pace, retries and budget of one run. What is asked for is the caller's.

One coroutine decides everything, and requests are its only tasks, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from newsjuice_pipelines.podcast.ledger import Ledger
from newsjuice_pipelines.podcast.ledger_desk import LedgerDesk
from newsjuice_pipelines.podcast.pacing import AdaptiveConcurrency, Backoff, MinuteBudget, Spending
from newsjuice_pipelines.podcast.teacher import Teacher, TeacherReply, TeacherUnavailable, TryAgain
from newsjuice_pipelines.runtime.progress import Progress, format_duration

logger = logging.getLogger("newsjuice.podcast")

FORECAST_ANSWERS = 20
FAILURES_IN_A_ROW = 10
_SDK_GRACE_S = 5.0  # beyond the request's own timeout, in case the library does not keep it
_POLL_S = 2.0


@dataclass(frozen=True)
class AskingConfig:
    """How a paid teacher is asked: pace, retries and budget. None of it changes what is written."""

    max_concurrency: int = 64
    """Most requests under way at once."""
    start_concurrency: int = 8
    """Requests under way at the start; grows while all is clean, and halves when the service says 429."""
    requests_per_minute: int = 0
    """Most requests a minute, evenly spread; 0 leaves the pace to the service."""
    tokens_per_minute: int = 0
    """Most tokens a minute, prompt and answer; 0 leaves the pace to the service."""
    request_timeout_s: float = 60.0
    """Longest time for one request, seconds."""
    attempts: int = 6
    """Most requests for one script; only rate limits, server and transport errors are tried again."""
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


@dataclass
class Answers:
    """What became of the rows that were asked for, and what it took."""

    replies: dict[str, TeacherReply] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Row:
    """A script that is to be asked for, and its tries so far."""

    key: str
    article: str
    failures: int = 0
    first_sent_at: float = 0.0
    sent_at: float = 0.0
    most_usd: float = 0.0
    most_tokens: int = 0


class Asking:
    """One run's requests to one teacher.

    Args:
        teacher: who is asked.
        ledger: where claims and replies are kept.
        config: pace, retries and budget.
        owner: the name of this run's claims, different from every other run's.
        judge: called with each answer and its article before it is kept, while others are under way.
    """

    def __init__(
        self,
        teacher: Teacher,
        ledger: Ledger,
        config: AskingConfig,
        owner: str,
        judge: Callable[[TeacherReply, str], TeacherReply] = lambda reply, article: reply,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._teacher, self._config = teacher, config
        self._judge = judge
        self._clock, self._rng = clock, rng or random.Random()
        self._concurrency = AdaptiveConcurrency(config.start_concurrency, config.max_concurrency)
        self._requests = MinuteBudget(config.requests_per_minute)
        self._tokens = MinuteBudget(config.tokens_per_minute)
        self._backoff = Backoff(config.first_delay_s, config.max_delay_s)
        self._spending = Spending(config.max_budget_usd)
        self._desk = LedgerDesk(ledger, owner, config.lease_s, teacher.model, teacher.prompt_version, clock)
        self._unclaimed: deque[str] = deque()
        self._elsewhere: dict[str, float] = {}  # keys that another run asks for, and when to look again
        self._ready: deque[_Row] = deque()
        self._later: list[tuple[float, str, _Row]] = []
        self._running: dict[asyncio.Task[TeacherReply], _Row] = {}
        self._unsaved: dict[str, TeacherReply] = {}
        self._given_up: list[str] = []
        self._failures_in_a_row = 0
        self._short_of_money = False  # waiting for requests under way to come back cheaper than feared
        self._stopped_by: BaseException | None = None
        self._counts: Counter[str] = Counter()
        self._forecast: dict[str, Any] | None = None

    async def run(self, articles: Mapping[str, str]) -> Answers:
        """Ask for a script for each article, by key. A key that another run answers meanwhile takes that answer.

        Raises:
            TeacherRefused, TeacherUnavailable, LedgerUnavailable: after the requests under way have come back and are kept.
            ValueError: there is a budget, but a price is not known.
        """
        self._articles = articles
        self._unclaimed.extend(articles)
        self._answers = Answers()
        self._progress = Progress(f"teacher {self._teacher.model}", len(articles), "scripts")
        started = self._clock()
        if self._config.max_budget_usd is not None and any(self._teacher.most_usd(text) is None for text in articles.values()):
            raise ValueError(
                f"max_budget_usd is set, but the price of {self._teacher.model} is not known here: give input_price, "
                "cached_price and output_price (US dollars per million tokens), or leave the budget empty."
            )
        try:
            await self._desk.open()
            await self._ask_all()
        except asyncio.CancelledError:
            self._desk.give_up()
            raise
        finally:
            for task in self._running:
                task.cancel()
            await self._desk.close()
            await self._teacher.close()
        if self._stopped_by is not None:
            raise self._stopped_by
        for key in articles:
            if key not in self._answers.replies:
                self._answers.replies[key] = TeacherReply("", "not_asked", "BUDGET", attempts=0)
        self._answers.facts = self._facts(self._clock() - started)
        return self._answers

    async def _ask_all(self) -> None:
        while True:
            if self._desk.is_lapsed:
                await self._confirm_claims()
            self._start_requests()
            if self._unclaimed and len(self._ready) < self._concurrency.limit and self._stopped_by is None:
                await self._claim_more()
                continue
            if not (self._running or self._ready or self._later or self._elsewhere):
                return
            await self._wait()
            self._take_results()
            if not self._desk.is_lapsed:
                self._start_requests()  # before the answers are stored: the service works while the database does
            await self._save()
            await self._look_elsewhere()

    def _start_requests(self) -> None:
        now = self._clock()
        self._short_of_money = False
        while self._later and self._later[0][0] <= now:
            self._ready.appendleft(heapq.heappop(self._later)[2])
        if self._stopped_by is not None:
            self._drop_waiting()
        while self._ready and len(self._running) < self._concurrency.limit and self._pace_s(now) == 0:
            row = self._ready[0]
            row.most_usd, row.most_tokens = self._teacher.most_usd(row.article) or 0.0, self._teacher.most_tokens(row.article)
            if not self._spending.may_reserve(row.most_usd):
                if not self._running:  # nothing under way that could come back cheaper than feared
                    self._reach_budget()
                self._short_of_money = True
                return
            self._ready.popleft()
            self._spending.reserve(row.most_usd)
            self._requests.take(now)
            self._tokens.take(now, row.most_tokens)
            row.sent_at = now
            row.first_sent_at = row.first_sent_at or now
            self._counts["requests"] += 1
            self._running[asyncio.create_task(self._request(row.article))] = row
            self._counts["peak_concurrency"] = max(self._counts["peak_concurrency"], len(self._running))

    async def _request(self, article: str) -> TeacherReply:
        try:
            async with asyncio.timeout(self._config.request_timeout_s + _SDK_GRACE_S):
                return await self._teacher.ask(article, self._config.request_timeout_s)
        except TimeoutError:
            raise TryAgain("no answer in time", may_be_billed=True) from None

    async def _claim_more(self) -> None:
        size = min(len(self._unclaimed), 2 * self._concurrency.limit)
        keys = [self._unclaimed.popleft() for _ in range(size)]
        claimed = await self._desk.claim(keys)
        for key in keys:
            if key in claimed:
                self._ready.append(_Row(key, self._articles[key]))
            else:
                self._elsewhere[key] = 0.0

    async def _wait(self) -> None:
        """Until a request comes back, or something else is due."""
        now = self._clock()
        due = [self._later[0][0] - now] if self._later else []
        if self._ready and len(self._running) < self._concurrency.limit and not self._short_of_money:
            due.append(self._pace_s(now))
        due += [at - now for at in self._elsewhere.values()]
        timeout = max(0.0, min(due)) if due else None
        if self._running:
            await asyncio.wait(self._running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(timeout or 0.0)

    def _take_results(self) -> None:
        for task in [task for task in self._running if task.done()]:
            row = self._running.pop(task)
            try:
                self._take_reply(row, task.result())
            except TryAgain as error:
                self._take_failure(row, error)
            except Exception as error:  # refused for good, or a defect: the run ends when the others are back
                self._spending.settle(row.most_usd, None)
                self._stopped_by = self._stopped_by or error

    def _take_reply(self, row: _Row, reply: TeacherReply) -> None:
        self._concurrency.answered()
        self._spending.settle(row.most_usd, reply.cost_usd)
        used = sum(count or 0 for count in (reply.input_tokens, reply.output_tokens, reply.thought_tokens))
        self._tokens.give_back(row.most_tokens - used)
        self._failures_in_a_row = 0
        self._counts["answered"] += 1
        self._counts["answers_without_cost"] += reply.cost_usd is None
        self._unsaved[row.key] = replace(reply, attempts=row.failures + 1)

    def _take_failure(self, row: _Row, error: TryAgain) -> None:
        now = self._clock()
        row.failures += 1
        self._tokens.give_back(row.most_tokens)
        if error.may_be_billed:
            self._spending.settle_unanswered(row.most_usd)
        else:
            self._spending.settle(row.most_usd, None)
        if error.rate_limited:
            self._counts["rate_limited"] += 1
            self._concurrency.rate_limited(row.sent_at, now)
        wait_s = self._backoff.wait_s(row.failures, error.delay_s, self._rng)
        in_time = now + wait_s - row.first_sent_at <= self._config.row_deadline_s
        if row.failures < self._config.attempts and in_time and self._stopped_by is None:
            self._counts["retries"] += 1
            logger.debug("%s: %s; asking again in %.1f s", self._teacher.model, error, wait_s)
            heapq.heappush(self._later, (now + wait_s, row.key, row))
            return
        self._given_up.append(row.key)
        self._answers.replies[row.key] = TeacherReply("", "failed", "ERROR", attempts=row.failures, error=str(error))
        self._progress.advance(note=f"failed after {row.failures} tries: {error}")
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= min(FAILURES_IN_A_ROW, len(self._articles)):
            self._stopped_by = self._stopped_by or TeacherUnavailable(
                f"{self._teacher.model}: {self._failures_in_a_row} scripts in a row failed, the last with: {error}. "
                "Run again later; answers received so far are kept and not paid again."
            )

    async def _save(self) -> None:
        """Commit what came back, and only then use it."""
        if self._unsaved:
            replies, self._unsaved = self._unsaved, {}
            judged = {key: self._judge(reply, self._articles[key]) for key, reply in replies.items()}
            self._answers.replies |= await self._desk.store(judged)
            self._progress.advance(len(replies), note=self._money())
            self._make_forecast()
        if self._given_up:
            keys, self._given_up = self._given_up, []
            await self._desk.release(keys)

    async def _look_elsewhere(self) -> None:
        """See to the keys of another run: answered by now, free again, or still to be waited for."""
        now = self._clock()
        due = [key for key, at in self._elsewhere.items() if at <= now]
        if not due or self._unclaimed or self._stopped_by is not None:
            if self._stopped_by is not None:
                self._elsewhere.clear()
            return
        found = await self._desk.find(due)
        claimed = await self._desk.claim([key for key in due if key not in found])
        for key in due:
            if key in found:
                self._answers.replies[key] = found[key]
                self._counts["answered_by_other_runs"] += 1
                self._progress.advance(note="answered by another run")
            elif key in claimed:
                self._ready.append(_Row(key, self._articles[key]))
            else:
                self._elsewhere[key] = self._clock() + min(_POLL_S, self._config.lease_s / 4)
                continue
            del self._elsewhere[key]
        if self._elsewhere and not (self._running or self._ready or self._counts["said_elsewhere"]):
            self._counts["said_elsewhere"] = 1
            logger.info("teacher: waiting for %d scripts that another run is asking for", len(self._elsewhere))

    async def _confirm_claims(self) -> None:
        """After a pause longer than the lease (a suspended process), rows that wait may be another run's by now."""
        rows = {row.key: row for row in (*self._ready, *(row for _, _, row in self._later))}
        claimed = await self._desk.confirm(rows.keys())
        self._ready = deque(row for row in self._ready if row.key in claimed)
        self._later = [entry for entry in self._later if entry[1] in claimed]
        heapq.heapify(self._later)
        self._elsewhere |= dict.fromkeys(rows.keys() - claimed, 0.0)

    def _pace_s(self, now: float) -> float:
        return max(self._requests.wait_s(now), self._tokens.wait_s(now))

    def _reach_budget(self) -> None:
        logger.warning(
            "teacher: the budget of $%.4f is reached: $%.4f spent%s; the other scripts are not asked for",
            self._config.max_budget_usd,
            self._spending.spent_usd,
            f", at most ${self._spending.unanswered_usd:.4f} for lost answers" if self._spending.unanswered_usd else "",
        )
        self._counts["budget_reached"] = 1
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        for waiting in (self._ready, self._later, self._unclaimed, self._elsewhere):
            waiting.clear()

    def _make_forecast(self) -> None:
        answered = self._counts["answered"]
        if self._forecast is not None or answered < FORECAST_ANSWERS:
            return
        left = len(self._articles) - len(self._answers.replies)
        known = not self._counts["answers_without_cost"]
        cost = self._spending.spent_usd / answered * (answered + left) if known else None
        self._forecast = {"after_answers": answered, "scripts": answered + left, "cost_usd": cost}
        if cost == 0:  # a free teacher
            return
        money = f"about ${cost:.4f}" if cost is not None else "an unknown amount (no price for this model)"
        logger.info("teacher: forecast after %d answers: %s for %d scripts", answered, money, answered + left)

    def _money(self) -> str:
        if self._counts["answers_without_cost"]:
            return "cost unknown"
        return f"${self._spending.spent_usd:.4f}" if self._spending.spent_usd else ""

    def _facts(self, wall_s: float) -> dict[str, Any]:
        counts = self._counts
        return {
            **{name: counts[name] for name in ("requests", "answered", "retries", "rate_limited", "answered_by_other_runs")},
            "peak_concurrency": counts["peak_concurrency"],
            "budget_reached": bool(counts["budget_reached"]),
            "spent_usd": None if counts["answers_without_cost"] else self._spending.spent_usd,
            "unanswered_usd": self._spending.unanswered_usd,
            "forecast": self._forecast,
            "wall_s": wall_s,
            "wall": format_duration(wall_s),
        }
