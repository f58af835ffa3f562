"""Asking a teacher for many scripts at once: claims, pace, retries and budget of one run. What is asked for is the caller's.

One coroutine decides everything, and requests are its only tasks, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from newsjuice_pipelines.podcast.teaching.ledger import Ledger, LedgerUnavailable
from newsjuice_pipelines.podcast.teaching.ledger_desk import LedgerDesk, wall_clock
from newsjuice_pipelines.podcast.teaching.pacing import AdaptiveConcurrency, AskingConfig, Backoff, MinuteBudget, Spending
from newsjuice_pipelines.podcast.teaching.teacher import (
    RowRefused,
    Teacher,
    TeacherRefused,
    TeacherReply,
    TeacherUnavailable,
    TryAgain,
)
from newsjuice_pipelines.runtime.progress import Progress, format_duration

logger = logging.getLogger("newsjuice.podcast")

FORECAST_ANSWERS = 20
ON_THE_WAY = 0.5  # answers that may be on their way into the ledger, as a part of the concurrency; a kill loses them too
FAILURES_IN_A_ROW = 10
REFUSED_ROWS = 3  # before anything was answered
_SDK_GRACE_S = 5.0  # beyond the request's own timeout, in case the library does not keep it
_POLL_S = 2.0


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
    tries: int = 0
    failures: int = 0  # tries that count against the limit: not those that came too fast
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
        on_answer: called with the key of each answer when it is kept, while others are under way; it must return at once.
    """

    def __init__(
        self,
        teacher: Teacher,
        ledger: Ledger,
        config: AskingConfig,
        owner: str,
        on_answer: Callable[[str, TeacherReply], None] = lambda key, reply: None,
        *,
        clock: Callable[[], float] = wall_clock,
        rng: random.Random | None = None,
    ) -> None:
        self._teacher, self._config = teacher, config
        self._on_answer = on_answer
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
        self._uncommitted = 0  # answers that are paid for and not yet in the ledger: as good as under way
        self._saving: asyncio.Task[None] | None = None
        self._cannot_save = False
        self._paused_until = float("-inf")
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
        """
        self._articles = articles
        self._unclaimed.extend(articles)
        self._answers = Answers()
        self._progress = Progress(f"teacher {self._teacher.model}", len(articles), "scripts")
        started = self._clock()
        gc.freeze()  # all that was loaded before need not be looked through again while requests wait
        try:
            await self._desk.open()
            await self._ask_all()
        except asyncio.CancelledError:
            self._desk.give_up()
            raise
        finally:
            gc.unfreeze()
            for task in (*self._running, *([self._saving] if self._saving else [])):
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
            self._start_saving()
            if self._unclaimed and len(self._ready) < self._concurrency.limit and self._stopped_by is None:
                await self._claim_more()
                continue
            if not (self._running or self._saving or self._ready or self._later or self._elsewhere):
                break
            await self._wait()
            self._take_results()
            await self._look_elsewhere()
        if self._unsaved:  # one last try, now that all is back
            with suppress(LedgerUnavailable):
                await self._desk.store(self._unsaved)

    def _start_requests(self) -> None:
        now = self._clock()
        self._short_of_money = False
        while self._later and self._later[0][0] <= now:
            self._ready.appendleft(heapq.heappop(self._later)[2])
        if self._stopped_by is not None:
            self._drop_waiting()
        while self._ready and self._has_room() and self._pace_s(now) == 0:
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
        if self._ready and self._has_room() and not self._short_of_money:
            due.append(self._pace_s(now))
        if not self._unclaimed:
            due += [at - now for at in self._elsewhere.values()]
        timeout = max(0.0, min(due)) if due else None
        tasks = [*self._running, *([self._saving] if self._saving else [])]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(timeout or 0.0)

    def _take_results(self) -> None:
        for task in [task for task in self._running if task.done()]:
            row = self._running.pop(task)
            try:
                self._take_reply(row, task.result())
            except TryAgain as error:
                self._take_failure(row, error)
            except RowRefused as error:
                self._take_refusal(row, error)
            except Exception as error:  # refused for good, or a defect: the run ends when the others are back
                self._spending.settle(row.most_usd, None)
                self._stopped_by = self._stopped_by or error

    def _take_reply(self, row: _Row, reply: TeacherReply) -> None:
        self._concurrency.answered()
        if reply.cost_usd is None and self._config.max_budget_usd is not None:  # the answer does not say what it took
            self._spending.settle_unanswered(row.most_usd)
        else:
            self._spending.settle(row.most_usd, reply.cost_usd)
        used = sum(count or 0 for count in (reply.input_tokens, reply.output_tokens, reply.thought_tokens))
        self._tokens.give_back(row.most_tokens - used)
        self._failures_in_a_row = 0
        self._counts["answered"] += 1
        self._counts["answers_without_cost"] += reply.cost_usd is None
        self._unsaved[row.key] = replace(reply, attempts=row.tries + 1)
        self._uncommitted += 1

    def _take_failure(self, row: _Row, error: TryAgain) -> None:
        now = self._clock()
        row.tries += 1
        self._tokens.give_back(row.most_tokens)
        if error.may_be_billed:
            self._spending.settle_unanswered(row.most_usd)
        else:
            self._spending.settle(row.most_usd, None)
        if error.rate_limited:  # not the row's fault: only its deadline ends this
            self._counts["rate_limited"] += 1
            self._concurrency.rate_limited(row.sent_at, now)
            self._paused_until = max(self._paused_until, now + error.delay_s)
        else:
            row.failures += 1
        wait_s = self._backoff.wait_s(row.tries, error.delay_s, self._rng)
        in_time = now + wait_s - row.first_sent_at <= self._config.row_deadline_s
        if row.failures < self._config.attempts and in_time and self._stopped_by is None:
            self._counts["retries"] += 1
            logger.debug("%s: %s; asking again in %.1f s", self._teacher.model, error, wait_s)
            heapq.heappush(self._later, (now + wait_s, row.key, row))
            return
        self._give_up(row, str(error))
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            self._stopped_by = self._stopped_by or TeacherUnavailable(
                f"{self._teacher.model}: {self._failures_in_a_row} scripts in a row failed, the last with: {error}. "
                "Run again later; answers received so far are kept and not paid again."
            )

    def _take_refusal(self, row: _Row, error: RowRefused) -> None:
        """A row that is refused has failed. Where nothing but refusals come, every row is."""
        row.tries += 1
        self._tokens.give_back(row.most_tokens)
        self._spending.settle(row.most_usd, None)
        self._give_up(row, str(error))
        self._counts["refused"] += 1
        if self._counts["refused"] >= min(REFUSED_ROWS, len(self._articles)) and not self._counts["answered"]:
            self._stopped_by = self._stopped_by or TeacherRefused(str(error))

    def _give_up(self, row: _Row, reason: str) -> None:
        self._given_up.append(row.key)
        self._counts["failed"] += 1
        self._answers.replies[row.key] = TeacherReply("", "failed", "ERROR", attempts=row.tries, error=reason)
        self._progress.advance(note=f"failed after {row.tries} tries: {reason}")

    def _start_saving(self) -> None:
        """Keep what came back, beside the requests: one save at a time takes all that is there."""
        if self._saving is not None and self._saving.done():
            saved, self._saving = self._saving, None
            if saved.exception() is not None:  # the requests under way still come back
                self._stopped_by = self._stopped_by or saved.exception()
                self._cannot_save = True
        if self._saving is None and (self._unsaved or self._given_up) and not self._cannot_save:
            replies, self._unsaved = self._unsaved, {}
            given_up, self._given_up = self._given_up, []
            self._saving = asyncio.create_task(self._save(replies, given_up))

    async def _save(self, replies: dict[str, TeacherReply], given_up: list[str]) -> None:
        """Commit answers, and only then use them."""
        if replies:
            try:
                in_force = await self._desk.store(replies)
            except BaseException:
                self._unsaved |= replies
                raise
            self._answers.replies |= in_force
            self._uncommitted -= len(replies)
            for key, reply in in_force.items():
                self._on_answer(key, reply)
            self._progress.advance(len(replies), note=self._money())
            self._make_forecast()
        if given_up:
            await self._desk.release(given_up)

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

    def _has_room(self) -> bool:
        under_way, limit = len(self._running), self._concurrency.limit
        return under_way < limit and under_way + self._uncommitted < (1 + ON_THE_WAY) * limit

    def _pace_s(self, now: float) -> float:
        return max(self._requests.wait_s(now), self._tokens.wait_s(now), self._paused_until - now, 0.0)

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
        scripts = len(self._articles) - self._counts["answered_by_other_runs"] - self._counts["failed"]
        known = not self._counts["answers_without_cost"]
        cost = self._spending.spent_usd / answered * scripts if known else None
        self._forecast = {"after_answers": answered, "scripts": scripts, "cost_usd": cost}
        if cost == 0:  # a free teacher
            return
        money = f"about ${cost:.4f}" if cost is not None else "an unknown amount (no price for this model)"
        logger.info("teacher: forecast after %d answers: %s for %d scripts", answered, money, scripts)

    def _money(self) -> str:
        if self._counts["answers_without_cost"]:
            return "cost unknown"
        return f"${self._spending.spent_usd:.4f}" if self._spending.spent_usd else ""

    def _facts(self, wall_s: float) -> dict[str, Any]:
        counts = self._counts
        return {
            **{
                name: counts[name]
                for name in ("requests", "answered", "failed", "retries", "rate_limited", "answered_by_other_runs")
            },
            "peak_concurrency": counts["peak_concurrency"],
            "budget_reached": bool(counts["budget_reached"]),
            "spent_usd": None if counts["answers_without_cost"] else self._spending.spent_usd,
            "unanswered_usd": self._spending.unanswered_usd,
            "forecast": self._forecast,
            "wall_s": wall_s,
            "wall": format_duration(wall_s),
        }
