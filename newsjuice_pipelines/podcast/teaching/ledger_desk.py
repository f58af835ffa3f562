"""The ledger as one run uses it: in a thread of its own beside the run's event loop, with a heartbeat that keeps its claims."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from newsjuice_pipelines.podcast.teaching.ledger import Ledger, LedgerUnavailable
from newsjuice_pipelines.podcast.teaching.teacher import TeacherReply

Result = TypeVar("Result")


def wall_clock() -> float:
    """Seconds that also pass while the machine sleeps, as they do for the leases in the database."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LedgerDesk:
    """The claims and replies of one run of one teacher.

    Args:
        ledger: used by this desk's thread only until it is closed.
        owner: the name of this run's claims, different from every other run's.
        lease_s: how long claims outlive a run that falls silent, seconds.
        model, prompt_version: of the teacher.
    """

    def __init__(
        self,
        ledger: Ledger,
        owner: str,
        lease_s: float,
        model: str,
        prompt_version: str,
        clock: Callable[[], float] = wall_clock,
    ) -> None:
        self._ledger, self._owner, self._lease_s, self._clock = ledger, owner, lease_s, clock
        self._model, self._prompt_version = model, prompt_version
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-ledger")
        self._closed = threading.Event()
        self._renewed_at = clock()

    async def open(self) -> None:
        """Free what killed runs of this host claim, and start the heartbeat."""
        await self._do(self._ledger.release_dead_owners)
        self._renewed_at = self._clock()
        threading.Thread(target=self._keep_claims, name="teacher-heartbeat", daemon=True).start()

    async def close(self) -> None:
        """Give up all claims, as far as the database can be reached."""
        self._closed.set()
        with suppress(LedgerUnavailable):
            await self._do(self._ledger.release, self._owner)
        self._thread.shutdown(wait=False)

    def give_up(self) -> None:
        """No longer wait for a lost database."""
        self._ledger.give_up()

    @property
    def is_lapsed(self) -> bool:
        """Whether claims may be another run's by now: this process was suspended for longer than the lease."""
        return self._clock() - self._renewed_at > self._lease_s

    async def claim(self, keys: Collection[str]) -> set[str]:
        """Those of `keys` that this run may ask for."""
        return await self._do(self._ledger.claim, keys, self._owner, self._lease_s, self._model, self._prompt_version)

    async def confirm(self, keys: Collection[str]) -> set[str]:
        """After a lapse: those of `keys` that are still this run's, or are again."""
        self._renewed_at = self._clock()
        return await self.claim(keys)

    async def find(self, keys: Collection[str]) -> dict[str, TeacherReply]:
        """The replies that are there, by key."""
        return await self._do(self._ledger.find, keys)

    async def store(self, replies: Mapping[str, TeacherReply]) -> dict[str, TeacherReply]:
        """Commit replies; returns those that are in force."""
        return await self._do(self._ledger.store, replies, self._owner, self._model, self._prompt_version)

    async def release(self, keys: Collection[str]) -> None:
        """Give up these claims."""
        await self._do(self._ledger.release, self._owner, keys)

    def _keep_claims(self) -> None:
        """The heartbeat, a thread of its own: a loop that is busy must not lose its claims."""
        while not self._closed.wait(self._lease_s / 3):
            asked_at = self._clock()
            with suppress(LedgerUnavailable, RuntimeError):  # the run's next statement will say so; or the run is over
                self._thread.submit(self._ledger.renew, self._owner, self._lease_s).result()
                if asked_at - self._renewed_at <= self._lease_s:  # else some may be lost: `confirm` finds out which
                    self._renewed_at = asked_at

    async def _do(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
