"""Reads whole articles: the text for the stand-in base model, and rows for the classifier's external check."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import psycopg


class NoArticles(ValueError):
    """The table of articles is missing or empty."""


def read_articles(connection: psycopg.Connection, limit: int) -> pd.DataFrame:
    """The first `limit` articles by id, as `id, article_id, title, content, summary` (all text but `id`).

    Raises:
        NoArticles: there is no such table, or it holds nothing.
    """
    import pandas as pd
    import psycopg

    columns = ["id", "article_id", "title", "content", "summary"]
    try:
        rows = connection.execute(
            "SELECT id, article_id, title, content, summary FROM articles WHERE content <> '' ORDER BY id LIMIT %s", (limit,)
        ).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise NoArticles(
            f"cannot read articles: {error.diag.message_primary}. The schema is in database/migrations/source."
        ) from None
    if not rows:
        raise NoArticles("the table articles is empty: load articles first.")
    return pd.DataFrame(rows, columns=columns)
