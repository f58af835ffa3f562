"""The same prompts through each engine: what all of them promise, and how far their answers are from the reference's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.benchmarks.openai_server import OpenAIServer
from newsjuice_pipelines.podcast.engines import Engine, EngineOptions, Request, Result, open_engine
from newsjuice_pipelines.podcast.engines.parity import Parity, compare, model_scorer
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt
from newsjuice_pipelines.runtime.devices import Device

Made = tuple[Path, dict[str, Any]]
CPU = Device("cpu", "CPU", "float32")
EXACT = ("reference", "prompt lookup", "transformers", "vllm")
# Nats a token that 8-bit weights may cost on the micro model, whose small layers suffer more than real ones.
QUANTISED_NATS = 0.1


@pytest.fixture(scope="module")
def requests(merged: Made, make_article: Callable[[int], str]) -> list[Request]:
    tokenizer = load_tokenizer(merged[0])
    system = {"role": "system", "content": "Write a script."}
    texts = [*(make_article(number) for number in range(1000, 1007)), "Zürich: 20 °C – „schön“ 👍", "word " * 40]
    prompts = [encode_prompt(tokenizer, [system, {"role": "user", "content": text}]) for text in texts]
    return [Request(f"r{number}", tuple(prompt), 5 + 9 * number) for number, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def reference(merged: Made, requests: list[Request]) -> list[Result]:
    return list(open_engine("reference", merged[0], device="cpu").generate(requests))


@pytest.fixture(scope="module", params=[*EXACT, "openvino", "openvino alone"])
def engine(request: pytest.FixtureRequest, merged: Made) -> Iterator[tuple[str, Engine]]:
    model, name = merged[0], request.param
    if name == "vllm":
        with OpenAIServer(model) as server:
            engine = open_engine("vllm", model, options=EngineOptions(server_url=server.url))
            yield name, engine
            engine.close()
        return
    if name.startswith("openvino"):
        quantised = request.getfixturevalue("quantised")
        options = EngineOptions(concurrent_requests=1 if name.endswith("alone") else 4)
        engine = open_engine("openvino", model, quantised=quantised, options=options)
    elif name == "prompt lookup":
        engine = open_engine("reference", model, device="cpu", options=EngineOptions(prompt_lookup_tokens=4))
    else:
        engine = open_engine(name, model, device="cpu")
    yield name, engine
    engine.close()


@pytest.fixture(scope="module")
def quantised(merged: Made, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model in 8 bits, its own gate left out."""
    pytest.importorskip("openvino_genai", reason="the extra cpu-engine is not installed")
    quantise = pytest.importorskip("newsjuice_pipelines.podcast.quantising.quantise")
    folder = tmp_path_factory.mktemp("quantised")
    quantise.quantise_model(
        merged[0], dataset, folder, quantise.QuantiseConfig(precision="int8", gate_prompts=1, max_new_tokens=8)
    )
    return folder


def test_every_request_is_answered_as_promised(engine: tuple[str, Engine], requests: list[Request], merged: Made) -> None:
    tokenizer = load_tokenizer(merged[0])

    results = {result.request_id: result for result in engine[1].generate(requests)}

    assert results.keys() == {request.request_id for request in requests}
    for request in requests:
        result = results[request.request_id]
        assert result.error is None
        assert result.prompt_tokens == len(request.tokens)
        assert 1 <= result.new_tokens == len(result.tokens) <= request.max_new_tokens
        assert (result.tokens[-1] == tokenizer.eos_token_id) == (result.finish_reason == "eos")
        assert tokenizer.eos_token_id not in result.tokens[:-1]
        assert result.finish_reason == "eos" or result.new_tokens == request.max_new_tokens
        body = result.tokens[:-1] if result.finish_reason == "eos" else result.tokens
        assert result.text == tokenizer.decode(list(body)).strip()
        assert result.ttft_s is not None
        assert result.latency_s is not None
        assert 0 < result.ttft_s <= result.latency_s


def test_the_answers_are_those_of_the_reference(
    engine: tuple[str, Engine], requests: list[Request], reference: list[Result], merged: Made
) -> None:
    name, other = engine

    parity = compare(reference, other.generate(requests), model_scorer(merged[0], CPU, requests))

    assert parity.unanswered == 0
    assert parity.score_difference_nats is not None
    if name in EXACT:
        assert (parity.exact, parity.first_divergence) == (len(requests), (None,) * len(requests))
        assert parity.score_difference_nats == parity.worst_score_difference_nats == 0.0
    else:
        assert parity.score_difference_nats < QUANTISED_NATS, describe(parity)


def test_requests_that_cannot_be_answered_are_errors_and_their_neighbours_are_answered(
    engine: tuple[str, Engine], requests: list[Request], reference: list[Result]
) -> None:
    too_long = Request("long", requests[0].tokens * 8, 5)
    no_room = Request("no room", requests[0].tokens, 500)

    results = {result.request_id: result for result in engine[1].generate([too_long, requests[0], no_room])}

    for name in ("long", "no room"):
        assert (results[name].finish_reason, results[name].tokens, results[name].text) == ("error", (), "")
        assert "context" in (results[name].error or "")
    assert results["r0"].error is None


def test_ids_that_the_model_does_not_have_are_errors(engine: tuple[str, Engine], requests: list[Request]) -> None:
    unknown = Request("unknown", (*requests[0].tokens, 999_999), 5)

    results = {result.request_id: result for result in engine[1].generate([unknown, requests[0]])}

    assert results["unknown"].finish_reason == "error"
    assert results["r0"].error is None


def test_nothing_asked_gives_nothing(engine: tuple[str, Engine]) -> None:
    assert list(engine[1].generate([])) == []


def test_an_engine_can_be_asked_again(engine: tuple[str, Engine], requests: list[Request]) -> None:
    first, second = ({r.request_id: r.tokens for r in engine[1].generate(requests[:3])} for _ in range(2))

    assert first == second


def test_an_engine_says_what_it_is(engine: tuple[str, Engine]) -> None:
    name, opened = engine
    capabilities = opened.capabilities()

    assert capabilities.engine == ("reference" if name == "prompt lookup" else name.split()[0])
    assert capabilities.context_tokens == 512
    assert capabilities.concurrent_requests >= 1
    assert capabilities.device
    assert capabilities.dtype


def describe(parity: Parity) -> str:
    """The comparison in words, for a failing test."""
    return f"{parity.exact} of {parity.requests} equal, first divergence {parity.first_divergence}"
