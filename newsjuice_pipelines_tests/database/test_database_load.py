"""Loading articles: chunking, rejected lines, and loading twice."""

import json
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsjuice_pipelines.database.load import ArticleFileError, chunk_text, load_articles
from newsjuice_pipelines.demo import DEMO_ARTICLES


def write_lines(path: Path, *lines: object) -> Path:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def article(number: int, **changes: object) -> dict[str, object]:
    return {"article_id": f"a{number}", "title": f"Title {number}", "content": f"One sentence of article {number}.", **changes}


def count(connection: psycopg.Connection, table: str) -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_the_demo_corpus_loads_with_dates_sections_and_chunks(connection: psycopg.Connection) -> None:
    summary = load_articles(connection, DEMO_ARTICLES)

    assert summary.articles_written == 48
    assert summary.chunks_written == count(connection, "chunks_vector") >= 48
    days = connection.execute("SELECT count(DISTINCT fetched_at::date), min(summary::json->>'category') FROM articles").fetchone()
    assert days == (30, "Administration")


def test_loading_twice_changes_nothing_and_a_changed_article_replaces_its_chunks(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", article(1), article(2))
    load_articles(connection, path)

    assert load_articles(connection, path).articles_written == 0

    write_lines(path, article(1), article(2, content="Another text."))
    assert load_articles(connection, path).articles_written == 1
    assert connection.execute("SELECT chunk FROM chunks_vector ORDER BY article_id").fetchall() == [
        ("One sentence of article 1.",),
        ("Another text.",),
    ]


def test_unusable_lines_are_counted_by_reason_and_quoted_by_number(connection: psycopg.Connection, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        article(1),
        b'{"article_id": "broken',
        b"\xff\xfe",
        [1, 2],
        article(2, content="  "),
        {"title": "no id", "content": "text"},
        article(3, fetched_at="yesterday"),
        article(4, content="a\x00b"),
        article(5, author=7),
    )

    summary = load_articles(connection, path)

    assert summary.articles_written == 1
    assert summary.rejected == {
        "broken JSON": 1,
        "not UTF-8": 1,
        "not a JSON object": 1,
        "missing content": 1,
        "missing article_id": 1,
        "broken date": 1,
        "NUL character": 1,
        "a text field is not a string": 1,
    }
    assert summary.examples[0] == "line 2: broken JSON"


@pytest.mark.parametrize("text", [b"", b"not json\n"])
def test_a_file_without_a_usable_article_is_refused_and_nothing_is_written(
    connection: psycopg.Connection, tmp_path: Path, text: bytes
) -> None:
    (tmp_path / "a.jsonl").write_bytes(text)

    with pytest.raises(ArticleFileError, match="no usable article"):
        load_articles(connection, tmp_path / "a.jsonl")
    with pytest.raises(ArticleFileError, match="cannot read articles"):
        load_articles(connection, tmp_path / "missing.jsonl")


def test_articles_without_a_fetch_date_get_a_stable_day_and_no_publication_date(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    load_articles(connection, write_lines(tmp_path / "a.jsonl", *map(article, range(200))))

    days, published = connection.execute("SELECT count(DISTINCT fetched_at::date), count(published_at) FROM articles").fetchone()

    assert days == 30
    assert published == 0


def test_times_with_an_offset_are_stored_in_utc(connection: psycopg.Connection, tmp_path: Path) -> None:
    load_articles(connection, write_lines(tmp_path / "a.jsonl", article(1, fetched_at="2026-09-15T01:30:00+02:00")))

    assert str(connection.execute("SELECT fetched_at FROM articles").fetchone()[0]) == "2026-09-14 23:30:00"


@given(st.lists(st.lists(st.sampled_from(["word", "end.", "more"]), max_size=40).map(" ".join), max_size=12), st.integers(1, 25))
def test_chunks_keep_every_word_in_order_and_never_exceed_the_limit(paragraphs: list[str], max_words: int) -> None:
    content = "\n\n".join(paragraphs)

    chunks = chunk_text(content, max_words)

    assert " ".join(chunks).split() == content.split()
    assert all(0 < len(chunk.split()) <= max_words for chunk in chunks)


def test_a_text_of_thirty_thousand_words_is_chunked(connection: psycopg.Connection, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", article(1, content="Ten words make up each sentence of this long text. " * 3000))

    assert load_articles(connection, path).chunks_written == 100


def test_replacing_removes_articles_that_are_not_in_the_file_and_a_bad_file_removes_nothing(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    load_articles(connection, write_lines(tmp_path / "a.jsonl", article(1), article(2)))

    with pytest.raises(ArticleFileError):
        load_articles(connection, write_lines(tmp_path / "bad.jsonl", b"not json"), replace=True)
    assert count(connection, "articles") == 2

    load_articles(connection, write_lines(tmp_path / "b.jsonl", article(2), article(3)), replace=True)
    assert connection.execute("SELECT article_id FROM articles ORDER BY 1").fetchall() == [("a2",), ("a3",)]
    assert count(connection, "chunks_vector") == 2
