"""The table of chunks in PostgreSQL: its columns, its rows as a stream, and questions that need no sample.

What is made of the rows is `chunks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.sampling.chunk_filters import SOURCE_COLUMNS

if TYPE_CHECKING:
    import psycopg

_FETCH_ROWS = 200
# By category of pg_type: what the code does with a column must be possible for all its values.
_COLUMN_KINDS = {"published_at": "D", "fetched_at": "D", "chunk_index": "N", "chunk": "S"}
_KIND_NAMES = {"D": "a timestamp", "N": "a number", "S": "text"}


class SourceTableError(RuntimeError):
    """The table of article chunks cannot be used as it is."""


def check_columns(connection: psycopg.Connection, name: tuple[str, ...]) -> None:
    """Stop at a table that is not there, or whose columns are missing or of unfit types.

    Raises:
        SourceTableError: with what is wrong and what to do.
    """
    from psycopg import sql

    table = ".".join(name)
    with connection.transaction():
        quoted = sql.Identifier(*name).as_string(connection)
        found = connection.execute(
            "SELECT attname, typcategory, format_type(atttypid, NULL) FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            (quoted,),
        ).fetchall()
    if not found:
        raise SourceTableError(
            f"there is no table {table} in the database {connection.info.dbname!r}: "
            "check NEWSJUICE_CHUNKS_TABLE and the settings of the database."
        )
    missing = sorted(set(SOURCE_COLUMNS) - {column for column, _, _ in found})
    if missing:
        raise SourceTableError(
            f"the table {table} has no column {', '.join(missing)}: "
            "point NEWSJUICE_CHUNKS_TABLE at a table or view with the columns of chunks_vector."
        )
    for column, kind, type_name in found:
        wanted = _COLUMN_KINDS.get(column)
        if wanted is not None and (kind != wanted or type_name == "date"):
            raise SourceTableError(
                f"the column {column} of {table} must be {_KIND_NAMES[wanted]}, and is {type_name}: "
                "convert it, or point NEWSJUICE_CHUNKS_TABLE at a view that does."
            )


def estimated_articles(connection: psycopg.Connection, table: str) -> float | None:
    """How many different articles the server's statistics say that `table` has; None where it has none of them.

    Views have no statistics, and tables that were never analysed.
    """
    from psycopg import sql

    with connection.transaction():
        quoted = sql.Identifier(*table.split(".")).as_string(connection)
        row = connection.execute(
            """
            SELECT CASE WHEN n_distinct < 0 THEN -n_distinct * reltuples ELSE n_distinct END
            FROM pg_class
            JOIN pg_namespace ON pg_namespace.oid = relnamespace
            JOIN pg_stats ON schemaname = nspname AND tablename = relname AND attname = 'article_id'
            WHERE pg_class.oid = to_regclass(%s) AND reltuples > 0
            """,
            (quoted,),
        ).fetchone()
    return float(row[0]) if row and row[0] else None


@contextmanager
def read_rows(
    connection: psycopg.Connection, name: tuple[str, ...], statement_timeout_s: int, seed: int, share: float
) -> Iterator[Iterator[tuple[Any, ...]]]:
    """The rows of the lowest ranked `share` of the articles, all of them at 1, in one read-only transaction.

    They come from a server-side cursor in batches that stay in the processor's cache.
    """
    from psycopg import errors, sql
    from psycopg.rows import tuple_row

    query = sql.SQL("SELECT {columns} FROM {table}").format(
        columns=sql.SQL(", ").join([sql.SQL("article_id::text"), *map(sql.Identifier, SOURCE_COLUMNS[1:])]),
        table=sql.Identifier(*name),
    )
    values: tuple[Any, ...] = ()
    if share < 1:  # the same order as that of `chunk_ranks.rank`: the first eight bytes of the digest
        query += sql.SQL(" WHERE sha256(convert_to(%s || coalesce(article_id::text, chunk, ''), 'UTF8')) < %s")
        values = (f"{seed}|", int(share * 2**64).to_bytes(8))
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{statement_timeout_s}s",))
        with connection.cursor("newsjuice_chunks", row_factory=tuple_row) as cursor:
            try:
                cursor.execute(query, values)
            except errors.InsufficientPrivilege as error:
                who = connection.info.user
                raise SourceTableError(f"the user {who!r} may not read {'.'.join(name)}: grant SELECT on it.") from error
            try:
                yield chain.from_iterable(iter(partial(cursor.fetchmany, _FETCH_ROWS), []))
            except errors.DataError as error:
                raise SourceTableError(f"a value of {'.'.join(name)} cannot be read: {error}") from error


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
