"""A run of the teacher over many chunks: what is in the ledger is taken from there, the rest is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.teaching.asking import Asking
from newsjuice_pipelines.podcast.teaching.batches import BatchConfig, BatchService, answer_in_batches
from newsjuice_pipelines.podcast.teaching.ledger import Ledger, run_owner
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.teacher import Teacher, TeacherReply, TeacherUnavailable, request_key
from newsjuice_pipelines.podcast.teaching.teacher_table import judged, teacher_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.podcast")


@dataclass(frozen=True)
class ScriptRun:
    """The table of scripts (`TEACHER_COLUMNS`, in the order of the chunks), and what the run took."""

    scripts: pd.DataFrame
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ScriptPlan:
    """What a run would do: requests and their cost, without asking anything."""

    rows: int
    different_requests: int
    """Rows with the same text and settings are asked once."""
    in_ledger: int
    in_batches: int
    """Requests that an open batch job answers already."""
    calls: int
    most_usd: float | None
    """Upper bound, US dollars; None when the price is not known."""
    expected_usd: float | None
    """At the mean cost of such answers in the ledger; None when there is none, or no price."""
    within_budget: int | None
    """Calls that the budget covers at their upper bounds; None without a budget or a price."""

    def sentence(self) -> str:
        """For the log and the terminal."""
        known = f"{self.in_ledger:,} answers are in the ledger"
        if self.in_batches:
            known += f", {self.in_batches:,} in open batch jobs"
        if self.calls == 0:
            return f"No call would be made: {known}."
        if self.most_usd is None:
            cost = "unknown, since no price of this model is known here"
        elif self.most_usd == 0:
            cost = "none"
        else:
            cost = f"at most ${self.most_usd:.4f}"
            if self.expected_usd is not None:
                cost += f", about ${self.expected_usd:.4f} at the mean cost so far"
        budget = "" if self.within_budget is None else f" The budget covers at least {self.within_budget:,} of them."
        return f"{self.calls:,} calls would be made for {self.rows:,} chunks ({known}). Cost: {cost}.{budget}"


def plan_scripts(
    chunks: pd.DataFrame,
    teacher: Teacher,
    ledger: Ledger,
    config: AskingConfig | None = None,
    batches: BatchConfig | None = None,
) -> ScriptPlan:
    """The dry run: how many calls `write_scripts` would make now, and what they would cost."""
    config, batches = config or AskingConfig(), batches or BatchConfig()
    articles = {request_key(teacher, text): text for text in chunks["text"]}
    missing = articles.keys() - ledger.find(articles.keys()).keys()
    waited_for = ledger.in_batches(missing)
    calls = [key for key in articles if key in missing and key not in waited_for]
    bounds = [teacher.most_usd(articles[key], batch=batches.mode == "batch") for key in calls]
    known = [bound for bound in bounds if bound is not None]
    mean_usd = ledger.mean_cost_usd(teacher.model, teacher.prompt_version, batches.mode)
    ledger.close()
    is_priced = len(known) == len(bounds)
    limit = config.max_budget_usd
    return ScriptPlan(
        rows=len(chunks),
        different_requests=len(articles),
        in_ledger=len(articles) - len(missing),
        in_batches=len(waited_for),
        calls=len(calls),
        most_usd=sum(known) if is_priced else None,
        expected_usd=None if mean_usd is None else mean_usd * len(calls),
        within_budget=None if limit is None or not is_priced else sum(spent <= limit for spent in accumulate(known)),
    )


def write_scripts(
    chunks: pd.DataFrame,
    teacher: Teacher,
    ledger: Ledger,
    config: AskingConfig | None = None,
    batches: BatchConfig | None = None,
    service_in: Callable[[str], BatchService] | None = None,
) -> ScriptRun:
    """A script for each chunk, in the order of `chunks`; rows with a status other than `ok` are for counting only.

    A reply found in the ledger is not asked for again, and a new one is committed there before it is used. Chunks with the
    same text are asked once. Two runs over the same chunks share the work.

    Args:
        chunks: `chunk_id`, `article_id` and `text`.
        teacher: who writes.
        ledger: where replies and claims are kept.
        config: pace, retries, budget.
        batches: whether batch jobs answer first.
        service_in: the batch service for a folder; None for a teacher that has none.

    Raises:
        ValueError: there is a budget, but a price is not known.
        TeacherRefused: a permanent error; nothing more was asked.
        TeacherUnavailable: ten scripts in a row failed, or all that there are.
        LedgerUnavailable: the ledger's database cannot be reached.
    """
    keys = [request_key(teacher, text) for text in chunks["text"]]
    articles = dict(zip(keys, chunks["text"], strict=True))
    replies = ledger.find(articles.keys())
    in_ledger = len(replies)
    if in_ledger:
        logger.info("teacher: %d of %d answers are in the ledger", in_ledger, len(articles))
    facts: dict[str, Any] = {"rows": len(chunks), "from_ledger": in_ledger}
    config = config or AskingConfig()
    missing = {key: article for key, article in articles.items() if key not in replies}
    owner = run_owner()
    limit = config.max_budget_usd
    if limit is not None and any(teacher.most_usd(text) is None for text in missing.values()):
        raise ValueError(
            f"max_budget_usd is set, but the price of {teacher.model} is not known here: give input_price, cached_price and "
            "output_price (US dollars per million tokens), or leave the budget empty."
        )
    if missing and service_in is not None:
        made = answer_in_batches(teacher, ledger, batches or BatchConfig(), missing, service_in, owner, limit)
        facts |= asyncio.run(made)
        if limit is not None:
            config = replace(config, max_budget_usd=max(0.0, limit - facts["batch_most_usd"]))
        replies |= ledger.find(missing.keys())
        missing = {key: article for key, article in missing.items() if key not in replies}
    with ThreadPoolExecutor(1, thread_name_prefix="script-filters") as filters:  # judges while the service works
        verdicts: dict[str, Future[TeacherReply]] = {}

        def judge(key: str, reply: TeacherReply) -> None:
            verdicts[key] = filters.submit(judged, reply, articles[key])

        if missing:
            answers = asyncio.run(Asking(teacher, ledger, config, owner, judge).run(missing))
            replies |= answers.replies
            facts |= answers.facts
        if replies and all(reply.status == "failed" for reply in replies.values()):
            raise TeacherUnavailable(f"{teacher.model}: all {len(replies)} scripts failed. {next(iter(replies.values())).error}")
        seen = {
            key: verdicts[key].result() if key in verdicts else judged(reply, articles[key]) for key, reply in replies.items()
        }
    ledger.store_verdicts({key: reply for key, reply in seen.items() if reply is not replies[key]})
    ledger.close()
    return ScriptRun(teacher_table(chunks, keys, seen, teacher), facts)
