"""`newsjuice migrate`: brings the teacher ledger's tables up to date, before code that needs them starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from newsjuice_pipelines.settings import Settings


def migrate(settings: Settings) -> int:
    """Apply the ledger migrations that are missing, and say which; returns the exit status."""
    from newsjuice_pipelines.database.migrate import migrate as apply
    from newsjuice_pipelines.resources.postgres import connect, embedded_url

    if settings.ledger_url is None:
        embedded_url(settings)
        print("The embedded database is up to date.")
        return 0
    with connect(settings.ledger_url.get_secret_value(), "NEWSJUICE_LEDGER_URL") as connection:
        done = apply(connection, "ledger")
    print(f"Applied {', '.join(done)}." if done else "The ledger is up to date.")
    return 0
