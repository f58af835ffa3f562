"""The embedded PostgreSQL: started on demand, shared, stopped by the last process, repaired after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from newsjuice_pipelines.database.embedded import embedded_status
from newsjuice_pipelines.database.migrate import MigrationChanged, migrate

HOLD = """
import sys, time
from pathlib import Path
from newsjuice_pipelines.database.embedded import start_embedded
print(start_embedded(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that uses the embedded server until its standard input closes."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server did not start"

    def end(self) -> None:
        self.process.communicate(timeout=30)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def is_running(folder: Path) -> bool:
    return embedded_status(folder)["running"]


def test_two_processes_share_a_server_and_the_last_one_stops_it(short_folder: Path) -> None:
    first, second = Holder(short_folder), Holder(short_folder)
    assert first.url == second.url

    with psycopg.connect(first.url) as connection:
        assert connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone() == (1,)
    first.end()
    assert is_running(short_folder), "the server must outlive its first user"
    second.end()
    assert not is_running(short_folder)


def test_data_survives_a_killed_process_and_the_server_still_stops_with_the_next_one(short_folder: Path) -> None:
    killed = Holder(short_folder)
    with psycopg.connect(killed.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    killed.kill()

    following = Holder(short_folder)
    with psycopg.connect(following.url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    following.end()
    assert not is_running(short_folder)


def test_a_stale_postmaster_file_whose_number_belongs_to_another_process_is_not_believed(short_folder: Path) -> None:
    Holder(short_folder).end()
    pgdata = str(short_folder / "pgdata")
    stale = [str(os.getpid()), pgdata, str(int(time.time())), "5432", pgdata, "", "1 1", "ready"]
    (short_folder / "pgdata" / "postmaster.pid").write_text("\n".join(stale) + "\n")

    holder = Holder(short_folder)
    with psycopg.connect(holder.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    holder.end()


def test_a_set_up_that_was_killed_half_way_starts_over(short_folder: Path) -> None:
    pgdata = short_folder / "pgdata"
    pgdata.mkdir()
    (pgdata / "PG_VERSION").write_text("18\n")  # what a killed initdb leaves

    holder = Holder(short_folder)
    with psycopg.connect(holder.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    holder.end()


def test_a_crashed_server_is_started_again_for_a_process_that_knew_it(short_folder: Path) -> None:
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "import psycopg\n"
        "from newsjuice_pipelines.database.embedded import embedded_status, start_embedded\n"
        "folder = Path(sys.argv[1])\n"
        "start_embedded(folder)\n"
        "os.kill(embedded_status(folder)['pid'], signal.SIGQUIT)\n"
        "while embedded_status(folder)['running']: time.sleep(0.05)\n"
        "print(psycopg.connect(start_embedded(folder)).execute('SELECT 1').fetchone()[0])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(short_folder)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.strip() == "1", done.stderr


def test_migrations_run_once_and_again_for_free(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        assert migrate(connection, "source") == ["source/0001_articles_and_chunks.sql"]
        assert migrate(connection, "ledger")
        assert migrate(connection, "source") == migrate(connection, "ledger") == []


def test_a_migration_that_was_edited_after_it_was_applied_is_refused(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        migrate(connection, "source")
        connection.execute("UPDATE newsjuice.schema_migrations SET sha256 = 'another text'")

        with pytest.raises(MigrationChanged, match="0001_articles_and_chunks"):
            migrate(connection, "source")


def test_the_list_of_users_forgets_dead_processes(short_folder: Path) -> None:
    killed = Holder(short_folder)
    killed.kill()
    holder = Holder(short_folder)

    assert json.loads((short_folder / "pgdata" / ".handle_pids.json").read_text()) == [holder.process.pid]
    holder.end()


def test_a_path_with_spaces_and_one_too_long_for_a_socket_work(short_folder: Path) -> None:
    for name in ("my projects & more", "long" * 30):
        holder = Holder(short_folder / name)
        with psycopg.connect(holder.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        holder.end()
        assert not is_running(short_folder / name)


def test_three_first_starts_at_once_share_one_server(short_folder: Path) -> None:
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(short_folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    urls = {start.stdout.readline().strip() for start in starts}
    for start in starts:
        start.communicate(timeout=30)

    assert len(urls) == 1
    assert urls != {""}
