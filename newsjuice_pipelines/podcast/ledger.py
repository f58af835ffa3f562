"""The teacher ledger: every answer that was paid for, kept in PostgreSQL before it is used.

Only answers are kept (also blocked, truncated and empty ones, which would come again); failed requests never are.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.teacher import TeacherReply

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

KEPT_STATUSES = frozenset({"ok", "blocked", "truncated", "empty"})

_FIELDS = frozenset(field.name for field in fields(TeacherReply))
_LOOKUP_KEYS = 5_000  # keys a query
_CONNECT_TIMEOUT_S = 15


class LedgerUnavailable(RuntimeError):
    """The ledger's database cannot be reached, or has no ledger table."""


class Ledger:
    """Answers by request key in the table `newsjuice.teacher_ledger` of the database at `url`.

    Each call opens and closes its own connection, so that one ledger serves any number of threads.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def get_many(self, keys: Collection[str]) -> dict[str, TeacherReply]:
        """The answers that are there already, by key."""
        from psycopg import sql

        query = sql.SQL("SELECT key, reply FROM newsjuice.teacher_ledger WHERE key = ANY(%s)")
        wanted = list(keys)
        found: dict[str, TeacherReply] = {}
        with self._connection() as connection:
            for start in range(0, len(wanted), _LOOKUP_KEYS):
                rows = connection.execute(query, (wanted[start : start + _LOOKUP_KEYS],))
                found.update({key: _reply_from_json(reply) for key, reply in rows})
        return found

    def put(self, key: str, model: str, prompt_version: str, reply: TeacherReply) -> None:
        """Store an answer and commit. The first answer to a request stays; a failed request is not stored."""
        if reply.status not in KEPT_STATUSES:
            return
        from psycopg.types.json import Jsonb

        values = {name: value.replace("\x00", "") if isinstance(value, str) else value for name, value in asdict(reply).items()}
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO newsjuice.teacher_ledger (key, model, prompt_version, reply) VALUES (%s, %s, %s, %s) "
                "ON CONFLICT (key) DO NOTHING",
                (key, model, prompt_version, Jsonb(values)),
            )

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        import psycopg

        try:
            with psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
                yield connection
        except psycopg.errors.UndefinedTable as error:
            raise LedgerUnavailable("the database has no table newsjuice.teacher_ledger: apply the ledger migrations.") from error
        except psycopg.OperationalError as error:
            raise LedgerUnavailable(f"the teacher ledger cannot be reached: {error}. Check NEWSJUICE_LEDGER_URL.") from error


def _reply_from_json(values: dict[str, Any]) -> TeacherReply:
    return TeacherReply(**{name: value for name, value in values.items() if name in _FIELDS})
