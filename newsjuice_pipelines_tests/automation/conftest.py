"""Parts for tests of automation: an instance, a code server with the toy location, and a webhook."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget

from newsjuice_pipelines.automation import notifications

TOY_LOCATION = Path(__file__).with_name("toy_location.py")
DEADLINE_S = 300.0

INSTANCE = """
telemetry: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
concurrency: {pools: {granularity: op, default_limit: 1}}
run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 1}
run_retries: {enabled: true, max_retries: 1, retry_on_asset_or_op_failure: %s}
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on SQLite whose daemon would also retry runs in which a step failed."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(INSTANCE % "true")
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


class Toy:
    """A code server of its own process, the instance behind it, and the folder that its assets use."""

    def __init__(self, instance: dg.DagsterInstance, context: WorkspaceProcessContext, root: Path) -> None:
        self.instance, self.context, self.root = instance, context, root

    def notes(self) -> list[str]:
        path = self.root / "notes"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def hold(self, name: str) -> None:
        (self.root / name).touch()

    def release(self, name: str) -> None:
        (self.root / name).unlink()

    def wait_for(self, condition: Callable[[], bool], between: Callable[[], object] | None = None) -> None:
        """Poll until a condition holds; `between` is what the daemon does meanwhile."""
        ends = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < ends, f"not so after {DEADLINE_S:.0f} s; notes: {self.notes()}"
            if between is not None:
                between()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    root = tmp_path_factory.mktemp("toy")
    (root / "dagster").mkdir()
    (root / "dagster" / "dagster.yaml").write_text(INSTANCE % "false")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("TOY_ROOT", str(root))
        opened = stack.enter_context(dg.DagsterInstance.from_config(str(root / "dagster")))
        target = PythonFileTarget(str(TOY_LOCATION), attribute="defs", working_directory=str(root), location_name="toy")
        yield Toy(opened, stack.enter_context(create_test_daemon_workspace_context(target, opened)), root)


class Webhook:
    """A local HTTP server that keeps what was posted; `status` is what it answers, after `delay_s`."""

    def __init__(self) -> None:
        self.posted: list[dict[str, str]] = []
        self.status = 200
        self.closing = threading.Event()
        self.delay_s = 0.0
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                webhook.closing.wait(webhook.delay_s)
                with contextlib.suppress(OSError):
                    self.send_response(webhook.status)
                    self.send_header("Location", "/elsewhere")
                    self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/services/T0000/SECRET-TOKEN"

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def texts(self) -> list[str]:
        return [post["text"] for post in self.posted]


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    opened = Webhook()
    monkeypatch.setenv("NEWSJUICE_WEBHOOK_URL", opened.url)
    for limit in ("DEADLINE_S", "OPERATION_TIMEOUT_S"):  # a busy machine is no webhook that hangs
        monkeypatch.setattr(notifications, limit, DEADLINE_S)
    yield opened
    opened.close()
