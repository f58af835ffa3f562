"""Engines, on a really trained micro model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.engines import Engine, EngineError, Request, open_engine
from newsjuice_pipelines.podcast.engines.transformers_batch import TransformersBatchEngine
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def reference(merged: Made) -> Iterator[Engine]:
    engine = open_engine("reference", merged[0], "cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def batch(merged: Made) -> Iterator[Engine]:
    engine = open_engine("transformers_batch", merged[0], "cpu", concurrent_requests=3)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def requests(dataset: Path) -> list[Request]:
    import pandas as pd

    table = pd.read_parquet(dataset / "train.parquet").head(6)
    prompts = [(str(chunk_id), list(prompt)) for chunk_id, prompt in table[["chunk_id", "prompt"]].to_numpy()]
    return [Request(chunk_id, prompt, 8 + 10 * number) for number, (chunk_id, prompt) in enumerate(prompts)]


def test_the_tuned_model_ends_a_script_by_itself(reference: Engine, requests: list[Request]) -> None:
    result = next(iter(reference.generate([Request("whole", requests[0].prompt, 80)])))

    assert result.finish_reason == "eos"
    assert result.text.startswith("Hello. ")
    assert "<|im_end|>" not in result.text


def test_a_script_that_reaches_the_limit_says_so(reference: Engine, requests: list[Request]) -> None:
    result = next(iter(reference.generate([Request("short", requests[0].prompt, 2)])))

    assert (result.finish_reason, result.new_tokens) == ("length", 2)


def test_batching_gives_the_tokens_of_the_reference(reference: Engine, batch: Engine, requests: list[Request]) -> None:
    expected = {result.request_id: result.tokens for result in reference.generate(requests)}

    assert {result.request_id: result.tokens for result in batch.generate(requests)} == expected


@pytest.mark.parametrize("name", ["reference", "batch"])
def test_the_first_token_comes_before_the_last(name: str, requests: list[Request], request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)

    for result in engine.generate(requests[3:5]):
        assert result.ttft_s is not None
        assert result.latency_s is not None
        assert 0 < result.ttft_s < result.latency_s


@pytest.mark.parametrize("name", ["reference", "batch"])
def test_a_prompt_beyond_the_context_is_an_error_and_its_neighbours_are_answered(
    name: str, requests: list[Request], request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(name)
    too_long = Request("long", [{"role": "user", "content": "word " * 600}], 5)

    results = {result.request_id: result for result in engine.generate([too_long, requests[0]])}

    assert results["long"].finish_reason == "error"
    assert "exceed the context of 512" in (results["long"].error or "")
    assert results[requests[0].request_id].finish_reason != "error"


def test_requests_that_get_lost_are_run_once_more(
    batch: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TransformersBatchEngine._run
    passes: list[int] = []

    def lose_the_first_pass(self: TransformersBatchEngine, waiting: Any) -> Iterator[Any]:
        passes.append(len(waiting))
        return iter(()) if len(passes) == 1 else run(self, waiting)

    monkeypatch.setattr(TransformersBatchEngine, "_run", lose_the_first_pass)

    results = list(batch.generate(requests[:2]))

    assert passes == [2, 2]
    assert {result.finish_reason for result in results} <= {"eos", "length"}


def test_requests_that_stay_lost_are_reported(batch: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersBatchEngine, "_run", lambda self, waiting: iter(()))

    results = list(batch.generate(requests[:2]))

    assert [result.error for result in results] == ["the batch ended without an answer"] * 2


def test_settings_that_greedy_decoding_would_ignore_are_refused(merged: Made, tmp_path: Path) -> None:
    model = Path(shutil.copytree(merged[0], tmp_path / "model"))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))

    with pytest.raises(EngineError, match=r"repetition_penalty=1\.3"):
        open_engine("reference", model, "cpu")


def test_sampling_settings_of_a_model_do_not_make_decoding_random(merged: Made, requests: list[Request], tmp_path: Path) -> None:
    model = Path(shutil.copytree(merged[0], tmp_path / "model"))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "temperature": 5.0, "top_k": 50}))
    engine = open_engine("reference", model, "cpu")

    first, second = ([result.tokens for result in engine.generate(requests[:3])] for _ in range(2))

    assert first == second


def test_the_reference_engine_refuses_a_number_of_concurrent_requests(merged: Made) -> None:
    with pytest.raises(EngineError, match="one request at a time"):
        open_engine("reference", merged[0], "cpu", concurrent_requests=4)


def test_an_unknown_engine_is_answered_with_the_known_ones(merged: Made) -> None:
    with pytest.raises(EngineError, match="choose auto, reference or transformers_batch"):
        open_engine("vllm", merged[0], "cpu")


def test_a_request_for_no_tokens_is_refused() -> None:
    with pytest.raises(EngineError, match="at least 1"):
        Request("none", [], 0)


def test_the_default_engine_of_a_cpu_is_named_in_its_capabilities(merged: Made) -> None:
    capabilities = open_engine("auto", merged[0], "cpu").capabilities()

    assert (capabilities.engine, capabilities.dtype) == ("transformers_batch", "float32")
    assert capabilities.device.startswith("cpu: ")


def test_prompt_tokens_are_those_of_the_chat_template(merged: Made, reference: Engine, requests: list[Request]) -> None:
    tokenizer = load_tokenizer(merged[0])
    rendered = tokenizer.apply_chat_template(
        list(requests[0].prompt), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )

    result = next(iter(reference.generate([Request("one", requests[0].prompt, 1)])))

    assert result.prompt_tokens == len(tokenizer(rendered)["input_ids"])
