"""Everything that can go wrong with a secret at hand, each printed with its traceback. A script for the test of secrets."""

import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path

from newsjuice_pipelines.automation.notifications import tell
from newsjuice_pipelines.definitions import build_defs, build_resources
from newsjuice_pipelines.podcast.engines import EngineOptions
from newsjuice_pipelines.podcast.engines.openai_server import OpenAIServerEngine
from newsjuice_pipelines.resources.postgres import ArticleDatabase, TeacherLedger, cloud_sql, connect
from newsjuice_pipelines.resources.vertex import VertexAI
from newsjuice_pipelines.runtime.devices import Device
from newsjuice_pipelines.runtime.tracking import Tracker
from newsjuice_pipelines.settings import load_settings

logging.basicConfig(level=logging.DEBUG)  # libraries say most then


def attempt(what: str, work: Callable[[], object]) -> None:
    print(f"--- {what}", flush=True)
    try:
        print(repr(work()))
    except Exception:
        traceback.print_exc()


def read_articles() -> object:
    return ArticleDatabase().read(lambda connection: connection.execute("SELECT 1").fetchall())


def through_cloud_sql() -> None:
    with cloud_sql(settings):
        pass


def track() -> None:
    with Tracker("offline", Path(os.environ["NEWSJUICE_HOME"]) / "tracking").run("a run", {"learning_rate": 0.1}) as run:
        assert run.active
        run.log({"loss": 1.0})


def ask_server() -> object:
    key = settings.server_api_key.get_secret_value() if settings.server_api_key else None
    model = Path(os.environ["MODEL"])
    return OpenAIServerEngine(model, Device("cpu", "", ""), EngineOptions(server_url=os.environ["NEWSJUICE_SERVER_URL"]), key)


settings = load_settings()
attempt("settings", lambda: settings)
attempt("settings as JSON", lambda: settings.model_dump_json())
attempt("resources", lambda: build_resources(settings))
attempt("articles", read_articles)
attempt("ledger", lambda: TeacherLedger().open().find(["key"]))
attempt("a URL that is none", lambda: connect(os.environ["NEWSJUICE_DATABASE_URL"].replace("postgresql:", "postgresq:"), "URL"))
attempt("Cloud SQL", through_cloud_sql)
attempt("Vertex AI", lambda: VertexAI(project="p").client().models.generate_content(model="m", contents="x"))
attempt("a server of the student", ask_server)
attempt("the webhook", lambda: tell("a run failed"))
attempt("tracking", track)
attempt("definitions", lambda: build_defs(settings))
