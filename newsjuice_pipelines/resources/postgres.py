"""PostgreSQL: the article database and the teacher ledger, on the embedded server or wherever the settings point."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import dagster as dg
from pydantic import Field

from newsjuice_pipelines.database.embedded import start_embedded
from newsjuice_pipelines.database.load import load_articles
from newsjuice_pipelines.database.migrate import migrate
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    import psycopg

    from newsjuice_pipelines.podcast.teaching.ledger import Ledger

logger = logging.getLogger("newsjuice.database")

Answer = TypeVar("Answer")

# Before the second, third and fourth try: a restart takes seconds, the failover of a managed instance up to a minute.
RETRY_WAITS_S = (1.0, 10.0, 60.0)
# For what the URL leaves open. A peer that vanished without a word is noticed after a minute, not after two hours.
CONNECTION_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 10,
    "application_name": "newsjuice-pipelines",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


class DatabaseUnreachable(ConnectionError):
    """A PostgreSQL server cannot be reached. The message names the server, never the password."""


class ConnectionLost(DatabaseUnreachable):
    """A connection that had been there has ended."""


class StatementTimeout(ValueError):
    """The article database was given too little time for a statement."""


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
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    _refuse_ambiguous(url, variable)
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message quotes the URL, and so the password
        raise DatabaseUnreachable(
            f"{variable} is not a PostgreSQL URL: it should look like postgresql://user:password@host:5432/database."
        ) from None
    where = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
    try:
        defaults = {name: value for name, value in CONNECTION_DEFAULTS.items() if name not in parts}
        return psycopg.connect(make_conninfo(url, **defaults))
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(
            f"no PostgreSQL answers at {where}: {_reason(error, str(parts.get('password') or ''))} Check {variable}, "
            "or unset it to use the embedded server."
        ) from None


def _refuse_ambiguous(url: str, variable: str) -> None:
    """Stop at a URL whose password has a bare @ or /: the rest of the password would be read, and shown, as a host's name."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    if scheme not in ("postgresql", "postgres"):  # key=value pairs, or nonsense that the parser names
        return
    if authority.count("@") > 1 or "@" in path:
        raise DatabaseUnreachable(
            f"{variable} cannot be read: write special characters of its user and password in percent form (@ is %40, / is %2F)."
        )


def _reason(error: Exception, password: str) -> str:
    """An error's text on one line and without the password."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(password, "***") if password else text


@contextmanager
def cloud_sql(settings: Settings) -> Iterator["psycopg.Connection"]:
    """A connection through the Cloud SQL connector, over TLS and with application-default credentials; closed at the end.

    Logs in by IAM, or with the password of the settings where there is one.

    Raises:
        ValueError: the settings are not complete.
        DatabaseUnreachable: the connector is not installed, there are no credentials, or the instance does not answer.
    """
    instance, user, database = settings.cloud_sql_instance or "", settings.cloud_sql_user, settings.cloud_sql_database
    if not re.fullmatch(r"([\w.-]+:)?[\w-]+:[\w-]+:[\w-]+", instance):
        raise ValueError(f"NEWSJUICE_CLOUD_SQL_INSTANCE={instance!r}: it should look like project:region:instance.")
    if not user or not database:
        raise ValueError("NEWSJUICE_CLOUD_SQL_INSTANCE needs NEWSJUICE_CLOUD_SQL_USER and NEWSJUICE_CLOUD_SQL_DATABASE.")
    try:
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud.sql.connector import Connector
    except ImportError:
        raise DatabaseUnreachable(
            "NEWSJUICE_CLOUD_SQL_INSTANCE needs the Cloud SQL connector: pip install 'newsjuice-pipelines[gcp]'."
        ) from None
    try:
        connector = Connector(ip_type=settings.cloud_sql_ip_type, refresh_strategy="lazy")
    except DefaultCredentialsError:
        raise DatabaseUnreachable(
            f"no Google credentials for the Cloud SQL instance {instance}: run `gcloud auth application-default login`, "
            "or set GOOGLE_APPLICATION_CREDENTIALS."
        ) from None
    password = settings.cloud_sql_password.get_secret_value() if settings.cloud_sql_password else ""
    log_in = {"password": password, "enable_iam_auth": False} if password else {"enable_iam_auth": True}
    with connector:
        try:
            name = CONNECTION_DEFAULTS["application_name"]
            connection = connector.connect(instance, "psycopg", user=user, db=database, application_name=name, **log_in)
        except Exception as error:  # those of HTTP, TLS, Google's log-in, the connector and PostgreSQL share no other class
            raise DatabaseUnreachable(
                f"the Cloud SQL instance {instance} does not answer: {_reason(error, password)} "
                "Check the NEWSJUICE_CLOUD_SQL_ variables, and that the account has the role Cloud SQL Client."
            ) from None
        with connection:
            yield connection


class ArticleDatabase(dg.ConfigurableResource):
    """The PostgreSQL database that holds articles and chunks; opened read-only."""

    chunks_table: str = Field(default="chunks_vector", description="Table of chunks, optionally with its schema.")
    statement_timeout_s: int = Field(default=600, description="Longest time one statement may take, seconds.")

    def read(self, question: Callable[["psycopg.Connection"], Answer]) -> Answer:
        """What `question` returns for a read-only connection; asked again from the start when the connection is lost.

        That is done three times at most, with growing waits. A server that never answered, a refused log-in, a missing table
        or a statement that takes too long are errors at once.
        """
        waits = iter(RETRY_WAITS_S)
        lost = False
        while True:
            try:
                with self.read_only() as connection:
                    return question(connection)
            except DatabaseUnreachable as error:
                lost = lost or isinstance(error, ConnectionLost)  # while it restarts, a server refuses connections
                wait_s = next(waits, None)
                if not lost or wait_s is None:
                    raise
                logger.warning("reading the article database again in %.0f s: %s", wait_s, error)
                time.sleep(wait_s)

    @contextmanager
    def read_only(self) -> Iterator["psycopg.Connection"]:
        """A connection on which every transaction is read-only and every statement has a timeout.

        Raises:
            DatabaseUnreachable: nobody answers; as `ConnectionLost` when the connection ended while it was in use.
            StatementTimeout: a statement took longer than `statement_timeout_s`.
        """
        from psycopg import InterfaceError, OperationalError, errors

        with _article_connection(load_settings()) as connection:
            try:
                # Not as a start-up option: connection poolers refuse those, and it would replace the ones in the URL.
                connection.execute("SELECT set_config('statement_timeout', %s, false)", (f"{self.statement_timeout_s}s",))
                connection.execute("SELECT set_config('TimeZone', 'UTC', false)")  # a day is the same day everywhere
                connection.commit()
                connection.read_only = True
                yield connection
            except errors.QueryCanceled as error:
                raise StatementTimeout(
                    f"the article database stopped a statement ({error.diag.message_primary}): one may take "
                    f"{self.statement_timeout_s} s. Set NEWSJUICE_STATEMENT_TIMEOUT_S to more seconds."
                ) from error
            except (OperationalError, InterfaceError) as error:
                if not connection.broken:
                    raise
                raise ConnectionLost(f"the connection to the article database was lost: {_reason(error, '')}") from error


@contextmanager
def _article_connection(settings: Settings) -> Iterator["psycopg.Connection"]:
    """A connection to wherever the settings say that the articles are."""
    if settings.cloud_sql_instance is not None:
        if settings.database_url is not None:
            raise ValueError("NEWSJUICE_DATABASE_URL and NEWSJUICE_CLOUD_SQL_INSTANCE are both set: keep one of them.")
        with cloud_sql(settings) as connection:
            yield connection
        return
    url = settings.database_url.get_secret_value() if settings.database_url else embedded_url(settings)
    with connect(url, "NEWSJUICE_DATABASE_URL") as connection:
        yield connection


class TeacherLedger(dg.ConfigurableResource):
    """The table of replies that were already paid for, in the pipeline's own schema `newsjuice`."""

    def open(self) -> "Ledger":
        """The ledger, with its table created when it is missing."""
        from newsjuice_pipelines.podcast.teaching.ledger import Ledger

        settings = load_settings()
        if settings.ledger_url is None:
            url = embedded_url(settings)
        else:
            url = settings.ledger_url.get_secret_value()
            with connect(url, "NEWSJUICE_LEDGER_URL") as connection:
                migrate(connection, "ledger")
        return Ledger(lambda: connect(url, "NEWSJUICE_LEDGER_URL"))
