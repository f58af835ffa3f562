"""The engines that run in PyTorch, on a really trained micro model."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from newsjuice_pipelines.podcast.engines import Engine, EngineError, EngineOptions, Request, open_engine
from newsjuice_pipelines.podcast.engines import transformers_batch as batching
from newsjuice_pipelines.podcast.engines.loaded import of_like_length
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt

Made = tuple[Path, dict[str, Any]]
PASS_S = 0.1


@pytest.fixture(scope="module")
def reference(merged: Made) -> Iterator[Engine]:
    engine = open_engine("reference", merged[0], device="cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def batch(merged: Made) -> Iterator[Engine]:
    engine = open_engine("transformers", merged[0], device="cpu", options=EngineOptions(concurrent_requests=3))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def requests(merged: Made, make_article: Callable[[int], str]) -> list[Request]:
    tokenizer = load_tokenizer(merged[0])
    system = {"role": "system", "content": "Write a script."}
    prompts = [encode_prompt(tokenizer, [system, {"role": "user", "content": make_article(n)}]) for n in range(1000, 1006)]
    return [Request(f"r{number}", tuple(prompt), 8 + 10 * number) for number, prompt in enumerate(prompts)]


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "POLL_S", 0.1)


def answers(engine: Engine, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    results = list(engine.generate(requests))
    assert [result.error for result in results] == [None] * len(requests)
    return {result.request_id: result.tokens for result in results}


def failing_forward(engine: Any, times: int) -> Callable[..., Any]:
    """The forward pass of an engine's model, which fails the first `times` times."""
    forward, calls = type(engine._loaded.model).forward, iter(range(times))

    def fail_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is not None:
            raise RuntimeError("the memory is full")
        return forward(self, *args, **kwargs)

    return fail_first


def test_the_tuned_model_ends_a_script_by_itself(reference: Engine, requests: list[Request]) -> None:
    result = next(iter(reference.generate([Request("whole", requests[0].tokens, 80)])))

    assert result.finish_reason == "eos"
    assert result.text.startswith("Hello. ")
    assert "<|im_end|>" not in result.text


def test_a_script_that_reaches_the_limit_says_so(reference: Engine, requests: list[Request]) -> None:
    result = next(iter(reference.generate([Request("short", requests[0].tokens, 2)])))

    assert (result.finish_reason, result.new_tokens) == ("length", 2)


@pytest.mark.parametrize("name", ["reference", "batch"])
def test_the_first_token_comes_before_the_last(name: str, requests: list[Request], request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)

    for result in engine.generate(requests[3:5]):
        assert result.ttft_s is not None
        assert result.latency_s is not None
        assert 0 < result.ttft_s < result.latency_s


@pytest.mark.parametrize("lookup", [0, 5])
def test_the_time_to_the_first_token_is_one_pass_of_the_model(
    lookup: int, merged: Made, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = open_engine("reference", merged[0], device="cpu", options=EngineOptions(prompt_lookup_tokens=lookup))
    model = type(engine._loaded.model)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: (time.sleep(PASS_S), forward(*args, **kwargs))[1])

    result = next(iter(engine.generate([Request("slow", requests[0].tokens, 16)])))

    assert PASS_S < result.ttft_s < 2 * PASS_S
    assert result.latency_s > result.ttft_s + 3 * PASS_S


def test_prompt_lookup_takes_fewer_passes_for_the_same_text(
    merged: Made, reference: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = open_engine("reference", merged[0], device="cpu", options=EngineOptions(prompt_lookup_tokens=5))
    passes: list[int] = []
    model = type(reference._loaded.model)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: (passes.append(1), forward(*args, **kwargs))[1])

    plain = answers(reference, requests)
    plain_passes = len(passes)
    guessed = answers(lookup, requests)

    assert guessed == plain
    assert len(passes) - plain_passes < plain_passes


def test_prompt_lookup_keeps_the_text_of_penalised_decoding_too(merged: Made, requests: list[Request]) -> None:
    penalised = EngineOptions(repetition_penalty=1.1)
    both = EngineOptions(repetition_penalty=1.1, prompt_lookup_tokens=5)

    expected, found = (answers(open_engine("reference", merged[0], device="cpu", options=o), requests) for o in (penalised, both))

    assert found == expected


def test_a_repetition_penalty_changes_the_text(merged: Made, reference: Engine, requests: list[Request]) -> None:
    engine = open_engine("reference", merged[0], device="cpu", options=EngineOptions(repetition_penalty=1.8))

    assert answers(engine, requests) != answers(reference, requests)


@pytest.mark.parametrize("name", ["reference", "transformers"])
def test_random_draws_repeat_with_their_seed_only(name: str, merged: Made, requests: list[Request]) -> None:
    def drawn(seed: int) -> dict[str, tuple[int, ...]]:
        options = EngineOptions(temperature=3.0, seed=seed)
        return answers(open_engine(name, merged[0], device="cpu", options=options), requests)

    first, again, other = drawn(1), drawn(1), drawn(2)

    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["reference", "transformers"])
def test_a_low_temperature_comes_near_the_most_probable_text(
    name: str, merged: Made, reference: Engine, requests: list[Request]
) -> None:
    cold = open_engine(name, merged[0], device="cpu", options=EngineOptions(temperature=0.001))

    assert answers(cold, requests) == answers(reference, requests)


def test_a_draw_does_not_depend_on_its_neighbours_in_the_reference(merged: Made, requests: list[Request]) -> None:
    engine = open_engine("reference", merged[0], device="cpu", options=EngineOptions(temperature=3.0))

    assert answers(engine, requests)["r5"] == answers(engine, [requests[5]])["r5"]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("reference", EngineOptions(concurrent_requests=4), "one request at a time"),
        ("reference", EngineOptions(server_url="http://127.0.0.1:1/v1"), "would ignore server_url"),
        ("reference", EngineOptions(temperature=1.0, prompt_lookup_tokens=3), "prompt lookup keeps the text"),
        ("transformers", EngineOptions(repetition_penalty=1.2), r"would ignore repetition_penalty=1\.2"),
        ("transformers", EngineOptions(prompt_lookup_tokens=3), "would ignore prompt_lookup_tokens=3"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(name: str, options: EngineOptions, named: str, merged: Made) -> None:
    with pytest.raises(EngineError, match=named):
        open_engine(name, merged[0], device="cpu", options=options)


@pytest.mark.parametrize("times", [1, 100])
def test_a_failing_generation_is_reported_and_leaves_the_next_one_alone(
    times: int, reference: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(reference, requests[:3])
    with monkeypatch.context() as patch:
        patch.setattr(type(reference._loaded.model), "forward", failing_forward(reference, times))  # type: ignore[attr-defined]
        results = list(reference.generate(requests[:3]))

    assert results[0].error == "RuntimeError: the memory is full"
    assert [result.finish_reason == "error" for result in results] == [True, times > 1, times > 1]
    assert answers(reference, requests[:3]) == expected


def test_a_batch_that_fails_is_run_once_more_with_half_as_many_at_once(
    batch: Any, reference: Engine, requests: list[Request], quick_polls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    configuration = type(batch)._configuration
    monkeypatch.setattr(
        type(batch), "_configuration", lambda self, needed: (sizes.append(needed.places), configuration(self, needed))[1]
    )
    monkeypatch.setattr(type(batch._loaded.model), "forward", failing_forward(batch, 1))

    found = answers(batch, requests)

    assert sizes == [3, 1]
    assert found == answers(reference, requests)


def test_requests_of_like_length_go_together() -> None:
    assert of_like_length([90, 10, 21, 20, 500, 41], int) == [[10, 20], [21, 41], [90], [500]]
    assert of_like_length([], int) == []


def test_a_request_too_long_for_the_memory_leaves_the_others_alone(
    batch: Any, reference: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    start, sizes = ContinuousBatchingManager.start, list[int]()

    def fail_without_memory(self: Any) -> None:
        sizes.append(self.continuous_batching_config.num_blocks)
        if sizes[-1] > 8:
            raise RuntimeError("the memory is full")
        start(self)

    monkeypatch.setattr(ContinuousBatchingManager, "start", fail_without_memory)
    batch._forget_manager()
    long = Request("long", requests[0].tokens, 512 - len(requests[0].tokens))

    results = {result.request_id: result for result in batch.generate([requests[0], long, *requests[1:]])}

    pages = sorted((len(request.tokens) + request.max_new_tokens + 63) // 64 + 1 for request in requests)
    assert sizes[0] == 9 + sum(pages[-2:])  # three places, of which one holds the long one
    assert results.pop("long").error == "continuous batching could not start: the memory is full"
    assert {name: result.tokens for name, result in results.items()} == answers(reference, requests)


def test_a_batch_that_goes_on_failing_is_reported_and_leaves_the_next_one_alone(
    batch: Any, requests: list[Request], quick_polls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(batch, requests[:3])
    with monkeypatch.context() as patch:
        patch.setattr(type(batch._loaded.model), "forward", failing_forward(batch, 1000))
        results = list(batch.generate(requests[:3]))

    assert {result.finish_reason for result in results} == {"error"}
    assert all("the memory is full" in (result.error or "") for result in results)
    assert answers(batch, requests[:3]) == expected


@pytest.mark.parametrize("losses", [1, 2])
def test_a_row_that_a_running_batch_loses_is_found_run_once_more_and_then_reported(
    losses: int, batch: Engine, requests: list[Request], quick_polls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    add, lost = ContinuousBatchingManager.add_request, iter(range(losses))

    def lose_one(self: Any, input_ids: list[int], request_id: str, **kwargs: Any) -> Any:
        if request_id == "1" and next(lost, None) is not None:
            return None
        return add(self, input_ids, request_id=request_id, **kwargs)

    monkeypatch.setattr(ContinuousBatchingManager, "add_request", lose_one)

    results = {result.request_id: result for result in batch.generate(requests[:3])}

    assert len(results) == 3
    assert results["r1"].error == (None if losses == 1 else "the batch ended without an answer")
    assert results["r0"].error is results["r2"].error is None


@pytest.mark.parametrize("times", [1, 2])
def test_a_batch_that_cannot_start_is_tried_once_more_and_then_reported(
    times: int, batch: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    start, failures = ContinuousBatchingManager.start, iter(range(times))

    def fail_first(self: Any) -> None:
        if next(failures, None) is not None:
            raise RuntimeError("the memory is full")
        start(self)

    monkeypatch.setattr(ContinuousBatchingManager, "start", fail_first)

    (result,) = batch.generate(requests[:1])

    assert result.error == (None if times == 1 else "continuous batching could not start: the memory is full")


def test_the_cache_of_a_batch_serves_the_next_one_unless_it_is_too_small(merged: Made, requests: list[Request]) -> None:
    engine: Any = open_engine("transformers", merged[0], device="cpu", options=EngineOptions(concurrent_requests=2))
    caches: list[Any] = []
    longer = Request("longer", requests[0].tokens, 300)
    for some in (requests[:3], requests[:2], requests[:1], [longer, requests[0]]):
        answers(engine, some)
        caches.append(engine._loaded.model._cached_continuous_batching_manager)

    assert caches[0] is caches[1] is caches[2]
    assert caches[2] is not caches[3]


def test_a_batch_that_nobody_reads_to_its_end_leaves_the_next_one_alone(batch: Engine, requests: list[Request]) -> None:
    expected = answers(batch, requests)
    results = iter(batch.generate(requests))
    next(results)
    with pytest.raises(EngineError, match="still at an earlier call"):
        next(iter(batch.generate(requests)))
    results.close()  # type: ignore[attr-defined]

    assert answers(batch, requests) == expected


def test_settings_that_greedy_decoding_would_ignore_are_refused(merged: Made, tmp_path: Path) -> None:
    model = Path(shutil.copytree(merged[0], tmp_path / "model"))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))

    with pytest.raises(EngineError, match=r"repetition_penalty=1\.3"):
        open_engine("reference", model, device="cpu")


def test_sampling_settings_of_a_model_do_not_make_decoding_random(merged: Made, requests: list[Request], tmp_path: Path) -> None:
    model = Path(shutil.copytree(merged[0], tmp_path / "model"))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "temperature": 5.0, "top_k": 50}))
    engine = open_engine("reference", model, device="cpu")

    first, second = (answers(engine, requests[:3]) for _ in range(2))

    assert first == second


def test_a_request_for_no_tokens_is_refused() -> None:
    with pytest.raises(EngineError, match="at least 1"):
        Request("none", (1,), 0)


def test_the_default_engine_of_a_cpu_is_named_in_its_capabilities(merged: Made) -> None:
    capabilities = open_engine("auto", merged[0], device="cpu").capabilities()

    assert (capabilities.engine, capabilities.dtype) == ("transformers", "float32")
    assert capabilities.device.startswith("cpu: ")
