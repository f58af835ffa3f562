"""A local server with the completions interface of OpenAI that really runs a model, token by token, for tests and measurements.

It takes the extra fields of vLLM, can be told to misbehave, and records every request. No server for production: one request
at a time, and nothing is checked that a test does not need.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer

STANDARD_FIELDS = {"model", "prompt", "max_tokens", "temperature", "seed", "stream", "stop", "top_p"}


@dataclass
class ServerConfig:
    """How the server behaves."""

    gives_token_ids: bool = True
    """Whether it honours `return_token_ids`, as vLLM does and llama.cpp does not."""
    strict: bool = False
    """Whether fields that OpenAI does not have are answered 400."""
    token: str | None = None
    """The API key it wants."""
    models: tuple[str, ...] = ("micro",)
    """Names it lists."""
    max_model_len: int | None = None
    """Context in tokens that it tells."""
    faults: deque[int | str] = field(default_factory=deque)
    """What the next completions end in: an HTTP status, `drop` (no answer), `break` (in the middle), `error` (an error event)."""
    step_s: float = 0.0
    """Seconds before each token."""


class OpenAIServer:
    """`with OpenAIServer(model) as server` serves the folder `model` at `server.url`."""

    def __init__(self, model: Path, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self.received: list[dict[str, Any]] = []
        """Bodies of the completion requests."""
        self.most_at_once = 0
        """The most completion requests that were under way at a time."""
        self.under_way = 0
        self.tokenizer = load_tokenizer(model)
        self._model = load_model(model)
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    def tokens(self, body: dict[str, Any]) -> Iterator[tuple[int, bool]]:
        """The greedy tokens of a completion, each with whether it ends the answer."""
        import torch

        ends = set(body.get("stop_token_ids") or [self.tokenizer.convert_tokens_to_ids(token) for token in body["stop"]])
        ids, past = torch.tensor([body["prompt"]]), None
        for _ in range(body["max_tokens"]):
            time.sleep(self.config.step_s)
            with self._lock, torch.inference_mode():
                out = self._model(ids, past_key_values=past, use_cache=True)
            past, token = out.past_key_values, int(out.logits[0, -1].argmax())
            yield token, token in ends
            if token in ends:
                return
            ids = torch.tensor([[token]])

    def count(self, step: int) -> None:
        """Note that a completion request came (+1) or went (-1)."""
        with self._lock:
            self.under_way += step
            self.most_at_once = max(self.most_at_once, self.under_way)


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    config = server.config

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._allowed():
                return
            entries: list[dict[str, Any]] = [{"id": name, "object": "model"} for name in config.models]
            if config.max_model_len is not None:
                entries = [{**entry, "max_model_len": config.max_model_len} for entry in entries]
            self._json(200, {"object": "list", "data": entries}) if self.path == "/v1/models" else self._json(404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.received.append(body)
            server.count(+1)
            try:
                self._complete(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has gone
            finally:
                server.count(-1)

        def _complete(self, body: dict[str, Any]) -> None:
            fault = config.faults.popleft() if config.faults else None
            unknown = sorted(body.keys() - STANDARD_FIELDS)
            if not self._allowed() or fault == "drop":
                return
            if isinstance(fault, int):
                self._json(fault, {"error": {"message": f"told to answer {fault} to {self.headers.get('Authorization')}"}})
                return
            if config.strict and unknown:
                self._json(400, {"error": {"message": f"unknown fields {', '.join(unknown)}"}})
                return
            self._head(200, "text/event-stream")
            self._stream(body, fault)

        def _stream(self, body: dict[str, Any], fault: str | None) -> None:
            sent, shown, with_ids = [], "", config.gives_token_ids and body.get("return_token_ids")
            for token, ended in server.tokens(body):
                if not ended:
                    sent.append(token)
                text = server.tokenizer.decode(sent)
                whole = "" if text.endswith("\ufffd") else text[len(shown) :]  # the rest of a character is still to come
                shown += whole
                self._event({"choices": [{"index": 0, "text": whole, **({"token_ids": [token]} if with_ids else {})}]})
                if fault is not None:
                    if fault == "error":
                        self._event({"error": {"message": "the engine has died", "code": 500}})
                    return
            self._event({"choices": [{"index": 0, "text": "", "finish_reason": "stop" if ended else "length"}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(sent)}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, event: dict[str, Any]) -> None:
            # As text, not as ASCII escapes: so do servers written in other languages.
            self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
            self.wfile.flush()

        def _allowed(self) -> bool:
            if config.token is None or self.headers.get("Authorization") == f"Bearer {config.token}":
                return True
            self._json(401, {"error": {"message": "wrong key"}})
            return False

        def _head(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Connection", "close")
            self.end_headers()

        def _json(self, status: int, value: dict[str, Any]) -> None:
            self._head(status, "application/json")
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """No lines on standard error."""

    return Handler
