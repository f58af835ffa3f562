"""A run of the teacher over many chunks: what is in the ledger is taken from there, the rest is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.asking import Asking, AskingConfig
from newsjuice_pipelines.podcast.batches import BatchConfig, BatchService, answer_in_batches
from newsjuice_pipelines.podcast.ledger import Ledger, run_owner
from newsjuice_pipelines.podcast.teacher import Teacher, request_key
from newsjuice_pipelines.podcast.teacher_table import judged, teacher_table

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
    calls: int
    most_usd: float | None
    """Upper bound, US dollars; None when the price is not known."""
    expected_usd: float | None
    """At the mean cost of the answers in the ledger; None when there is none, or no price."""

    def sentence(self) -> str:
        """For the log and the terminal."""
        if self.calls == 0:
            return f"All {self.different_requests:,} answers are in the ledger: no call would be made."
        if self.most_usd is None:
            cost = "unknown, since no price of this model is known here"
        elif self.most_usd == 0:
            cost = "none"
        else:
            cost = f"at most ${self.most_usd:.4f}"
            if self.expected_usd is not None:
                cost += f", about ${self.expected_usd:.4f} at the mean cost so far"
        return (
            f"{self.calls:,} calls would be made for {self.rows:,} chunks ({self.in_ledger:,} answers are in the ledger). "
            f"Cost: {cost}."
        )


def plan_scripts(chunks: pd.DataFrame, teacher: Teacher, ledger: Ledger) -> ScriptPlan:
    """The dry run: how many calls `write_scripts` would make now, and what they would cost."""
    articles = {request_key(teacher, text): text for text in chunks["text"]}
    missing = articles.keys() - ledger.find(articles.keys()).keys()
    bounds = [teacher.most_usd(articles[key]) for key in missing]
    known = [bound for bound in bounds if bound is not None]
    history = ledger.history(teacher.model, teacher.prompt_version)
    ledger.close()
    return ScriptPlan(
        rows=len(chunks),
        different_requests=len(articles),
        in_ledger=len(articles) - len(missing),
        calls=len(missing),
        most_usd=sum(known) if len(known) == len(bounds) else None,
        expected_usd=None if history.cost_usd is None else history.cost_usd * len(missing),
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
        TeacherRefused: a permanent error; nothing more was asked.
        TeacherUnavailable: ten scripts in a row failed, or all of them.
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
    if missing and service_in is not None:
        batched = asyncio.run(
            answer_in_batches(teacher, ledger, batches or BatchConfig(), missing, service_in, config.max_budget_usd)
        )
        facts |= batched
        if config.max_budget_usd is not None:
            config = replace(config, max_budget_usd=max(0.0, config.max_budget_usd - (batched["batch_usd"] or 0.0)))
        replies |= ledger.find(missing.keys())
        missing = {key: article for key, article in missing.items() if key not in replies}
    if missing:
        answers = asyncio.run(Asking(teacher, ledger, config, run_owner(), judged).run(missing))
        replies |= answers.replies
        facts |= answers.facts
    ledger.close()
    return ScriptRun(teacher_table(chunks, keys, replies, teacher), facts)
