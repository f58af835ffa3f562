from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import pandas as pd
import psycopg
import pytest

from newsjuice_pipelines.podcast.ledger import Ledger, LedgerUnavailable
from newsjuice_pipelines.podcast.teacher import ExtractiveTeacher, TeacherReply, request_key, write_scripts

REPLY = TeacherReply(
    "A script.", "ok", "STOP", input_tokens=300, output_tokens=150, thought_tokens=0, latency_s=1.25, cost_usd=None
)


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    migration = files("newsjuice_pipelines.database").joinpath("migrations", "ledger", "0001_teacher_ledger.sql")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA newsjuice")
        connection.execute(migration.read_text(encoding="utf-8").encode())
        yield Ledger(postgres_url)
        connection.execute("DROP SCHEMA newsjuice CASCADE")


def test_an_answer_comes_back_as_it_was_stored(ledger: Ledger) -> None:
    ledger.put("k1", "model", "v1", REPLY)
    assert ledger.get_many(["k1", "k2"]) == {"k1": REPLY}


def test_the_first_answer_to_a_request_stays(ledger: Ledger) -> None:
    ledger.put("k1", "model", "v1", REPLY)
    ledger.put("k1", "model", "v1", TeacherReply("Another script.", "ok", "STOP"))
    assert ledger.get_many(["k1"]) == {"k1": REPLY}


@pytest.mark.parametrize("status", ["blocked", "truncated", "empty"])
def test_an_answer_without_a_script_is_kept_since_it_was_paid_for(ledger: Ledger, status: str) -> None:
    reply = TeacherReply("", status, "SAFETY")  # type: ignore[arg-type]
    ledger.put("k1", "model", "v1", reply)
    assert ledger.get_many(["k1"]) == {"k1": reply}


def test_a_failed_request_is_never_kept(ledger: Ledger) -> None:
    ledger.put("k1", "model", "v1", TeacherReply("", "failed", "ERROR", error="503"))
    assert ledger.get_many(["k1"]) == {}


def test_no_keys_give_no_answers(ledger: Ledger) -> None:
    assert ledger.get_many([]) == {}


def test_a_text_with_a_nul_character_can_be_stored(ledger: Ledger) -> None:
    ledger.put("k1", "model", "v1", TeacherReply("A\x00 script.", "ok", "STOP"))
    assert ledger.get_many(["k1"])["k1"].text == "A script."


def test_many_threads_share_one_ledger(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger.put(f"k{number}", "model", "v1", REPLY), range(40)))
    assert len(ledger.get_many([f"k{number}" for number in range(40)])) == 40


def test_a_second_run_takes_every_script_from_the_ledger(ledger: Ledger) -> None:
    text = "Rain fell on Monday over the whole of the valley. It stopped on Tuesday."
    chunks = pd.DataFrame({"chunk_id": ["a:0"], "article_id": ["a"], "text": [text]})
    first = write_scripts(chunks, ExtractiveTeacher(), ledger, 2)
    key = request_key(ExtractiveTeacher(), text)
    assert ledger.get_many([key])[key].text == first.loc[0, "gemini_podcast_text"]
    pd.testing.assert_frame_equal(write_scripts(chunks, ExtractiveTeacher(), ledger, 2), first)


def test_a_database_without_the_table_is_named(postgres_url: str) -> None:
    with pytest.raises(LedgerUnavailable, match="apply the ledger migrations"):
        Ledger(postgres_url).get_many(["k"])


def test_a_database_that_is_not_there_is_an_error_with_the_setting() -> None:
    with pytest.raises(LedgerUnavailable, match="NEWSJUICE_LEDGER_URL"):
        Ledger("postgresql://nobody:secret-word@127.0.0.1:9/none").get_many(["k"])


def test_a_password_never_reaches_the_message() -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger("postgresql://nobody:secret-word@127.0.0.1:9/none").get_many(["k"])
    assert "secret-word" not in str(caught.value)
