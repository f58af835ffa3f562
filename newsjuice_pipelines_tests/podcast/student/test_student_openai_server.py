"""The engine for OpenAI-compatible servers, against a real server on loopback that runs the micro model."""

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks.openai_server import OpenAIServer, ServerConfig
from newsjuice_pipelines.podcast.engines import Engine, EngineError, EngineOptions, Request, Result, open_engine, openai_server
from newsjuice_pipelines.podcast.engines.completion_stream import ServerError, _event, _server_sent
from newsjuice_pipelines.podcast.engines.openai_server import OpenAIServerEngine
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt
from newsjuice_pipelines.runtime.devices import Device

Made = tuple[Path, dict[str, Any]]
CPU = Device("cpu", "CPU", "float32")


@pytest.fixture(scope="module")
def model(merged: Made) -> Path:
    return merged[0]


@pytest.fixture
def serve(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenAIServer]]:
    """Starts servers of the micro model."""
    monkeypatch.setattr(openai_server, "BACK_OFF_S", 0.05)
    servers: list[OpenAIServer] = []

    def start(**config: Any) -> OpenAIServer:
        servers.append(OpenAIServer(model, ServerConfig(**config)).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def requests(model: Path, make_article: Callable[[int], str]) -> list[Request]:
    tokenizer = load_tokenizer(model)
    system = {"role": "system", "content": "Write a script."}
    prompts = [encode_prompt(tokenizer, [system, {"role": "user", "content": make_article(n)}]) for n in range(1000, 1006)]
    return [Request(f"r{number}", tuple(prompt), 8 + 14 * number) for number, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def expected(model: Path, requests: list[Request]) -> dict[str, Result]:
    engine = open_engine("reference", model, device="cpu")
    return {result.request_id: result for result in engine.generate(requests)}


def connect(model: Path, server: OpenAIServer, api_key: str | None = None, **options: Any) -> OpenAIServerEngine:
    return OpenAIServerEngine(model, CPU, EngineOptions(server_url=server.url, **options), api_key)


def results_of(engine: Engine, requests: list[Request]) -> dict[str, Result]:
    return {result.request_id: result for result in engine.generate(requests)}


@pytest.mark.parametrize("config", [{}, {"gives_token_ids": False}, {"strict": True}])
def test_a_server_gives_the_answers_of_the_reference(
    config: dict[str, Any], model: Path, serve: Any, requests: list[Request], expected: dict[str, Result]
) -> None:
    found = results_of(connect(model, serve(**config)), requests)

    for name, result in expected.items():
        assert (found[name].text, found[name].finish_reason) == (result.text, result.finish_reason)
        assert found[name].prompt_tokens == result.prompt_tokens
    # Text encoded again: only an answer that was cut inside of a character may differ.
    assert {name: result.tokens for name, result in found.items()} == {name: result.tokens for name, result in expected.items()}
    assert {result.finish_reason for result in found.values()} == {"eos", "length"}


def test_the_server_is_sent_ids_limits_and_greedy_decoding(model: Path, serve: Any, requests: list[Request]) -> None:
    server = serve()
    results_of(connect(model, server), requests[:1])
    tokenizer = load_tokenizer(model)

    (body,) = server.received
    assert body["prompt"] == list(requests[0].tokens)
    assert (body["max_tokens"], body["temperature"], body["seed"], body["stream"]) == (8, 0.0, 42, True)
    assert (body["model"], body["return_token_ids"], body["repetition_penalty"]) == ("micro", True, 1.0)
    assert tokenizer.eos_token_id in body["stop_token_ids"]
    assert tokenizer.eos_token in body["stop"]


def test_random_draws_are_asked_for_with_nothing_but_the_temperature(model: Path, serve: Any, requests: list[Request]) -> None:
    server = serve()
    results_of(connect(model, server, temperature=0.7, seed=5), requests[:1])

    (body,) = server.received
    assert (body["temperature"], body["seed"]) == (0.7, 5)
    assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)


def test_the_first_token_is_timed_when_it_arrives(model: Path, serve: Any, requests: list[Request]) -> None:
    (result,) = connect(model, serve(step_s=0.1)).generate(requests[:1])

    assert result.new_tokens == 8
    assert result.ttft_s is not None
    assert result.latency_s is not None
    assert 0.1 <= result.ttft_s < 0.4
    assert result.latency_s > 0.75


def test_requests_run_at_once_and_come_back_as_they_finish(model: Path, serve: Any, requests: list[Request]) -> None:
    server = serve(step_s=0.02)

    order = [result.request_id for result in connect(model, server, concurrent_requests=3).generate(requests[:3][::-1])]

    assert order[0] == "r0"  # the shortest, though asked for last
    assert server.most_at_once == 3


def test_a_strict_server_is_asked_without_foreign_fields_from_then_on(model: Path, serve: Any, requests: list[Request]) -> None:
    server = serve(strict=True)
    engine = connect(model, server, concurrent_requests=1)

    results_of(engine, requests[:3])

    assert ["return_token_ids" in body for body in server.received] == [True, False, False, False]


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "break", "error"])
def test_what_may_pass_is_tried_once_more(
    fault: int | str, model: Path, serve: Any, requests: list[Request], expected: dict[str, Result]
) -> None:
    server = serve(faults=deque([fault]))

    (result,) = connect(model, server).generate(requests[:1])

    assert result.tokens == expected["r0"].tokens
    assert len(server.received) == 2


@pytest.mark.parametrize(("fault", "named"), [(429, "HTTP 429"), ("drop", "connection failed"), ("break", "broke off")])
def test_what_does_not_pass_is_reported_and_leaves_its_neighbours_alone(
    fault: int | str, named: str, model: Path, serve: Any, requests: list[Request], expected: dict[str, Result]
) -> None:
    server = serve(faults=deque([fault, fault]))
    engine = connect(model, server, concurrent_requests=1)

    found = results_of(engine, requests[:2])

    assert named in (found["r0"].error or "")
    assert (found["r0"].tokens, found["r0"].text, found["r0"].finish_reason) == ((), "", "error")
    assert found["r1"].tokens == expected["r1"].tokens


@pytest.mark.parametrize("status", [404, 413])
def test_a_refusal_is_reported_at_once(status: int, model: Path, serve: Any, requests: list[Request]) -> None:
    server = serve(faults=deque([status]))

    (result,) = connect(model, server).generate(requests[:1])

    assert f"HTTP {status}: told to answer {status}" in (result.error or "")
    assert len(server.received) == 1


def test_a_request_that_the_server_finds_wrong_is_an_error_and_the_next_one_still_gives_ids(
    model: Path, serve: Any, requests: list[Request]
) -> None:
    server = serve(faults=deque([400, 400]))
    engine = connect(model, server, concurrent_requests=1)

    found = results_of(engine, requests[:2])

    assert "HTTP 400" in (found["r0"].error or "")
    assert "return_token_ids" in server.received[-1]


def test_the_context_is_the_smaller_of_the_models_and_the_servers(model: Path, serve: Any, requests: list[Request]) -> None:
    engine = connect(model, serve(max_model_len=120))

    (result,) = engine.generate([Request("long", requests[0].tokens, 110)])

    assert engine.capabilities().context_tokens == 120
    assert "exceed the context of 120" in (result.error or "")


def test_the_api_key_is_sent_and_never_shown(
    model: Path, serve: Any, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    key = "a-very-secret-key"
    server = serve(token=key, faults=deque([500, 500]))

    with caplog.at_level(logging.DEBUG):
        engine = connect(model, server, key)
        (result,) = engine.generate(requests[:1])

    assert "told to answer 500 to Bearer ***" in (result.error or "")  # the server has seen it, and said it again
    assert key not in caplog.text + repr(engine) + repr(engine.capabilities())


def test_a_long_key_is_removed_before_a_message_is_cut(model: Path, serve: Any, requests: list[Request]) -> None:
    key = "s3cret" * 46  # reaches beyond the characters that are shown
    server = serve(token=key, faults=deque([404]))
    engine = connect(model, server, key)

    (result,) = engine.generate(requests[:1])
    with pytest.raises(ServerError) as caught:
        _event(f'{{"choices": [{{"text": 5, "from": "{key}"}}]}}', engine._client)

    assert "Bearer ***" in (result.error or "")
    assert "s3cret" not in (result.error or "") + str(caught.value)


def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it(model: Path, serve: Any) -> None:
    with pytest.raises(EngineError, match="NEWSJUICE_SERVER_API_KEY") as caught:
        connect(model, serve(), "s3cret\nfrom a file")

    assert "s3cret" not in str(caught.value)


def test_blanks_around_a_key_do_not_belong_to_it(model: Path, serve: Any) -> None:
    assert connect(model, serve(token="right"), " right\n").capabilities().engine == "vllm"


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_key_that_the_server_refuses_says_what_to_set(key: str | None, model: Path, serve: Any) -> None:
    with pytest.raises(EngineError, match="NEWSJUICE_SERVER_API_KEY"):
        connect(model, serve(token="right"), key)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (None, "needs the address of a server"),
        ("file:///etc/passwd", "must be an http or https address"),
        ("127.0.0.1:8000", "must be an http or https address"),
        ("http://", "must be an http or https address"),
        ("http://[::1/v1", "must be an http or https address"),
        ("http://127.0.0.1:notaport/v1", "must be an http or https address"),
        ("http://127.0.0.1:99999/v1", "must be an http or https address"),
        ("http://host\x00/v1", "must be an http or https address"),
        (f"http://{'a' * 70}.invalid/v1", "no server answers at"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str | None, named: str, model: Path) -> None:
    with pytest.raises(EngineError, match=named):
        open_engine("vllm", model, options=EngineOptions(server_url=url))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@127.0.0.1:1/v1",
        "http://127.0.0.1:1/v1?key=s3cret",
        "user:s3cret@127.0.0.1:1/v1",
        "//user:s3cret@[::1/v1",
        "http:/127.0.0.1/v1#s3cret",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str, model: Path) -> None:
    with pytest.raises(EngineError, match="give the plain address") as caught:
        open_engine("vllm", model, options=EngineOptions(server_url=url))

    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        with pytest.raises(EngineError, match=f"no server answers at {url}.*start it, or correct server_url"):
            open_engine("vllm", model, options=EngineOptions(server_url=url))


def test_an_address_that_is_no_such_server_is_answered_with_what_to_check(model: Path, serve: Any) -> None:
    with pytest.raises(EngineError, match=r"HTTP 404.*ends in /v1"):
        open_engine("vllm", model, options=EngineOptions(server_url=serve().url.removesuffix("/v1")))


def test_a_model_that_is_not_served_is_answered_with_those_that_are(model: Path, serve: Any) -> None:
    server = serve(models=("one", "two"))

    with pytest.raises(EngineError, match=r"does not serve the model 'three', but one, two"):
        connect(model, server, server_model="three")
    with pytest.raises(EngineError, match=r"several models or none \(one, two\): set server_model"):
        connect(model, server)
    assert connect(model, server, server_model="two")._fields["model"] == "two"


def test_an_option_that_a_server_may_ignore_is_refused(model: Path, serve: Any) -> None:
    with pytest.raises(EngineError, match="would ignore prompt_lookup_tokens"):
        connect(model, serve(), prompt_lookup_tokens=3)


def test_whoever_stops_reading_does_not_wait_for_the_rest(model: Path, serve: Any, requests: list[Request]) -> None:
    server = serve(step_s=0.1)
    many = [replace(requests[0], request_id=f"request {number}") for number in range(40)]
    results = iter(connect(model, server, concurrent_requests=2).generate(many))
    next(results)

    started = time.perf_counter()
    results.close()  # type: ignore[attr-defined]

    assert time.perf_counter() - started < 1.0
    assert len(server.received) < len(many)


def test_an_unusual_line_end_inside_of_a_text_does_not_cut_an_event() -> None:
    stream = 'data: {"text": "one\u2028two\x85three"}\r\n\r\n: a comment\n\ndata: [DONE]\n\ndata: later\n\n'.encode()
    pieces = [stream[start : start + 7] for start in range(0, len(stream), 7)]

    assert list(_server_sent(iter(pieces))) == ['{"text": "one\u2028two\x85three"}']


@pytest.fixture
def reply() -> Iterator[Callable[..., str]]:
    """Starts servers that answer completions with these texts one after another, then keep silent; gives their address."""
    servers: list[ThreadingHTTPServer] = []
    over = threading.Event()

    def start(*texts: list[str]) -> str:
        left = deque(texts)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are used again

            def do_GET(self) -> None:
                self.send(json.dumps({"data": [{"id": "micro"}]}))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if not left:
                    over.wait(5)
                    self.close_connection = True
                    return
                events: list[dict[str, Any]] = [{"text": text} for text in left.popleft()] + [{"finish_reason": "stop"}]
                self.send("".join(f"data: {json.dumps({'choices': [event]})}\n\n" for event in events))

            def send(self, body: str) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """No lines on standard error."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("places", [1, 2])  # the first one uses the connection of the list of models again
def test_whoever_stops_reading_does_not_wait_for_a_silent_server(
    places: int, model: Path, reply: Any, requests: list[Request]
) -> None:
    options = EngineOptions(server_url=reply(["Hi."]), concurrent_requests=places)
    results = iter(OpenAIServerEngine(model, CPU, options).generate(requests[:4]))
    assert next(results).text == "Hi."
    time.sleep(0.2)  # now the others wait for the server

    started = time.perf_counter()
    results.close()  # type: ignore[attr-defined]

    assert time.perf_counter() - started < 2.0


def test_half_a_character_in_an_answer_harms_nothing(model: Path, reply: Any, requests: list[Request]) -> None:
    options = EngineOptions(server_url=reply(["Hello \ud83d", "\ude00 and \ud83d there."]), concurrent_requests=1)

    (result,) = OpenAIServerEngine(model, CPU, options).generate(requests[:1])

    assert (result.text, result.finish_reason) == ("Hello \N{GRINNING FACE} and \ufffd there.", "eos")
