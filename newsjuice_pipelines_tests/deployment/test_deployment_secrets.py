"""Planted secrets are looked for in all that is left behind: logs, event storage, metadata, manifests, reports, W&B files."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml

from newsjuice_pipelines.commands.environment import instance_config
from newsjuice_pipelines.database.load import load_articles
from newsjuice_pipelines.database.migrate import migrate
from newsjuice_pipelines.demo import DEMO_ARTICLES
from newsjuice_pipelines.settings import Settings

HERE = Path(__file__).resolve().parent
# One for each place that a secret comes from. The characters beyond letters are those that URLs and JSON write in another way.
PLANTED = {
    name: f"planted-{name}-7f&3/e+9"
    for name in ("database", "ledger", "cloud-sql", "server", "broker", "backend", "webhook", "wandb", "hub", "google", "dagster")
}
CLOSED = "127.0.0.1:9"  # the port `discard`, on which nothing listens

pytestmark = pytest.mark.whole_system

CONFIG = {
    "ops": {
        "base_model": {
            "config": {
                "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "layers": 1, "heads": 2, "key_value_heads": 1,
                "steps": 500, "batch_size": 8, "sequence_tokens": 64, "learning_rate": 0.01,
            }
        }
    }
}  # fmt: skip
LIGHT = (
    "article_chunks,teacher_scripts,base_model,student_dataset,huffpost_articles,taxonomy,balanced_split,classifier_checkpoint"
)


def url(scheme: str, secret: str, rest: str) -> str:
    return f"{scheme}://someone:{urllib.parse.quote(secret, safe='')}@{rest}"


def disguises(secret: str) -> set[bytes]:
    """The forms in which a secret can stand in a file: as it is, in a URL, in JSON, in base64 anywhere in a longer text."""
    plain = secret.encode()
    forms = {
        plain,
        urllib.parse.quote(secret, safe="").encode(),
        urllib.parse.quote(secret).encode(),
        json.dumps(secret).encode(),
    }
    forms |= {
        urllib.parse.quote_plus(urllib.parse.quote(secret, safe="")).encode(),
        secret.encode("utf-16-le"),
        plain.hex().encode(),
    }
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + plain)
        inside = encoded[4 if before else 0 : len(encoded) - 4]  # without the characters that depend on the neighbours
        forms |= {inside, inside.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


@dataclass
class Remains:
    """What was left behind: a text or the bytes of a file, by name."""

    found: dict[str, bytes]

    def holding(self, secret: str) -> list[str]:
        forms = disguises(secret)
        return [name for name, content in self.found.items() if any(form in content for form in forms)]


def planted_variables(folder: Path, article_url: str, ledger_url: str) -> dict[str, str]:
    """Every variable that holds a secret, with a planted one, beside what a process needs."""
    credentials = folder / "google-credentials.json"
    fields = {
        "type": "service_account",
        "private_key": PLANTED["google"],
        "client_email": "a@b.c",
        "token_uri": f"http://{CLOSED}",
    }
    credentials.write_text(json.dumps(fields))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("NEWSJUICE_", "DAGSTER", "WANDB", "GOOGLE"))
    }
    return {
        **kept,
        "NEWSJUICE_HOME": str(folder / "home"),
        "DAGSTER_HOME": str(folder / "home" / "dagster"),
        "NEWSJUICE_DATABASE_URL": article_url,
        "NEWSJUICE_LEDGER_URL": ledger_url,
        "NEWSJUICE_SERVER_API_KEY": PLANTED["server"],
        "NEWSJUICE_CLOUD_SQL_PASSWORD": PLANTED["cloud-sql"],
        "NEWSJUICE_CELERY_BROKER": url("redis", PLANTED["broker"], f"{CLOSED}/0"),
        "NEWSJUICE_CELERY_BACKEND": url("redis", PLANTED["backend"], f"{CLOSED}/1"),
        "NEWSJUICE_WEBHOOK_URL": f"http://{CLOSED}/hooks/{urllib.parse.quote(PLANTED['webhook'], safe='')}",
        "NEWSJUICE_WANDB_MODE": "offline",
        "WANDB_API_KEY": PLANTED["wandb"],
        "HF_TOKEN": PLANTED["hub"],
        "DAGSTER_POSTGRES_URL": url("postgresql", PLANTED["dagster"], f"{CLOSED}/dagster"),
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def databases(server_url: str) -> Iterator[tuple[str, str]]:
    """URLs of a database with articles and of one for the ledger, each with its planted password; the server asks for none."""
    names = ("secretarticles", "secretledger")
    with psycopg.connect(server_url, autocommit=True) as server:
        for name in names:
            server.execute(f"CREATE DATABASE {name}")
    urls = [
        server_url.replace("/newsjuice?", f"/{name}?").replace(
            "postgres@", f"postgres:{urllib.parse.quote(PLANTED[key], safe='')}@"
        )
        for name, key in zip(names, ("database", "ledger"), strict=True)
    ]
    with psycopg.connect(urls[0]) as connection:
        migrate(connection, "source")
        load_articles(connection, DEMO_ARTICLES)
    yield urls[0], urls[1]
    with psycopg.connect(server_url, autocommit=True) as server:
        for name in names:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def remains(databases: tuple[str, str]) -> Iterator[Remains]:
    """Runs the light part of both pipelines, failing runs and mishaps with planted secrets, and gathers what they left behind."""
    folder = Path(tempfile.mkdtemp(prefix="njsecret", dir="/tmp"))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "home" / "dagster").mkdir(parents=True)
    (folder / "home" / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(instance_config(0)))
    variables = planted_variables(folder, *databases)
    broken = {
        "NEWSJUICE_DATABASE_URL": url("postgresql", PLANTED["database"], f"{CLOSED}/articles"),
        "NEWSJUICE_LEDGER_URL": url("postgresql", PLANTED["ledger"], f"{CLOSED}/ledger"),
    }
    found: dict[str, bytes] = {}

    def run(name: str, command: list[str], status: int, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, env={**variables, **more}, cwd=folder, timeout=300, check=False
        )
        found[f"{name}: stdout"], found[f"{name}: stderr"] = done.stdout, done.stderr
        assert done.returncode == status, done.stderr.decode()

    newsjuice = ["-m", "newsjuice_pipelines.cli"]
    light = ["run", "--sample", "10", "--models", "linear", "--select", LIGHT, "--config", str(folder / "config.yaml")]
    run("light", [*newsjuice, *light], 0)
    run("doctor", [*newsjuice, "doctor"], 1, **broken)
    run("no articles", [*newsjuice, "run", "--select", "article_chunks"], 1, **broken)
    materialise = ["-m", "dagster", "asset", "materialize", "-m", "newsjuice_pipelines.definitions"]
    run("no ledger", [*materialise, "--select", "teacher_scripts", "--partition", "2026-09-20"], 1, **broken)
    mishaps = {
        "NEWSJUICE_CLOUD_SQL_INSTANCE": "project:region:instance",
        "NEWSJUICE_CLOUD_SQL_USER": "someone",
        "NEWSJUICE_CLOUD_SQL_DATABASE": "articles",
        "NEWSJUICE_SERVER_URL": f"http://{CLOSED}/v1",
        "MODEL": str(next((folder / "home" / "artifacts" / "base_model").glob("*/config.json")).parent),
    }
    run("mishaps", [str(HERE / "mishaps.py")], 0, **{**broken, **mishaps})
    run(
        "celery", ["-c", "from newsjuice_pipelines.definitions import defs; print(defs.executor)"], 0, NEWSJUICE_EXECUTOR="celery"
    )
    found |= {str(file.relative_to(folder)): file.read_bytes() for file in sorted((folder / "home").rglob("*")) if file.is_file()}
    with psycopg.connect(databases[1]) as connection:
        rows = connection.execute("SELECT row_to_json(ledger) FROM newsjuice.teacher_ledger ledger").fetchall()
        found["ledger"] = json.dumps(rows).encode()
    yield Remains(found)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_search_finds_a_secret_in_every_form() -> None:
    secret = PLANTED["server"]
    forms = {
        "plain": f"key: {secret}\n".encode(),
        "URL": url("http", secret, "host").encode(),
        "JSON": json.dumps({"key": secret}).encode(),
        "basic log-in": base64.b64encode(f"someone:{secret}".encode()),
        "longer log-in": base64.b64encode(f"someone-x:{secret}!".encode()),
        "other name": base64.b64encode(f"some:{secret}".encode()),
    }

    assert Remains(forms).holding(secret) == list(forms)
    assert Remains({"nothing": b"planted-something-else"}).holding(secret) == []


def test_every_setting_with_a_secret_is_planted() -> None:
    from pydantic import SecretStr

    secret = {
        f"NEWSJUICE_{name.upper()}"
        for name, field in Settings.model_fields.items()
        if SecretStr in getattr(field.annotation, "__args__", ())
    }
    folder = Path(tempfile.mkdtemp(prefix="njsecret"))
    planted = planted_variables(folder, "postgresql://a:b@c/d", "postgresql://a:b@c/e")
    shutil.rmtree(folder)

    assert secret <= set(planted)


def test_all_kinds_of_remains_were_searched(remains: Remains) -> None:
    names = list(remains.found)

    for wanted in ("manifest.json", "runs.db", ".wandb", ".err", ".csv", "README.md"):
        assert any(wanted in name for name in names), f"no {wanted} among {len(names)} files"
    assert b"ok" in remains.found["ledger"]
    assert any(b"teacher_scripts" in content for name, content in remains.found.items() if name.endswith(".db"))


def test_the_mishaps_did_happen(remains: Remains) -> None:
    said = remains.found["mishaps: stdout"] + remains.found["mishaps: stderr"]

    assert said.count(b"Traceback") >= 6
    for error in (b"DatabaseUnreachable", b"EngineError", b"webhook was not told"):
        assert error in said, error
    assert b"no PostgreSQL answers at 127.0.0.1:9" in remains.found["no articles: stderr"]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_secret_is_nowhere(name: str, remains: Remains) -> None:
    assert remains.holding(PLANTED[name]) == []
