"""PostgreSQL: the article database and the teacher ledger, on the embedded server or wherever the settings point."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from newsjuice_pipelines.database.embedded import start_embedded
from newsjuice_pipelines.database.load import load_articles
from newsjuice_pipelines.database.migrate import migrate
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    import psycopg

    from newsjuice_pipelines.podcast.ledger import Ledger

logger = logging.getLogger("newsjuice.database")


class DatabaseUnreachable(ConnectionError):
    """A PostgreSQL server cannot be reached. The message names the server, never the password."""


def embedded_url(settings: Settings) -> str:
    """The embedded server's database, started, migrated, and filled with the demo corpus when it holds no article."""
    import psycopg

    url = start_embedded(settings.home / "postgres")
    with psycopg.connect(url) as connection:
        migrate(connection, "source")
        migrate(connection, "ledger")
        if settings.demo and connection.execute("SELECT 1 FROM articles LIMIT 1").fetchone() is None:
            summary = load_articles(connection, DEMO_ARTICLES)
            logger.info("loaded the demo corpus: %d articles, %d chunks", summary.articles_written, summary.chunks_written)
    return url


def connect(url: str, variable: str) -> "psycopg.Connection":
    """Connect to `url`, which came from the environment variable `variable`.

    Raises:
        DatabaseUnreachable: with the server's name, the reason and the variable to check; never the password.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message quotes the URL, and so the password
        raise DatabaseUnreachable(
            f"{variable} is not a PostgreSQL URL: it should look like postgresql://user:password@host:5432/database."
        ) from None
    where = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
    try:
        return psycopg.connect(url, connect_timeout=10, application_name="newsjuice-pipelines")
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        password = str(parts.get("password") or "")
        if password:
            reason = reason.replace(password, "***")
        raise DatabaseUnreachable(
            f"no PostgreSQL answers at {where}: {reason} Check {variable}, or unset it to use the embedded server."
        ) from None


class ArticleDatabase(dg.ConfigurableResource):
    """The PostgreSQL database that holds articles and chunks; opened read-only."""

    chunks_table: str = Field(default="chunks_vector", description="Table of chunks, optionally with its schema.")
    statement_timeout_s: int = Field(default=600, description="Longest time one statement may take, seconds.")

    @contextmanager
    def read_only(self) -> Iterator["psycopg.Connection"]:
        """A connection on which every transaction is read-only and every statement has a timeout."""
        settings = load_settings()
        url = settings.database_url.get_secret_value() if settings.database_url else embedded_url(settings)
        with connect(url, "NEWSJUICE_DATABASE_URL") as connection:
            # Not as a start-up option: connection poolers refuse those, and it would replace the ones in the URL.
            connection.execute("SELECT set_config('statement_timeout', %s, false)", (f"{self.statement_timeout_s}s",))
            connection.commit()
            connection.read_only = True
            yield connection


class TeacherLedger(dg.ConfigurableResource):
    """The table of replies that were already paid for, in the pipeline's own schema `newsjuice`."""

    def open(self) -> "Ledger":
        """The ledger, with its table created when it is missing."""
        from newsjuice_pipelines.podcast.ledger import Ledger

        settings = load_settings()
        if settings.ledger_url is None:
            return Ledger(embedded_url(settings))
        url = settings.ledger_url.get_secret_value()
        with connect(url, "NEWSJUICE_LEDGER_URL") as connection:
            migrate(connection, "ledger")
        return Ledger(url)
