"""Questions about the table of chunks that need no sample: how many rows, which days, what is new."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.chunks import SourceTableError

if TYPE_CHECKING:
    import psycopg


def count_chunks(connection: psycopg.Connection, table: str) -> int:
    """Rows of `table`."""
    return int(_query(connection, table, "SELECT count(*) FROM {table}")[0][0])


def finished_days(connection: psycopg.Connection, table: str, first_day: date, before: date) -> tuple[date, date] | None:
    """The first and last day of `fetched_at` with chunks, from `first_day` to the day before `before`; None without any."""
    query = "SELECT min(fetched_at)::date, max(fetched_at)::date FROM {table} WHERE fetched_at >= %s AND fetched_at < %s"
    first, last = _query(connection, table, query, (first_day, before))[0]
    return None if first is None else (first, last)


def days_with_new_chunks(connection: psycopg.Connection, table: str, after_id: int, before: date) -> tuple[dict[date, int], int]:
    """Finished days that got rows with an id above `after_id`, each with its highest id; and the id to go on from.

    Rows of days that are not over (`fetched_at` from `before` on) are left for later: the id to go on from stays below them.
    """
    query = """
        SELECT fetched_at::date AS day, max(id), min(id) FROM {table}
        WHERE id > %s AND fetched_at IS NOT NULL GROUP BY day ORDER BY day
    """
    rows = _query(connection, table, query, (after_id,))
    finished = {day: int(highest) for day, highest, _ in rows if day < before}
    waiting = [int(lowest) for day, _, lowest in rows if day >= before]
    seen = max((int(highest) for _, highest, _ in rows), default=after_id)
    return finished, min(waiting) - 1 if waiting else seen


def _query(connection: psycopg.Connection, table: str, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Rows of a query in which `{table}` stands for the quoted table name."""
    import psycopg
    from psycopg import sql

    try:
        composed = sql.SQL(query).format(table=sql.Identifier(*table.split(".")))
        return connection.execute(composed, values).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise SourceTableError(
            f"{error.diag.message_primary}: check NEWSJUICE_CHUNKS_TABLE ({table}) and NEWSJUICE_DATABASE_URL."
        ) from None
