from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from newsjuice_pipelines.podcast.sampling.chunk_ranks import rank
from newsjuice_pipelines.podcast.sampling.chunk_table import estimated_articles
from newsjuice_pipelines.podcast.sampling.chunks import (
    CHUNK_COLUMNS,
    COUNTS,
    ChunkSampling,
    EmptySourceTable,
    SourceTableError,
    read_chunks,
    sample_chunks,
    select_chunks,
    write_chunks,
)

FIRST, LAST = date(2026, 9, 1), date(2026, 9, 30)

Values = tuple[Any, ...]

GERMAN = (
    "Der Stadtrat hat am Dienstag einen neuen Plan zur Reparatur der Brücke über den Fluss beschlossen, die seit dem Sturm im "
    "März gesperrt ist. Die Arbeiten werden etwa vier Millionen Euro kosten und mindestens ein Jahr dauern, sagte die "
    "Bürgermeisterin, die die Anwohner um Geduld bat. Die Händler im Viertel fürchten, während der Sperrung Kunden zu "
    "verlieren, und fordern Hilfe vom Land. Eine Entscheidung soll noch vor dem Winter fallen, damit die Arbeiten beginnen."
)


SENTENCE = (
    "the council of a town has said that new work on its old bridge over river will begin in spring and people who live there "
    "were told they should use other roads while this is done because money for it came late from state office"
)


def story(name: str, length: int = 80) -> str:
    """English words in an order that belongs to `name` alone."""
    return " ".join([name, *random.Random(name).choices(SENTENCE.split(), k=length - 1)])


def row(
    article: str | None,
    index: int | None = 0,
    text: str | None = None,
    day: int | None = 1,
    source: str = "campus",
    published: datetime | None = None,
    summary: str | None = None,
) -> Values:
    """A row in the order of the source columns, with a text of its own."""
    fetched = None if day is None else datetime(2026, 9, day, 12)
    body = story(f"{article}-{index}") if text is None else text
    return (article, index, "A title", None, "https://x.example/a", source, published, fetched, body, summary)


@pytest.fixture
def make_table(connection: psycopg.Connection) -> Iterator[Callable[[list[Values]], str]]:
    """Creates a chunk table with the given rows and returns its name."""
    connection.execute("CREATE SCHEMA IF NOT EXISTS chunk_tests")
    connection.execute(
        "CREATE TABLE chunk_tests.chunks (article_id varchar, chunk_index int, title text, author text, source_link text, "
        "source_type text, published_at timestamp, fetched_at timestamp, chunk text, summary text) "
        "WITH (autovacuum_enabled = false)"  # a test says itself when there are statistics
    )

    def fill(rows: list[Values]) -> str:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO chunk_tests.chunks VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)", rows)
        return "chunk_tests.chunks"

    yield fill
    connection.execute("DROP SCHEMA chunk_tests CASCADE")


def test_the_days_of_a_month_give_exactly_the_sample_of_the_month(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row(f"a{n}", index, day=1 + (n * 7 + index) % 30) for n in range(200) for index in range(2)])
    sampling = ChunkSampling(sample_size=50)
    whole = sample_chunks(connection, table, sampling, FIRST, LAST)
    days = [FIRST + timedelta(days=offset) for offset in range(30)]
    union = pd.concat([sample_chunks(connection, table, sampling, day, day).rows for day in days])
    assert len(whole.rows) == 50
    assert union["chunk_id"].tolist() == whole.rows["chunk_id"].tolist()


def test_a_row_carries_its_source_and_the_same_types_without_rows(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a1", 3)])
    found = sample_chunks(connection, table, ChunkSampling(), FIRST, LAST).rows
    none = sample_chunks(connection, table, ChunkSampling(), LAST, LAST).rows
    assert found.iloc[0]["chunk_id"] == "a1:3"
    assert found.iloc[0]["text"].startswith("a1-3 ")
    assert found.iloc[0]["section"] == ""
    assert tuple(found.columns) == CHUNK_COLUMNS
    assert none.empty
    assert none.dtypes.to_dict() == found.dtypes.to_dict()


def test_every_row_that_is_left_out_is_counted(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table(
        [
            row("ok"),
            row("none", text=""),
            row("blank", text=" \n "),
            row("short", text="too few words"),
            row("long", text=story("long", 800)),
            row("blog", source="blog"),
            row("undated", day=None),
            row(None),
            row("unnumbered", index=None),
            row("copy", text=story("ok-0").upper().replace(" ", "\n ")),
            row("later", day=29, published=datetime(2026, 9, 1)),
            row("near", text=story("ok-0") + " at last"),
            row("foreign", text=GERMAN),
            row("young", published=datetime(2026, 9, 12)),
        ]
    )
    seed = next(seed for seed in count() if rank(seed, "ok") < min(rank(seed, "copy"), rank(seed, "near")))
    sampling = ChunkSampling(source_types=("campus",), published_until="2026-09-11", seed=seed)
    counts = sample_chunks(connection, table, sampling, FIRST, date(2026, 9, 2)).counts
    assert counts == {
        "rows_read": 14,
        "no_id": 2,
        "other_source_type": 1,
        "no_fetched_at": 1,
        "before_first_day": 0,
        "outside_date_window": 1,
        "empty_text": 2,
        "too_short": 1,
        "too_long": 1,
        "eligible": 5,
        "duplicate_text": 1,
        "other_language": 1,
        "near_duplicate": 1,
        "sampled": 2,
        "in_range": 1,
    }
    assert tuple(counts) == COUNTS


def test_the_section_is_the_category_of_the_summary(connection: psycopg.Connection, make_table: Any) -> None:
    summaries = [
        '{"category": " Campus  life"}',
        None,
        "no JSON",
        '{"category": ["a"]}',
        "[" * 100_000,
        '{"category": "\\ud83d"}',
    ]
    table = make_table([row(f"a{number}", summary=summary) for number, summary in enumerate(summaries)])
    found = sample_chunks(connection, table, ChunkSampling(), FIRST, LAST).rows.set_index("article_id")["section"]
    assert [found[f"a{number}"] for number in range(len(summaries))] == ["Campus life", "", "", "", "", "?"]


def test_a_summary_that_the_database_knows_as_json_is_read_too(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a", summary='{"category": "Campus"}')])
    connection.execute("ALTER TABLE chunk_tests.chunks ALTER summary TYPE jsonb USING summary::jsonb")
    found = sample_chunks(connection, table, ChunkSampling(), FIRST, LAST).rows
    assert found.iloc[0]["section"] == "Campus"


def test_the_date_window_goes_by_publication_and_else_by_fetching(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table(
        [
            row("early", published=datetime(2026, 8, 31, 23, 59), day=5),
            row("first", published=datetime(2026, 9, 1), day=20),
            row("last", published=datetime(2026, 9, 5, 23, 59), day=20),
            row("late", published=datetime(2026, 9, 6), day=5),
            row("undated", day=5),
            row("undated-late", day=6),
        ]
    )
    sampling = ChunkSampling(published_from="2026-09-01", published_until="2026-09-05")
    sample = sample_chunks(connection, table, sampling, FIRST, LAST)
    assert set(sample.rows["article_id"]) == {"first", "last", "undated"}
    assert sample.counts["outside_date_window"] == 3


def test_a_table_in_another_language_says_so(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row(f"a{number}", text=f"{GERMAN} {number}") for number in range(150)])
    with pytest.raises(EmptySourceTable, match=r"none of the 150 lowest ranked .* Set `languages`"):
        sample_chunks(connection, table, ChunkSampling(sample_size=1), FIRST, LAST)
    german = ChunkSampling(sample_size=1, languages=("de",))
    assert sample_chunks(connection, table, german, FIRST, LAST).counts["sampled"] == 1


def test_foreign_and_nearly_copied_chunks_do_not_make_the_sample_smaller(connection: psycopg.Connection, make_table: Any) -> None:
    foreign = [row(f"foreign{number}", text=f"{GERMAN} {number}") for number in range(400)]
    copies = [row(f"near{number}", text=f"{story('near', 120)} number {number}") for number in range(400)]
    table = make_table(foreign + copies + [row(f"own{number}") for number in range(3)])
    sample = sample_chunks(connection, table, ChunkSampling(sample_size=4), FIRST, LAST)
    assert set(sample.rows["article_id"]) >= {"own0", "own1", "own2"}
    assert sample.counts["sampled"] == 4


def test_of_nearly_equal_chunks_the_lower_ranked_one_stays(connection: psycopg.Connection, make_table: Any) -> None:
    rows = [row(f"a{number}", text=f"{story('same', 150)} {number}", day=1 + number) for number in range(12)]
    table = make_table(rows)
    kept = sample_chunks(connection, table, ChunkSampling(), FIRST, LAST).rows["article_id"].tolist()
    alone = sample_chunks(connection, table, ChunkSampling(sample_size=1), FIRST, LAST).rows["article_id"].tolist()
    days = [sample_chunks(connection, table, ChunkSampling(), date(2026, 9, day), date(2026, 9, day)) for day in range(1, 13)]
    assert kept == alone
    assert [name for day in days for name in day.rows["article_id"]] == kept, "a day's rows do not depend on the days asked for"


def test_without_the_filters_all_texts_are_sampled(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a", text=GERMAN), row("b", text=f"{GERMAN} {GERMAN[:40]}")])
    everything = ChunkSampling(languages=(), near_duplicate_similarity=0)
    assert sample_chunks(connection, table, everything, FIRST, LAST).counts["sampled"] == 2


def test_times_with_a_zone_are_read_as_utc(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a1")])
    connection.execute("SET TIME ZONE 'Asia/Tokyo'")
    connection.execute("ALTER TABLE chunk_tests.chunks ALTER fetched_at TYPE timestamptz USING fetched_at AT TIME ZONE 'UTC'")
    found = sample_chunks(connection, table, ChunkSampling(), FIRST, LAST).rows
    assert found.iloc[0]["fetched_at"] == pd.Timestamp("2026-09-01 12:00")


def test_a_missing_table_is_named(connection: psycopg.Connection) -> None:
    with pytest.raises(SourceTableError, match=r"no table nowhere\.chunks .* NEWSJUICE_CHUNKS_TABLE"):
        sample_chunks(connection, "nowhere.chunks", ChunkSampling(), FIRST, LAST)


def test_missing_columns_are_named(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([])
    connection.execute("ALTER TABLE chunk_tests.chunks DROP COLUMN chunk, DROP COLUMN fetched_at")
    with pytest.raises(SourceTableError, match="has no column chunk, fetched_at"):
        sample_chunks(connection, table, ChunkSampling(), FIRST, LAST)


def test_a_table_that_may_not_be_read_is_named_with_the_user(
    connection: psycopg.Connection, make_table: Any, postgres_url: str
) -> None:
    table = make_table([row("a")])
    connection.execute("CREATE ROLE chunk_guest LOGIN")
    connection.execute("GRANT USAGE ON SCHEMA chunk_tests TO chunk_guest")
    try:
        with (
            psycopg.connect(postgres_url, user="chunk_guest") as guest,
            pytest.raises(SourceTableError, match="'chunk_guest' may not read"),
        ):
            sample_chunks(guest, table, ChunkSampling(), FIRST, LAST)
    finally:
        connection.execute("REVOKE USAGE ON SCHEMA chunk_tests FROM chunk_guest")
        connection.execute("DROP ROLE chunk_guest")


def test_a_date_column_of_text_is_refused(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a")])
    connection.execute("ALTER TABLE chunk_tests.chunks ALTER fetched_at TYPE text")
    with pytest.raises(SourceTableError, match=r"fetched_at of chunk_tests\.chunks must be a timestamp, and is text"):
        sample_chunks(connection, table, ChunkSampling(), FIRST, LAST)


def test_sampling_leaves_the_table_as_it_was(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a")])
    connection.execute(
        "CREATE FUNCTION chunk_tests.spoil() RETURNS text LANGUAGE plpgsql AS "
        "$$ BEGIN DELETE FROM chunk_tests.chunks; RETURN ''; END $$"
    )
    connection.execute(f"CREATE VIEW chunk_tests.trap AS SELECT *, chunk_tests.spoil() FROM {table}")
    connection.execute(
        "CREATE VIEW chunk_tests.trapped AS SELECT article_id, chunk_index, title, author, source_link, source_type, "
        "published_at, fetched_at, chunk || spoil AS chunk, summary FROM chunk_tests.trap"
    )
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        sample_chunks(connection, "chunk_tests.trapped", ChunkSampling(), FIRST, LAST)


def test_an_empty_table_is_an_error(connection: psycopg.Connection, make_table: Any) -> None:
    with pytest.raises(EmptySourceTable, match=r"chunk_tests\.chunks is empty"):
        sample_chunks(connection, make_table([]), ChunkSampling(), FIRST, LAST)


def test_a_table_with_nothing_fit_is_an_error_with_the_reasons(connection: psycopg.Connection, make_table: Any) -> None:
    with pytest.raises(EmptySourceTable, match="'too_short': 2"):
        sample_chunks(connection, make_table([row("a", text="short"), row("b", text="short")]), ChunkSampling(), FIRST, LAST)


def test_a_table_name_is_an_identifier_and_never_a_query(connection: psycopg.Connection, make_table: Any) -> None:
    make_table([row("a")])
    with pytest.raises(SourceTableError, match="no table"):
        sample_chunks(connection, "chunks; DROP SCHEMA chunk_tests CASCADE", ChunkSampling(), FIRST, LAST)
    assert connection.execute("SELECT count(*) FROM chunk_tests.chunks").fetchone() == (1,)


def test_a_slow_table_hits_the_statement_timeout(connection: psycopg.Connection, make_table: Any) -> None:
    make_table([row("a")])
    view = sql.SQL("CREATE VIEW chunk_tests.slow AS SELECT c.*, pg_sleep(20)::text AS waited FROM chunk_tests.chunks c")
    connection.execute(view)
    connection.execute(
        "CREATE VIEW chunk_tests.slower AS SELECT article_id, chunk_index, title, author, source_link, source_type, "
        "published_at, fetched_at, chunk || waited AS chunk, summary FROM chunk_tests.slow"
    )
    with pytest.raises(psycopg.errors.QueryCanceled):
        sample_chunks(connection, "chunk_tests.slower", ChunkSampling(), FIRST, LAST, statement_timeout_s=1)


def test_the_statement_timeout_ends_with_the_sample(connection: psycopg.Connection, make_table: Any) -> None:
    before = connection.execute("SHOW statement_timeout").fetchone()
    sample_chunks(connection, make_table([row("a")]), ChunkSampling(), FIRST, LAST, statement_timeout_s=5)
    assert connection.execute("SHOW statement_timeout").fetchone() == before


def test_a_table_full_of_copies_is_still_sampled_in_full(connection: psycopg.Connection, make_table: Any) -> None:
    copies = [row(f"copy{n}", text=story("same")) for n in range(2000)]
    table = make_table(copies + [row(f"own{n}") for n in range(3)])
    sample = sample_chunks(connection, table, ChunkSampling(sample_size=4), FIRST, LAST)
    assert sample.counts["sampled"] == 4
    assert set(sample.rows["article_id"]) >= {"own0", "own1", "own2"}


def test_of_a_large_table_only_low_ranked_articles_are_sent_and_the_sample_is_the_same(
    connection: psycopg.Connection, make_table: Any
) -> None:
    table = make_table([row(f"ä{n}", index) for n in range(1500) for index in range(2)])
    sampling = ChunkSampling(sample_size=5)
    whole = sample_chunks(connection, table, sampling, FIRST, LAST)
    connection.execute("ANALYZE chunk_tests.chunks")
    part = sample_chunks(connection, table, sampling, FIRST, LAST)

    pd.testing.assert_frame_equal(part.rows, whole.rows)
    assert whole.share_read == 1.0
    assert part.share_read < 0.2
    assert part.counts["rows_read"] < 0.3 * whole.counts["rows_read"]


@pytest.mark.parametrize("believed", [100, 10**9], ids=["too few", "too many"])
def test_wrong_statistics_cost_time_and_never_a_row(connection: psycopg.Connection, make_table: Any, believed: int) -> None:
    table = make_table([row(f"a{n}", text=None if n % 50 else "") for n in range(1500)])
    whole = sample_chunks(connection, table, ChunkSampling(sample_size=20), FIRST, LAST)
    connection.execute(f"ALTER TABLE chunk_tests.chunks ALTER COLUMN article_id SET (n_distinct = {believed})".encode())
    connection.execute("ANALYZE chunk_tests.chunks")
    assert estimated_articles(connection, table) == believed
    pd.testing.assert_frame_equal(sample_chunks(connection, table, ChunkSampling(sample_size=20), FIRST, LAST).rows, whole.rows)


def test_a_large_table_with_too_few_fit_chunks_gives_all_of_them(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row(f"a{n}", text=None if n in (7, 1400) else "") for n in range(1500)])
    connection.execute("ANALYZE chunk_tests.chunks")
    found = sample_chunks(connection, table, ChunkSampling(sample_size=5), FIRST, LAST)
    assert set(found.rows["article_id"]) == {"a7", "a1400"}
    assert found.share_read == 1.0


def test_rows_without_an_article_are_counted_in_a_part_of_the_table_too(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row(f"a{n}" if n % 3 == 0 else None, text=story(f"n{n}")) for n in range(4500)])
    connection.execute("ANALYZE chunk_tests.chunks")
    found = sample_chunks(connection, table, ChunkSampling(sample_size=5), FIRST, LAST)
    assert found.share_read < 0.5
    assert 0.4 < found.counts["no_id"] / found.counts["rows_read"] < 0.9


@pytest.mark.parametrize("kind", ["char(20)", "uuid", "bigint", "double precision"])
def test_ids_of_every_type_have_the_same_rank_on_both_sides(connection: psycopg.Connection, make_table: Any, kind: str) -> None:
    ids = [f"00000000-0000-0000-0000-{n:012}" if kind == "uuid" else str(n) for n in range(1500)]
    table = make_table([row(name) for name in ids])
    connection.execute(f"ALTER TABLE chunk_tests.chunks ALTER article_id TYPE {kind} USING article_id::{kind}".encode())
    whole = sample_chunks(connection, table, ChunkSampling(sample_size=5), FIRST, LAST)
    connection.execute("ANALYZE chunk_tests.chunks")
    part = sample_chunks(connection, table, ChunkSampling(sample_size=5), FIRST, LAST)
    assert part.share_read < whole.share_read == 1.0
    pd.testing.assert_frame_equal(part.rows, whole.rows)


def test_a_table_of_which_little_is_wanted_takes_three_passes_at_most(
    connection: psycopg.Connection, make_table: Any, caplog: pytest.LogCaptureFixture
) -> None:
    table = make_table([row(f"a{n}", source="wanted" if n % 100 == 0 else "other") for n in range(12_000)])
    connection.execute("ANALYZE chunk_tests.chunks")
    sampling = ChunkSampling(sample_size=60, source_types=("wanted",))
    with caplog.at_level("INFO", logger="newsjuice.podcast"):
        found = sample_chunks(connection, table, sampling, FIRST, LAST)
    assert len(found.rows) == 60
    assert caplog.text.count("reading again") <= 2


def test_a_value_that_python_does_not_know_is_named_with_its_table(connection: psycopg.Connection, make_table: Any) -> None:
    table = make_table([row("a1")])
    connection.execute("UPDATE chunk_tests.chunks SET fetched_at = 'infinity'")
    with pytest.raises(SourceTableError, match=r"chunk_tests\.chunks cannot be read"):
        sample_chunks(connection, table, ChunkSampling(), FIRST, LAST)


def test_a_view_has_no_statistics_and_is_read_in_full(connection: psycopg.Connection, make_table: Any) -> None:
    make_table([row(f"a{n}") for n in range(300)])
    connection.execute("CREATE VIEW chunk_tests.seen AS SELECT * FROM chunk_tests.chunks")
    connection.execute("ANALYZE chunk_tests.chunks")
    assert sample_chunks(connection, "chunk_tests.seen", ChunkSampling(sample_size=3), FIRST, LAST).share_read == 1.0


def test_an_unknown_language_is_refused_before_the_table_is_read(connection: psycopg.Connection) -> None:
    with pytest.raises(ValueError, match=r"languages=\['zz'\]"):
        sample_chunks(connection, "nowhere.chunks", ChunkSampling(languages=("zz",)), FIRST, LAST)


def test_days_the_wrong_way_round_are_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(ValueError, match="is after"):
        sample_chunks(connection, "any", ChunkSampling(), LAST, FIRST)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_size": 0}, "sample_size=0"),
        ({"max_chunks_per_article": 0}, "max_chunks_per_article=0"),
        ({"min_words": 0}, "min_words=0"),
        ({"min_words": 90, "max_words": 80}, "min_words=90, max_words=80"),
        ({"published_from": "last week"}, "published_from='last week' is not a day: write it as 2026-09-01"),
        ({"published_from": "2026-09-02", "published_until": "2026-09-01"}, "is after published_until"),
        ({"languages": ("English",)}, "ISO 639-1"),
        ({"near_duplicate_similarity": 1.5}, "near_duplicate_similarity=1.5"),
    ],
)
def test_a_sampling_that_cannot_work_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkSampling(**wrong)


TABLES = st.lists(
    st.builds(
        lambda article, index, copy: row(
            f"a{article}", index, text=story(f"t{copy}", 5) if copy else story(f"a{article}-{index}", 5)
        ),
        st.integers(0, 30),
        st.integers(0, 3),
        st.integers(0, 6),
    ),
    max_size=80,
)
SMALL = ChunkSampling(sample_size=6, min_words=1, languages=())


def chosen(rows: list[Values], sampling: ChunkSampling, capacity: int) -> list[tuple[str, str]]:
    selection = select_chunks(rows, sampling, capacity)
    return [(found["chunk_id"], found["text"]) for found in selection.rows] if selection.is_exact else []


@settings(max_examples=80)
@given(TABLES, st.integers(1, 3), st.integers(0, 9))
def test_the_sample_does_not_depend_on_the_order_of_the_table(rows: list[Values], per_article: int, shuffle: int) -> None:
    sampling = replace(SMALL, max_chunks_per_article=per_article)
    shuffled = random.Random(shuffle).sample(rows, len(rows))
    first, second = select_chunks(rows, sampling, 10**6), select_chunks(shuffled, sampling, 10**6)
    assert [found["chunk_id"] for found in first.rows] == [found["chunk_id"] for found in second.rows]
    assert [found["text"] for found in first.rows] == [found["text"] for found in second.rows]
    assert first.counts == second.counts


@settings(max_examples=80)
@given(TABLES, st.integers(1, 3), st.integers(1, 12))
def test_little_memory_gives_the_same_sample_or_says_that_it_cannot(rows: list[Values], per_article: int, capacity: int) -> None:
    sampling = replace(SMALL, max_chunks_per_article=per_article)
    small = select_chunks(rows, sampling, capacity)
    if small.is_exact:
        assert chosen(rows, sampling, capacity) == chosen(rows, sampling, 10**6)


@settings(max_examples=50)
@given(TABLES, st.integers(1, 3))
def test_a_sample_has_no_copies_and_keeps_the_article_limit(rows: list[Values], per_article: int) -> None:
    found = select_chunks(rows, replace(SMALL, max_chunks_per_article=per_article), 10**6).rows
    articles = [entry["article_id"] for entry in found]
    assert len({entry["text"] for entry in found}) == len(found) <= SMALL.sample_size
    assert all(articles.count(article) <= per_article for article in articles)


def test_a_larger_sample_contains_the_smaller_one() -> None:
    rows = [row(f"a{n}") for n in range(100)]
    small = {found["chunk_id"] for found in select_chunks(rows, ChunkSampling(sample_size=10), 200).rows}
    large = {found["chunk_id"] for found in select_chunks(rows, ChunkSampling(sample_size=40), 200).rows}
    assert small < large


def test_another_seed_is_another_sample() -> None:
    rows = [row(f"a{n}") for n in range(100)]
    first = {found["chunk_id"] for found in select_chunks(rows, ChunkSampling(sample_size=10), 200).rows}
    second = {found["chunk_id"] for found in select_chunks(rows, ChunkSampling(sample_size=10, seed=1), 200).rows}
    assert first != second


def test_chunks_survive_the_parquet_file(connection: psycopg.Connection, make_table: Any, tmp_path: Path) -> None:
    table = make_table([row("a1", day=2), row("a2", day=1)])
    rows = sample_chunks(connection, table, ChunkSampling(), FIRST, LAST).rows
    facts = write_chunks(rows, tmp_path)
    pd.testing.assert_frame_equal(read_chunks([tmp_path]), rows)
    assert facts["rows"] == facts["articles"] == 2
    assert facts["first_fetched_at"] == "2026-09-01T12:00:00"


def test_partitions_are_read_as_one_table_and_an_empty_day_is_no_harm(
    connection: psycopg.Connection, make_table: Any, tmp_path: Path
) -> None:
    table = make_table([row("a1", day=2), row("a2", day=1)])
    folders = []
    for day in (3, 2, 1):
        (folder := tmp_path / str(day)).mkdir()
        day_rows = sample_chunks(connection, table, ChunkSampling(), date(2026, 9, day), date(2026, 9, day)).rows
        write_chunks(day_rows, folder)
        folders.append(folder)
    assert read_chunks(folders)["article_id"].tolist() == ["a2", "a1"]
    assert read_chunks(folders[:1]).empty


def test_the_counts_name_every_reason() -> None:
    selection = select_chunks([row("a"), row("b", text="")], ChunkSampling(), 10)
    assert set(selection.counts) <= set(COUNTS)


def test_zone_aware_rows_are_sorted_with_the_others() -> None:
    aware = list(row("a"))
    aware[7] = datetime(2026, 9, 5, tzinfo=UTC)
    found = select_chunks([tuple(aware), row("b")], ChunkSampling(), 10).rows
    assert [entry["article_id"] for entry in found] == ["b", "a"]


def test_rows_that_no_partition_could_hold_leave_room_for_others() -> None:
    import datetime as dt

    def row(number: int, day: dt.datetime) -> tuple[Any, ...]:
        return (f"a{number}", 0, "t", None, None, None, None, day, story(f"word{number}"), None)

    old, new = dt.datetime(2020, 1, 1), dt.datetime(2026, 9, 20)
    rows = [row(number, old) for number in range(50)] + [row(number, new) for number in range(50, 55)]

    selection = select_chunks(rows, ChunkSampling(sample_size=5), 100, dt.date(2026, 9, 1))

    assert {chosen["article_id"] for chosen in selection.rows} == {f"a{number}" for number in range(50, 55)}
    assert selection.counts["before_first_day"] == 50
