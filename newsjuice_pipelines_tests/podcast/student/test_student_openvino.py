"""The quantised CPU engine: it answers as its weights say, one or many at once, and refuses what it would ignore."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.engines import EngineError, EngineOptions, Request, Result, open_engine, openvino_genai
from newsjuice_pipelines.podcast.engines.openvino_genai import OpenvinoEngine
from newsjuice_pipelines.podcast.engines.parity import compare
from newsjuice_pipelines.podcast.engines.reference import ReferenceEngine
from newsjuice_pipelines.podcast.quantising import gguf_export
from newsjuice_pipelines.podcast.quantising.quantise import QuantiseConfig, quantise_model
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt
from newsjuice_pipelines.runtime.devices import Device

pytest.importorskip("gguf")
installed = pytest.mark.skipif(
    openvino_genai.importlib.util.find_spec("openvino_genai") is None, reason="needs the extra cpu-engine"
)
CPU = Device("cpu", "CPU", "float32")
NEW_TOKENS = 50


@pytest.fixture(scope="module")
def quantised(merged: tuple[Path, dict[str, Any]], dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged micro model in 8 bits."""
    folder = tmp_path_factory.mktemp("quantised")
    quantise_model(merged[0], dataset, folder, QuantiseConfig(gate_prompts=1, max_new_tokens=2))
    return folder


@pytest.fixture(scope="module")
def exact(quantised: Path, merged: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with matrices in float16, so that nothing but the engine can make a difference."""
    folder = Path(shutil.copytree(quantised, tmp_path_factory.mktemp("exact") / "model"))
    (folder / "gate.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_export, "BLOCK_VALUES", 10**9)
        facts = gguf_export.export_gguf(merged[0], folder / "model-q8_0.gguf", "int8")
    assert facts["tensors"] == {"F16": 15, "F32": 9}
    return folder


@pytest.fixture(scope="module")
def requests(merged: tuple[Path, dict[str, Any]], dataset: Path) -> list[Request]:
    """Eight prompts of the data set."""
    tokenizer = load_tokenizer(merged[0])
    prompts = pd.read_parquet(dataset / "train.parquet")["prompt"][:8]
    return [
        Request(f"r{number}", tuple(encode_prompt(tokenizer, list(prompt))), NEW_TOKENS) for number, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def expected(merged: tuple[Path, dict[str, Any]], requests: list[Request]) -> list[Result]:
    """What the reference engine answers."""
    return list(ReferenceEngine(merged[0], CPU, EngineOptions()).generate(requests))


@pytest.fixture
def opened() -> Iterator[Callable[..., OpenvinoEngine]]:
    """Opens engines, and closes them after the test."""
    engines: list[OpenvinoEngine] = []

    def open_(folder: Path, **options: Any) -> OpenvinoEngine:
        engines.append(OpenvinoEngine(folder, CPU, EngineOptions(**options)))
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()


def tokens_of(results: list[Result]) -> dict[str, tuple[int, ...]]:
    assert [result.error for result in results if result.error] == []
    return {result.request_id: result.tokens for result in results}


@installed
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"concurrent_requests": 1},
        {"concurrent_requests": 3},
        {"prompt_lookup_tokens": 4},
        {"prefix_cache": True},
        {"prefix_cache": True, "concurrent_requests": 1},
        {"prefix_cache": True, "prompt_lookup_tokens": 4},
    ],
    ids=["eight at once", "one at once", "three at once", "prompt lookup", "prefixes", "prefixes of one", "prefixes and lookup"],
)
def test_the_engine_gives_the_tokens_of_the_reference_when_its_weights_are_the_same(
    exact: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine], options: dict[str, Any]
) -> None:
    results = list(opened(exact, **options).generate(requests))
    parity = compare(expected, results)
    assert (parity.exact, parity.unanswered) == (len(requests), 0), parity.first_divergence
    texts = {result.request_id: (result.text, result.finish_reason, result.prompt_tokens) for result in expected}
    assert {result.request_id: (result.text, result.finish_reason, result.prompt_tokens) for result in results} == texts
    assert all(0 < result.ttft_s < result.latency_s for result in results if result.ttft_s and result.latency_s)
    assert all(result.ttft_s is not None for result in results)


@installed
def test_a_penalty_for_repetition_does_the_same_as_in_the_reference(
    exact: Path,
    merged: tuple[Path, dict[str, Any]],
    requests: list[Request],
    expected: list[Result],
    opened: Callable[..., OpenvinoEngine],
) -> None:
    reference = ReferenceEngine(merged[0], CPU, EngineOptions(repetition_penalty=1.3))
    punished = list(reference.generate(requests))
    assert compare(expected, punished).exact == 0
    for options in ({}, {"concurrent_requests": 1}, {"prompt_lookup_tokens": 4}):
        parity = compare(punished, opened(exact, repetition_penalty=1.3, **options).generate(requests))
        assert parity.exact >= len(requests) - 2, parity.first_divergence  # a penalty makes near ties, which rounding decides


@installed
def test_answers_drawn_at_random_depend_on_the_seed_and_not_on_neighbours(
    exact: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine]
) -> None:
    drawn = tokens_of(list(opened(exact, temperature=1.5, seed=1).generate(requests)))
    assert drawn != tokens_of(expected)
    again = opened(exact, temperature=1.5, seed=1)
    assert tokens_of(list(again.generate(requests[3:4]))) == {"r3": drawn["r3"]}
    assert tokens_of(list(again.generate(requests))) == drawn
    assert tokens_of(list(opened(exact, temperature=1.5, seed=2).generate(requests))) != drawn
    alone = opened(exact, temperature=1.5, seed=1, concurrent_requests=1)
    assert tokens_of(list(alone.generate(requests))) == tokens_of(list(alone.generate(requests)))


@installed
def test_eight_bits_give_most_answers_of_the_reference(
    quantised: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine]
) -> None:
    engine = opened(quantised)
    parity = compare(expected, engine.generate(requests))
    assert parity.unanswered == 0
    assert parity.exact >= len(requests) / 2, parity.first_divergence
    can = engine.capabilities()
    assert (can.engine, can.dtype, can.concurrent_requests, can.measures_ttft, can.context_tokens) == (
        "openvino",
        "int8",
        8,
        True,
        512,
    )


@installed
def test_an_answer_that_reaches_its_cap_says_so(
    exact: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine]
) -> None:
    short = [Request(request.request_id, request.tokens, 5) for request in requests]
    for options in ({}, {"concurrent_requests": 1}, {"prompt_lookup_tokens": 4}):
        results = sorted(opened(exact, **options).generate(short), key=lambda result: result.request_id)
        assert [result.tokens for result in results] == [result.tokens[:5] for result in expected]
        assert {result.finish_reason for result in results} == {"length"}


@installed
@pytest.mark.parametrize(("places", "first"), [(3, "short"), (2, "long")])
def test_a_short_answer_comes_first_once_it_has_a_place(
    exact: Path, requests: list[Request], opened: Callable[..., OpenvinoEngine], places: int, first: str
) -> None:
    long = [Request(f"long{number}", requests[0].tokens, 20) for number in range(2)]
    short = Request("short", requests[0].tokens, 1)
    results = opened(exact, concurrent_requests=places).generate([*long, short])
    assert next(results).request_id.startswith(first)
    results.close()


@installed
@pytest.mark.parametrize("places", [1, 8])
def test_a_request_that_cannot_be_answered_is_an_error_and_leaves_the_others_alone(
    exact: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine], places: int
) -> None:
    bad = [Request("long", requests[0].tokens, 512), Request("strange", (5, 100_000), 5)]
    results = {result.request_id: result for result in opened(exact, concurrent_requests=places).generate([*bad, *requests])}
    assert "exceed the context of 512" in (results["long"].error or "")
    assert "encode it with this model's tokenizer" in (results["strange"].error or "")
    assert tokens_of([results[request.request_id] for request in requests]) == tokens_of(expected)


class Breaking:
    """A pipeline that fails at its n-th call of a method, once."""

    def __init__(self, inner: Any, method: str, call: int) -> None:
        self._inner, self._method, self._left = inner, method, call

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._left -= 1
            if self._left == 0:
                raise RuntimeError("Check 'x' failed at somewhere.cpp:1:\nout of memory")
        return getattr(self._inner, name)


@installed
@pytest.mark.parametrize(("places", "method"), [(8, "step"), (2, "step"), (2, "add_request"), (1, "generate")])
def test_what_runs_when_openvino_fails_is_run_once_more_and_what_waits_is_answered_too(
    exact: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine], places: int, method: str
) -> None:
    engine = opened(exact, concurrent_requests=places)
    engine._loaded.model = Breaking(engine._loaded.model, method, 3)
    assert tokens_of(list(engine.generate(requests))) == tokens_of(expected)
    assert not isinstance(engine._loaded.model, Breaking)


@installed
@pytest.mark.parametrize("places", [1, 3])
def test_a_request_that_always_fails_is_reported_and_takes_no_other_with_it(
    exact: Path,
    requests: list[Request],
    expected: list[Result],
    opened: Callable[..., OpenvinoEngine],
    places: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = opened(exact, concurrent_requests=places)
    decoding = engine._decoding

    def fail_one(request: Request) -> Any:
        if request.request_id == "r3":
            raise RuntimeError("Check 'x' failed at somewhere.cpp:1:\nout of memory")
        return decoding(request)

    monkeypatch.setattr(engine, "_decoding", fail_one)
    results = {result.request_id: result for result in engine.generate(requests)}
    assert results.pop("r3").error == "OpenVINO failed: out of memory"
    assert results.keys() == {request.request_id for request in requests} - {"r3"}
    assert tokens_of(list(results.values())).items() < tokens_of(expected).items()


@installed
@pytest.mark.parametrize("options", [{"concurrent_requests": 2}, {"prompt_lookup_tokens": 4}])
def test_a_request_too_long_for_the_memory_takes_no_room_from_the_others(
    exact: Path,
    requests: list[Request],
    expected: list[Result],
    opened: Callable[..., OpenvinoEngine],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_genai, "FIRST_CACHE_TOKENS", 32)
    engine = opened(exact, **options)
    decoding = engine._decoding

    def fail_without_memory(request: Request) -> Any:
        if engine._cache_blocks > 16:
            raise RuntimeError("std::bad_alloc")
        return decoding(request)

    monkeypatch.setattr(engine, "_decoding", fail_without_memory)
    long = Request("long", requests[0].tokens, 512 - len(requests[0].tokens))  # 17 blocks
    results = {result.request_id: result for result in engine.generate([requests[0], long, *requests[1:]])}
    assert results.pop("long").error == "OpenVINO failed: std::bad_alloc"
    assert tokens_of(list(results.values())) == tokens_of(expected)


@installed
def test_a_model_that_cannot_be_loaded_again_is_reported_for_each_request(
    exact: Path, requests: list[Request], opened: Callable[..., OpenvinoEngine]
) -> None:
    engine = opened(exact, concurrent_requests=2)
    engine._loaded.model = Breaking(engine._loaded.model, "step", 1)
    engine._file = exact / "gone.gguf"
    results = list(engine.generate(requests))
    assert sorted(result.request_id for result in results) == [request.request_id for request in requests]
    assert all((result.error or "").startswith("OpenVINO cannot load the model: ") for result in results)


@installed
def test_a_caller_that_stops_early_leaves_nothing_running(
    exact: Path, requests: list[Request], expected: list[Result], opened: Callable[..., OpenvinoEngine]
) -> None:
    engine = opened(exact)
    results = engine.generate(requests)
    next(results)
    results.close()
    assert not engine._loaded.model.has_non_finished_requests()
    assert tokens_of(list(engine.generate(requests))) == tokens_of(expected)


@installed
def test_a_longer_request_than_the_cache_was_made_for_makes_it_larger(
    exact: Path,
    requests: list[Request],
    expected: list[Result],
    opened: Callable[..., OpenvinoEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_genai, "FIRST_CACHE_TOKENS", 32)
    engine = opened(exact)
    assert engine._cache_blocks == 8 * 2
    assert tokens_of(list(engine.generate(requests))) == tokens_of(expected)
    blocks = [(len(request.tokens) + NEW_TOKENS + 31) // 32 + 1 for request in requests]
    assert engine._cache_blocks == sum(blocks) > 8 * 2


@installed
def test_one_long_request_takes_the_room_of_one(
    exact: Path, requests: list[Request], opened: Callable[..., OpenvinoEngine]
) -> None:
    engine = opened(exact, concurrent_requests=2)
    engine._cache_blocks = 0  # as if it had been opened for shorter ones
    short = Request("short", (5, 6, 7), 5)
    tokens_of(list(engine.generate([short, Request("long", requests[0].tokens, 512 - len(requests[0].tokens)), short, short])))
    assert engine._cache_blocks == 17 + 2


@installed
@pytest.mark.parametrize("options", [{}, {"concurrent_requests": 1}, {"prompt_lookup_tokens": 4}])
def test_kept_prefixes_leave_the_answers_alone_also_when_longer_requests_come(
    exact: Path,
    requests: list[Request],
    expected: list[Result],
    opened: Callable[..., OpenvinoEngine],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_genai, "FIRST_CACHE_TOKENS", 32)
    engine = opened(exact, prefix_cache=True, **options)
    blocks = engine._cache_blocks
    short = [Request(request.request_id, request.tokens, 5) for request in requests]
    assert tokens_of(list(engine.generate(short))) == {result.request_id: result.tokens[:5] for result in expected}
    # Prompts that share all of a request and a part of its answer.
    longer, answers = list(requests), tokens_of(expected)
    for one in requests:
        for cut in (3, 20):
            longer.append(
                Request(f"{one.request_id} from {cut}", (*one.tokens, *answers[one.request_id][:cut]), NEW_TOKENS - cut)
            )
            answers[longer[-1].request_id] = answers[one.request_id][cut:]
    for _ in range(2):
        assert tokens_of(list(engine.generate(longer))) == answers
    assert engine._cache_blocks > blocks


@installed
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"prompt_lookup_tokens": 4}, False),  # where OpenVINO keeps prefixes unless told not to
        ({"prompt_lookup_tokens": 4, "prefix_cache": True}, True),
        ({"concurrent_requests": 1, "prefix_cache": True}, True),
        ({"concurrent_requests": 2}, False),
        ({"concurrent_requests": 2, "prefix_cache": True}, True),
    ],
)
def test_a_prompt_is_read_again_unless_prefixes_are_kept(
    exact: Path, opened: Callable[..., OpenvinoEngine], tmp_path: Path, options: dict[str, Any], kept: bool
) -> None:
    folder = Path(shutil.copytree(exact, tmp_path / "wide"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8000}))
    engine = opened(folder, **options)
    long = Request("long", tuple(5 + number * number % 290 for number in range(5000)), 2)
    tokens_of(list(engine.generate([Request("other", long.tokens[::-1], 2)])))  # the first call takes longer
    first, second = (next(iter(engine.generate([long]))).ttft_s or 0.0 for _ in range(2))
    assert (second < first / 3) == kept, (first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lookup_tokens": 4, "concurrent_requests": 2}, "prompt lookup runs one request at a time, not 2"),
        ({"prompt_lookup_tokens": 4, "temperature": 1.0}, "prompt lookup keeps the text of greedy decoding only"),
        ({"server_url": "http://127.0.0.1:1/v1"}, "openvino engine would ignore server_url"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        OpenvinoEngine(tmp_path, CPU, EngineOptions(**options))


def test_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="runs on the CPU, not on cuda"):
        OpenvinoEngine(tmp_path, Device("cuda", "GPU", "float16"), EngineOptions())


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(EngineError, match=r"pip install 'newsjuice-pipelines\[cpu-engine\]'"):
        OpenvinoEngine(tmp_path, CPU, EngineOptions())


@installed
def test_a_folder_without_gguf_file_says_why_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no GGUF file to run .*materialise quantised_model again"):
        OpenvinoEngine(tmp_path, CPU, EngineOptions())
    (tmp_path / "gate.json").write_text(json.dumps({"passed": None, "file": None, "why": "not quantised: it is a llama"}))
    with pytest.raises(EngineError, match="not quantised: it is a llama"):
        OpenvinoEngine(tmp_path, CPU, EngineOptions())


@installed
def test_a_file_that_was_cut_short_is_refused_which_openvino_itself_would_run(quantised: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantised, tmp_path / "cut"))
    file = folder / "model-q8_0.gguf"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(EngineError, match=r"model-q8_0\.gguf is damaged .*materialise quantised_model again"):
        open_engine("openvino", folder, quantised=folder, device="cpu")


@installed
def test_a_file_that_is_no_gguf_file_is_an_engine_error(exact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exact, tmp_path / "other"))
    (folder / "model-q8_0.gguf").write_bytes(b"not a GGUF file" * 100)
    with pytest.raises(EngineError, match=r"OpenVINO cannot read .*gguf_open.*materialise quantised_model again"):
        OpenvinoEngine(folder, CPU, EngineOptions())


# Prints what the import tried to reach; nothing gets out.
WATCHED_IMPORT = """
import multiprocessing, socket, sys
tried = []
def refuse(*arguments, **options):
    tried.append(str(arguments[:1]))
    raise OSError("no network in this test")
multiprocessing.Process.start = refuse  # in which the report would be sent
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
if sys.argv[1] == "ours":
    from newsjuice_pipelines.podcast.engines.openvino_genai import _import_genai
    _import_genai()
    assert "openvino_telemetry" not in sys.modules
else:
    import openvino_genai
import threading
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
print(len(tried))
"""


@installed
@pytest.mark.parametrize("way", ["ours", "plain"])
def test_opening_the_engine_reports_nothing_to_the_vendor(tmp_path: Path, way: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT, way],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    identified = (tmp_path / "intel").exists()
    if way == "ours":
        assert (done.stdout.strip(), identified) == ("0", False), done.stderr
    else:  # the plain import does leave an identity of this user behind, so that the assertion above can fail
        assert identified
