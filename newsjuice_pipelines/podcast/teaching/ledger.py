"""The teacher ledger: every reply that was paid for, kept in PostgreSQL before it is used, and who is asking for what.

A row of `newsjuice.teacher_ledger` without a reply is a claim with a lease. Only answers are kept (also blocked, truncated and
empty ones, which would come again); failed requests never are.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from newsjuice_pipelines.podcast.teaching.teacher import TeacherReply

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger("newsjuice.podcast")

KEPT_STATUSES = frozenset({"ok", "blocked_prompt", "blocked_output", "truncated", "empty"})

_FIELDS = frozenset(field.name for field in fields(TeacherReply))
_BLOCK_KEYS = 5_000  # keys a statement
_PAUSE_S = 0.5
_STATEMENT_TIMEOUT = "60s"
# Rows are locked in the order of their keys everywhere, so that no two runs wait for each other.
_RENEW = """
    UPDATE newsjuice.teacher_ledger SET leased_until = now() + make_interval(secs => %s) WHERE key IN (
        SELECT key FROM newsjuice.teacher_ledger WHERE claimed_by = %s AND reply IS NULL ORDER BY key FOR UPDATE
    ) RETURNING 1
"""
_RELEASE = """
    DELETE FROM newsjuice.teacher_ledger WHERE key IN (
        SELECT key FROM newsjuice.teacher_ledger
        WHERE claimed_by = %s AND reply IS NULL AND (%s::text[] IS NULL OR key = ANY(%s)) ORDER BY key FOR UPDATE
    ) RETURNING 1
"""

Result = TypeVar("Result")


class LedgerUnavailable(RuntimeError):
    """The ledger's database cannot be reached, or has no ledger table."""


@dataclass(frozen=True)
class OpenBatch:
    """A batch job that was recorded and not collected."""

    name: str
    folder: str
    made_by: str
    job: str | None
    """The service's name of it; None while it is being made, or where the run ended before it was known."""
    age_s: float

    @property
    def claims_owner(self) -> str:
        """The owner of the claims on its rows."""
        return batch_owner(self.name)


def batch_owner(name: str) -> str:
    """The owner of the claims on the rows of a batch job."""
    return f"batch/{name}"


def run_owner() -> str:
    """A new name for the claims of a run of this process.

    Where the system tells, it says which process of which boot of which machine or container this is, so that a later run
    there can tell that the process is dead.
    """
    return f"{socket.gethostname()}/{_process_name(os.getpid()) or 'unknown'}/{uuid.uuid4().hex[:8]}"


def is_dead(owner: str) -> bool:
    """Whether `owner` is a process of this boot of this machine or container that runs no more. False where one cannot tell."""
    host, _, rest = owner.partition("/")
    name, _, _ = rest.rpartition("/")
    here = _process_name(os.getpid())
    if host != socket.gethostname() or here is None or name.count(":") != here.count(":"):
        return False
    *place, pid, _ = name.split(":")
    if place != here.split(":")[:-2]:
        return False
    return _process_name(int(pid)) != name


def _process_name(pid: int) -> str | None:
    """boot:pid namespace:pid:start (in clock ticks since the boot, which no change of the clock moves); None off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return None
    return f"{boot}:{namespace}:{pid}:{ticks}"


class Ledger:
    """Replies and claims by request key, over one connection that is opened again when it is lost.

    Every method is one statement that may be repeated without harm, so a lost connection is waited out for `outage_s`. Use one
    ledger from one thread.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection], *, outage_s: float = 300.0) -> None:
        self._connect = connect
        self._outage_s = outage_s
        self._connection: psycopg.Connection | None = None
        self._was_connected = False
        self._given_up = threading.Event()

    def find(self, keys: Collection[str]) -> dict[str, TeacherReply]:
        """The replies that are there, by key."""
        found: dict[str, TeacherReply] = {}
        for block in _blocks(keys):
            rows = self._rows(
                "SELECT key, reply FROM newsjuice.teacher_ledger WHERE key = ANY(%s) AND reply IS NOT NULL", (block,)
            )
            found.update({key: _reply_from_json(reply) for key, reply in rows})
        return found

    def claim(self, keys: Collection[str], owner: str, lease_s: float, model: str, prompt_version: str) -> set[str]:
        """The keys that `owner` may ask for now. Left out: those with a reply, and those of another owner's running lease."""
        claimed: set[str] = set()
        for block in _blocks(keys):
            rows = self._rows(
                """
                INSERT INTO newsjuice.teacher_ledger AS ledger (key, model, prompt_version, claimed_by, leased_until)
                SELECT key, %(model)s, %(prompt)s, %(owner)s, now() + make_interval(secs => %(lease)s)
                FROM unnest(%(keys)s::text[]) AS wanted (key) ORDER BY key
                ON CONFLICT (key) DO UPDATE SET claimed_by = excluded.claimed_by, leased_until = excluded.leased_until
                WHERE ledger.reply IS NULL AND (ledger.leased_until < now() OR ledger.claimed_by = excluded.claimed_by)
                RETURNING key
                """,
                {"keys": block, "owner": owner, "lease": lease_s, "model": model, "prompt": prompt_version},
            )
            claimed |= {key for (key,) in rows}
        return claimed

    def renew(self, owner: str, lease_s: float) -> None:
        """Let the lease of everything that `owner` claims end `lease_s` seconds from now."""
        self._rows(_RENEW, (lease_s, owner))

    def store(self, replies: Mapping[str, TeacherReply], owner: str, model: str, prompt_version: str) -> dict[str, TeacherReply]:
        """Store answers and commit; returns the answers that are in force now, which may be another run's.

        The first answer to a request stays; failed requests are not stored.
        """
        from psycopg.types.json import Jsonb

        stored: set[str] = set()
        kept = {key: reply for key, reply in replies.items() if reply.status in KEPT_STATUSES}
        for block in _blocks(kept):
            rows = self._rows(
                """
                INSERT INTO newsjuice.teacher_ledger AS ledger
                    (key, model, prompt_version, claimed_by, reply, answered_at)
                SELECT key, %(model)s, %(prompt)s, %(owner)s, reply, now()
                FROM unnest(%(keys)s::text[], %(replies)s::jsonb[]) AS answered (key, reply) ORDER BY key
                ON CONFLICT (key) DO UPDATE
                SET reply = excluded.reply, claimed_by = excluded.claimed_by, answered_at = now(), leased_until = NULL
                WHERE ledger.reply IS NULL
                RETURNING key
                """,
                {
                    "keys": block,
                    "replies": [Jsonb(_json_from_reply(kept[key])) for key in block],
                    "owner": owner,
                    "model": model,
                    "prompt": prompt_version,
                },
            )
            stored |= {key for (key,) in rows}
        return kept | self.find(kept.keys() - stored)

    def store_verdicts(self, replies: Mapping[str, TeacherReply]) -> None:
        """Add what the script filters said to answers that are there, so that no later run has to judge them again."""
        from psycopg.types.json import Jsonb

        for block in _blocks(replies):
            verdicts = [{"judged_by": replies[key].judged_by, "problem": replies[key].problem} for key in block]
            self._rows(
                "UPDATE newsjuice.teacher_ledger AS ledger SET reply = ledger.reply || verdict "
                "FROM unnest(%s::text[], %s::jsonb[]) AS judged (key, verdict) "
                "WHERE ledger.key = judged.key AND ledger.reply IS NOT NULL RETURNING 1",
                (block, [Jsonb(verdict) for verdict in verdicts]),
            )

    def release(self, owner: str, keys: Collection[str] | None = None) -> int:
        """Give up claims of `owner`, all or those of `keys`; returns how many there were."""
        blocks = [None] if keys is None else list(_blocks(keys))
        return sum(len(self._rows(_RELEASE, (owner, block, block))) for block in blocks)

    def release_dead_owners(self) -> int:
        """Give up the claims of processes of this host that are no more, without waiting for their leases."""
        owners = [
            owner for (owner,) in self._rows("SELECT DISTINCT claimed_by FROM newsjuice.teacher_ledger WHERE reply IS NULL", ())
        ]
        released = sum(self.release(owner) for owner in owners if is_dead(owner))
        if released:
            logger.info("teacher ledger: %d claims of a run that was killed are free again", released)
        return released

    def claims_of(self, owner: str) -> list[str]:
        """The keys that `owner` claims."""
        rows = self._rows(
            "SELECT key FROM newsjuice.teacher_ledger WHERE claimed_by = %s AND reply IS NULL ORDER BY key", (owner,)
        )
        return [key for (key,) in rows]

    def mean_cost_usd(self, model: str, prompt_version: str, mode: str) -> float | None:
        """Mean cost of the answers of this model to this prompt version in this mode so far, US dollars; None without any."""
        ((cost,),) = self._rows(
            "SELECT avg((reply ->> 'cost_usd')::float) FROM newsjuice.teacher_ledger "
            "WHERE model = %s AND prompt_version = %s AND coalesce(reply ->> 'mode', 'online') = %s",
            (model, prompt_version, mode),
        )
        return None if cost is None else float(cost)

    def in_batches(self, keys: Collection[str]) -> set[str]:
        """Those of `keys` that a batch job is asked for at the moment."""
        query = "SELECT key FROM newsjuice.teacher_ledger WHERE key = ANY(%s) AND reply IS NULL AND claimed_by LIKE 'batch/%%'"
        return {key for block in _blocks(keys) for (key,) in self._rows(query, (block,))}

    def open_batches(self, model: str, prompt_version: str) -> list[OpenBatch]:
        """Batch jobs that are not collected, oldest first."""
        rows = self._rows(
            "SELECT name, folder, made_by, job, extract(epoch FROM now() - created_at)::float FROM newsjuice.teacher_batches "
            "WHERE model = %s AND prompt_version = %s ORDER BY created_at, name",
            (model, prompt_version),
        )
        return [OpenBatch(*row) for row in rows]

    def record_batch(self, name: str, model: str, prompt_version: str, folder: str, made_by: str) -> None:
        """Note a batch job before its rows are claimed and it is made."""
        self._rows(
            "INSERT INTO newsjuice.teacher_batches (name, model, prompt_version, folder, made_by) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (name) DO NOTHING RETURNING 1",
            (name, model, prompt_version, folder, made_by),
        )

    def name_batch(self, name: str, job: str) -> None:
        """Note how the service calls the job."""
        self._rows("UPDATE newsjuice.teacher_batches SET job = %s WHERE name = %s RETURNING 1", (job, name))

    def forget_batch(self, name: str) -> None:
        """The job is collected, or gone."""
        self._rows("DELETE FROM newsjuice.teacher_batches WHERE name = %s RETURNING 1", (name,))

    def give_up(self) -> None:
        """No longer wait for a lost database; may be called from another thread."""
        self._given_up.set()

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rows(self, query: str, values: Any) -> list[tuple[Any, ...]]:
        return self._run(lambda connection: connection.execute(query.encode(), values).fetchall())

    def _run(self, work: Callable[[psycopg.Connection], Result]) -> Result:
        """Do `work` on the connection, again on a new one when the server went away in the meantime.

        A server that never answered is not waited for: then the address or the password is wrong. One that is read-only for
        the moment (a stand-by that takes over), or does not answer a statement, counts as gone.
        """
        import psycopg
        from psycopg import errors

        lost_at: float | None = None
        while True:
            try:
                result = work(self._open_connection())
                if lost_at is not None:
                    logger.info("teacher ledger: the database is back after %.0f s", time.monotonic() - lost_at)
                return result
            except errors.DeadlockDetected:
                continue  # the statement was undone, and the other one goes on
            except (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction, ConnectionError) as error:
                self._drop_connection()
                now = time.monotonic()
                waited_s = 0.0 if lost_at is None else now - lost_at
                if not self._was_connected or waited_s > self._outage_s or self._given_up.wait(_PAUSE_S):
                    raise LedgerUnavailable(f"the teacher ledger cannot be reached: {error}") from error
                if lost_at is None:
                    logger.warning(
                        "teacher ledger: lost the database (%s); trying again for %.0f s", type(error).__name__, self._outage_s
                    )
                    lost_at = now
            except errors.UndefinedTable as error:
                raise LedgerUnavailable("the database has no teacher ledger: apply the ledger migrations.") from error
            except errors.InsufficientPrivilege as error:
                raise LedgerUnavailable(
                    f"the ledger's user lacks a right ({error.diag.message_primary}): it reads and writes the schema newsjuice."
                ) from error
            except psycopg.Error as error:
                raise LedgerUnavailable(f"the teacher ledger failed: {error}") from error

    def _open_connection(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = self._connect()
            self._connection.autocommit = True
            self._was_connected = True
            self._connection.execute("SELECT set_config('statement_timeout', %s, false)", (_STATEMENT_TIMEOUT,))
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _blocks(keys: Iterable[str]) -> Iterable[list[str]]:
    ordered = sorted(keys)
    return (ordered[start : start + _BLOCK_KEYS] for start in range(0, len(ordered), _BLOCK_KEYS))


def _json_from_reply(reply: TeacherReply) -> dict[str, Any]:
    return {name: value.replace("\x00", "") if isinstance(value, str) else value for name, value in asdict(reply).items()}


def _reply_from_json(values: dict[str, Any]) -> TeacherReply:
    return TeacherReply(**{name: value for name, value in values.items() if name in _FIELDS})
