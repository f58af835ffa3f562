"""Numbered SQL migrations, applied once each: `source` is the article schema (embedded server only), `ledger` our own."""

from __future__ import annotations

import hashlib
import logging
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger("newsjuice.database")

_LOCK = 7_305_112  # advisory lock: two processes never migrate at once


class MigrationChanged(RuntimeError):
    """A migration that was applied has another text now."""


def migrate(connection: psycopg.Connection, collection: str) -> list[str]:
    """Apply the migrations of `collection` (a folder below `migrations/`) that are missing; returns their names.

    Each migration and its record are one transaction, so an interrupted one leaves nothing behind. Running again is free.

    Raises:
        MigrationChanged: an applied file was edited; write a new one instead.
    """
    connection.autocommit = True
    connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    try:
        if not _has_schema(connection):  # asked first: IF NOT EXISTS needs the right to create even when it exists
            connection.execute("CREATE SCHEMA newsjuice")
        connection.execute(
            """
            CREATE TABLE IF NOT EXISTS newsjuice.schema_migrations (
                name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
        rows = connection.execute("SELECT name, sha256 FROM newsjuice.schema_migrations").fetchall()
        applied: dict[str, str] = dict(rows)
        done = []
        for name, sql in _migrations(collection):
            digest = hashlib.sha256(sql.encode()).hexdigest()
            if name in applied:
                if applied[name] != digest:
                    raise MigrationChanged(f"migration {name} was changed after it was applied: restore it and add a new file.")
                continue
            with connection.transaction():
                connection.execute(sql.encode())
                connection.execute("INSERT INTO newsjuice.schema_migrations (name, sha256) VALUES (%s, %s)", (name, digest))
            logger.info("applied migration %s", name)
            done.append(name)
        return done
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def _has_schema(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'newsjuice'").fetchone() is not None


def _migrations(collection: str) -> list[tuple[str, str]]:
    folder = resources.files("newsjuice_pipelines.database") / "migrations" / collection
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [(f"{collection}/{entry.name}", entry.read_text(encoding="utf-8")) for entry in files]
