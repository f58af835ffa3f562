"""The teacher's batch mode: the same ledger and the same rows, answered by batch jobs at a lower price, hours later.

A job and its claims are recorded before it is made, so that a run that is killed leaves nothing behind that the next one
cannot collect. What a job did not answer is asked for on line.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from newsjuice_pipelines.podcast.teaching.ledger import Ledger, OpenBatch, batch_owner, is_dead
from newsjuice_pipelines.podcast.teaching.pacing import Backoff
from newsjuice_pipelines.podcast.teaching.teacher import RowRefused, Teacher, TeacherRefused, TeacherReply, TryAgain
from newsjuice_pipelines.runtime.progress import format_duration

logger = logging.getLogger("newsjuice.podcast")

LEASE_S = 4 * 24 * 3600.0  # a job may wait three days in the queue and run one
MAKING_S = 3600.0  # within which a run elsewhere may still be making a job that has no name yet; its rows are its own so long
CANCELLING_S = 600.0  # for which a cancelled job is waited for
JOB_ROWS = 100_000  # in one job; the service takes twice as many
_TRIES = 6
_LOG_EVERY_POLLS = 10

JobState = Literal["waiting", "done", "failed", "cancelled"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchConfig:
    """Whether the paid teacher is asked on line or by batch jobs."""

    mode: str = "online"
    """`online`, or `batch`: Vertex AI batch jobs at half the price, which may take hours."""
    batch_folder: str = ""
    """Folder for requests and replies of batch jobs, gs://bucket/prefix. Needed for `batch`."""
    batch_wait_h: float = 24.0
    """How long a batch job may take, hours. It is cancelled then, and what it did not answer is asked for on line."""
    batch_poll_s: float = 60.0
    """Wait between two looks at a batch job, seconds."""

    def __post_init__(self) -> None:
        if self.mode not in ("online", "batch"):
            raise ValueError(f"mode={self.mode!r}: give `online` or `batch`.")
        if self.mode == "batch" and not self.batch_folder:
            raise ValueError("mode `batch` needs batch_folder: a folder on Cloud Storage (gs://bucket/prefix).")
        if not self.batch_wait_h >= 0 or not self.batch_poll_s > 0:
            raise ValueError(
                f"batch_wait_h={self.batch_wait_h}, batch_poll_s={self.batch_poll_s}: the wait must be 0 or more, "
                "the time between two looks above 0."
            )


@dataclass(frozen=True)
class BatchState:
    """Where a job stands. Replies can be read in every state but `waiting`: what was finished is there and billed."""

    state: JobState
    error: str | None = None
    """What the service says of a failure, a cancellation or missing rows."""


class BatchService(Protocol):
    """Batch jobs of one teacher in one folder."""

    async def submit(self, name: str, articles: Mapping[str, str]) -> str:
        """Make a job that answers all articles (by request key); returns the service's name of it."""
        ...

    async def find(self, name: str) -> str | None:
        """The service's name of the job that was made under our `name`; None when there is none."""
        ...

    async def state(self, job: str) -> BatchState:
        """Where the job stands."""
        ...

    async def cancel(self, job: str) -> None:
        """Ask for the job's end; what it has answered can still be collected."""
        ...

    async def replies(self, name: str, job: str) -> dict[str, TeacherReply]:
        """What a job that is over answered, by request key."""
        ...


async def answer_in_batches(
    teacher: Teacher,
    ledger: Ledger,
    config: BatchConfig,
    articles: Mapping[str, str],
    service_in: Callable[[str], BatchService],
    owner: str,
    most_usd: float | None = None,
) -> dict[str, Any]:
    """In mode `batch`, make jobs for `articles`; in any mode, collect the open jobs that answer them, waiting for those.

    Open jobs of other rows are collected when they are over, and not waited for. Replies go into the ledger; read them there.
    Keys that another run asks for are left out.

    Args:
        teacher: whose model and prompt version the jobs are for.
        ledger: where replies, claims and jobs are kept.
        config: mode, folder, waits.
        articles: texts by request key, those without a reply.
        service_in: the batch service for a folder.
        owner: the name of this run.
        most_usd: what new jobs may cost at most, US dollars; None for no limit.

    Returns:
        What was done: `batch_jobs`, `batch_answers`, `batch_unanswered`, and `batch_usd`, what the jobs of this run cost (None
        when a price is not known), and `batch_most_usd`, the same with an upper bound where a cost is not known.
    """
    jobs = _Jobs(teacher, ledger, config, articles, owner)
    try:
        if config.mode == "batch":
            await jobs.make(service_in(config.batch_folder), most_usd)
        for batch in ledger.open_batches(teacher.model, teacher.prompt_version):
            await jobs.collect(batch, service_in(batch.folder))
    finally:
        await teacher.close()
    return jobs.facts()


class _Jobs:
    """The batch jobs of one run, one after the other."""

    def __init__(self, teacher: Teacher, ledger: Ledger, config: BatchConfig, articles: Mapping[str, str], owner: str) -> None:
        self._teacher, self._ledger, self._config, self._articles = teacher, ledger, config, articles
        self._owner = owner
        self._count = self._answers = self._unanswered = 0
        self._usd: float | None = 0.0
        self._most_usd = 0.0

    async def make(self, service: BatchService, most_usd: float | None) -> None:
        """Claim the articles that fit the budget, and make their jobs."""
        keys = self._affordable(most_usd)
        for start in range(0, len(keys), JOB_ROWS):
            await self._make(keys[start : start + JOB_ROWS], service)

    async def _make(self, keys: Sequence[str], service: BatchService) -> None:
        name = f"newsjuice-{uuid.uuid4().hex[:12]}"
        model, prompt = self._teacher.model, self._teacher.prompt_version
        # The record comes first: claims without one would keep their rows from everybody for days.
        self._ledger.record_batch(name, model, prompt, self._config.batch_folder, self._owner)
        claimed = self._ledger.claim(keys, batch_owner(name), MAKING_S, model, prompt)
        if not claimed:
            self._ledger.forget_batch(name)
            return
        try:
            job = await self._submit(name, {key: self._articles[key] for key in keys if key in claimed}, service)
        except (TeacherRefused, ValueError):
            self._forget(name)
            raise
        self._ledger.name_batch(name, job)
        self._ledger.renew(batch_owner(name), LEASE_S)
        logger.info("teacher: batch job %s with %d scripts", job, len(claimed))

    async def collect(self, batch: OpenBatch, service: BatchService) -> None:
        """Store what a job answered, waiting for it when this run needs its rows."""
        claimed = set(self._ledger.claims_of(batch.claims_owner))
        is_needed = not claimed.isdisjoint(self._articles)
        if batch.job is None and batch.made_by != self._owner and not is_dead(batch.made_by) and batch.age_s < MAKING_S:
            return  # another run is making it
        job = batch.job or await _again(lambda: service.find(batch.name))
        if job is None:
            logger.warning("teacher: batch %s was never made; its scripts are free again", batch.name)
            self._forget(batch.name)
            return
        if not is_needed and (await _again(lambda: service.state(job))).state == "waiting":
            return
        await self._wait(batch, job, service)
        replies = await _again(lambda: service.replies(batch.name, job))
        model, prompt = self._teacher.model, self._teacher.prompt_version
        self._ledger.store(replies, batch.claims_owner, model, prompt)
        logger.info("teacher: batch job %s answered %d of %d scripts", job, len(claimed & replies.keys()), len(claimed))
        self._forget(batch.name)
        self._count += 1
        self._answers += len(replies)
        self._unanswered += len(claimed - replies.keys())
        if batch.made_by == self._owner:
            self._pay(replies)

    def facts(self) -> dict[str, Any]:
        """What was collected."""
        return {
            "batch_jobs": self._count,
            "batch_answers": self._answers,
            "batch_unanswered": self._unanswered,
            "batch_usd": self._usd,
            "batch_most_usd": self._most_usd,
        }

    def _pay(self, replies: Mapping[str, TeacherReply]) -> None:
        for key, reply in replies.items():
            self._usd = None if self._usd is None or reply.cost_usd is None else self._usd + reply.cost_usd
            bound = self._teacher.most_usd(self._articles[key], batch=True) if reply.cost_usd is None else reply.cost_usd
            self._most_usd += bound or 0.0

    def _affordable(self, most_usd: float | None) -> list[str]:
        """The keys, in order, whose largest possible cost stays within the limit."""
        if most_usd is None:
            return list(self._articles)
        keys, total = [], 0.0
        for key, article in self._articles.items():
            total += self._teacher.most_usd(article, batch=True) or 0.0
            if total > most_usd:
                break
            keys.append(key)
        return keys

    async def _submit(self, name: str, articles: Mapping[str, str], service: BatchService) -> str:
        """Make the job once: when an answer to the making was lost, it is looked for before it is made again."""
        tried = False

        async def submit() -> str:
            nonlocal tried
            made = await service.find(name) if tried else None
            tried = True
            return made or await service.submit(name, articles)

        return await _again(submit)

    async def _wait(self, batch: OpenBatch, job: str, service: BatchService) -> None:
        """Until the job is over. When its time is up it is cancelled, and given up if it does not end then."""
        clock = asyncio.get_running_loop().time
        started, cancelled_at = clock(), None
        for polls in itertools.count():
            try:
                found = await _final(service.state(job))
            except TryAgain as error:  # nobody knows, so it is waited for: a job takes hours
                logger.warning("teacher: batch job %s: %s", job, error)
                found = BatchState("waiting")
            if found.state != "waiting":
                if found.error:
                    logger.warning("teacher: batch job %s %s: %s", job, found.state, found.error)
                return
            age_s = batch.age_s + clock() - started
            if cancelled_at is None and age_s > self._config.batch_wait_h * 3600:
                logger.warning("teacher: batch job %s is cancelled after %s", job, format_duration(age_s))
                cancelled_at = clock()
                with suppress(TeacherRefused, RowRefused, TryAgain):  # it may have ended just now, which the next look tells
                    await service.cancel(job)
                continue
            if cancelled_at is not None and clock() - cancelled_at > CANCELLING_S:
                logger.warning("teacher: batch job %s does not end; its other scripts are asked for on line", job)
                return
            if polls % _LOG_EVERY_POLLS == 0:
                logger.info("teacher: batch job %s is waiting, for %s so far", job, format_duration(age_s))
            self._ledger.renew(batch.claims_owner, LEASE_S)
            await asyncio.sleep(self._config.batch_poll_s)

    def _forget(self, name: str) -> None:
        """Give up what the job did not answer, and its record, in this order: a job without a record can never be collected."""
        self._ledger.release(batch_owner(name))
        self._ledger.forget_batch(name)


async def _again(request: Callable[[], Awaitable[Result]]) -> Result:
    """A request to the service, again after errors that may pass."""
    backoff, rng = Backoff(first_s=1.0, most_s=60.0), random.Random()
    for failures in range(1, _TRIES):
        try:
            return await _final(request())
        except TryAgain as error:
            wait_s = backoff.wait_s(failures, error.delay_s, rng)
            logger.warning("teacher: batch service: %s; trying again in %.1f s", error, wait_s)
            await asyncio.sleep(wait_s)
    return await _final(request())


async def _final(request: Awaitable[Result]) -> Result:
    """There are no rows here that a refusal could be about, so that it is final."""
    try:
        return await request
    except RowRefused as error:
        raise TeacherRefused(str(error)) from error
