"""The ONNX Runtime engine, on a really trained micro model: exact in fp32, and in 4 bits as good as its contract."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import newsjuice_pipelines.podcast.engines as engines
from newsjuice_pipelines.podcast.engines import Engine, EngineError, Request, Result, open_engine
from newsjuice_pipelines.podcast.engines.onnx_genai import PACKAGES, OnnxGenaiEngine
from newsjuice_pipelines.runtime.devices import Device

Made = tuple[Path, dict[str, Any]]
CPU = Device("cpu", "CPU", "float32")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"the extra cpu-engine is not installed: {', '.join(MISSING)} missing")
LIMITS = (60, 1, 60, 7, 30, 60)


@pytest.fixture(scope="module")
def requests(dataset: Path) -> list[Request]:
    import pandas as pd

    table = pd.read_parquet(dataset / "train.parquet").head(len(LIMITS))
    return [
        Request(chunk_id, list(prompt), limit)
        for (chunk_id, prompt), limit in zip(table[["chunk_id", "prompt"]].to_numpy(), LIMITS, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(merged: Made, requests: list[Request]) -> list[Result]:
    """What the reference engine answers."""
    engine = open_engine("reference", merged[0], "cpu")
    results = list(engine.generate(requests))
    engine.close()
    return results


@pytest.fixture(scope="module")
def quantised(merged: Made) -> Iterator[Engine]:
    engine = open_engine("onnx_genai", merged[0], "cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def quantised_results(quantised: Engine, requests: list[Request]) -> list[Result]:
    return list(quantised.generate(requests))


@pytest.fixture
def failing_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exporter that says what it was started with and fails; gives the folder that temporary files go to."""
    exporter = tmp_path / "python"
    exporter.write_text('#!/bin/sh\necho "reports off: $ORT_DISABLE_TELEMETRY"\necho "unknown layer" >&2\nexit 3\n')
    exporter.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(sys, "executable", str(exporter))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


@needs_extra
def test_an_export_in_fp32_gives_the_tokens_of_the_reference(
    merged: Made, requests: list[Request], expected: list[Result]
) -> None:
    engine = OnnxGenaiEngine(merged[0], CPU, "fp32")

    results = list(engine.generate(requests))
    engine.close()

    assert {"eos", "length"} == {result.finish_reason for result in expected}
    assert [(result.tokens, result.text, result.finish_reason) for result in results] == [
        (result.tokens, result.text, result.finish_reason) for result in expected
    ]


@needs_extra
def test_in_4_bits_every_request_is_answered_up_to_its_end_or_its_limit(
    requests: list[Request], quantised_results: list[Result]
) -> None:
    assert [result.request_id for result in quantised_results] == [request.request_id for request in requests]
    for request, result in zip(requests, quantised_results, strict=True):
        assert result.error is None
        assert 1 <= result.new_tokens <= request.max_new_tokens
        assert (result.finish_reason == "eos") or (result.new_tokens == request.max_new_tokens)


@needs_extra
def test_in_4_bits_the_weights_take_less_than_half_the_room(merged: Made, quantised: OnnxGenaiEngine) -> None:
    exported = (Path(quantised._folder.name) / "model" / "model.onnx.data").stat().st_size

    assert exported < 0.5 * sum(file.stat().st_size for file in merged[0].glob("*.safetensors"))


@needs_extra
def test_in_4_bits_the_model_still_ends_a_script_by_itself(quantised_results: list[Result]) -> None:
    ended = [result for result in quantised_results if result.finish_reason == "eos"]

    assert ended
    assert all("<|im_end|>" not in result.text for result in ended)


@needs_extra
def test_in_4_bits_the_scripts_begin_as_those_of_the_reference(expected: list[Result], quantised_results: list[Result]) -> None:
    assert [result.tokens[0] for result in quantised_results] == [result.tokens[0] for result in expected]


@needs_extra
def test_prompt_tokens_are_those_of_the_reference(expected: list[Result], quantised_results: list[Result]) -> None:
    assert [result.prompt_tokens for result in quantised_results] == [result.prompt_tokens for result in expected]


@needs_extra
def test_the_first_token_comes_before_the_last(quantised_results: list[Result]) -> None:
    for result in quantised_results:
        assert result.ttft_s is not None
        assert result.latency_s is not None
        assert 0 < result.ttft_s <= result.latency_s


@needs_extra
def test_greedy_decoding_gives_the_same_tokens_again(
    quantised: Engine, requests: list[Request], quantised_results: list[Result]
) -> None:
    assert [result.tokens for result in quantised.generate(requests)] == [result.tokens for result in quantised_results]


@needs_extra
def test_a_prompt_beyond_the_context_is_an_error_and_its_neighbour_is_answered(
    quantised: Engine, requests: list[Request]
) -> None:
    too_long = Request("long", [{"role": "user", "content": "word " * 600}], 5)

    refused, answered = quantised.generate([too_long, requests[0]])

    assert refused.finish_reason == "error"
    assert "exceed the context of 512" in (refused.error or "")
    assert answered.error is None


@needs_extra
def test_a_failure_of_the_runtime_is_the_result_of_its_request(
    quantised: OnnxGenaiEngine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised, "_new_generator", lambda max_length: OnnxGenaiEngine._new_generator(quantised, -1))

    (result,) = quantised.generate(requests[:1])

    assert result.finish_reason == "error"
    assert "ONNX Runtime failed after 0 tokens" in (result.error or "")


@needs_extra
def test_the_engine_uses_the_threads_of_pytorch(quantised: OnnxGenaiEngine) -> None:
    import torch

    config = json.loads((Path(quantised._folder.name) / "model" / "genai_config.json").read_text())

    assert config["model"]["decoder"]["session_options"]["intra_op_num_threads"] == torch.get_num_threads()


@needs_extra
def test_the_capabilities_name_the_number_format(quantised: Engine) -> None:
    capabilities = quantised.capabilities()

    assert (capabilities.engine, capabilities.dtype, capabilities.concurrent_requests) == ("onnx_genai", "int4", 1)
    assert capabilities.device.startswith("cpu: ")


@needs_extra
def test_closing_removes_the_exported_files(merged: Made, monkeypatch: pytest.MonkeyPatch, quantised: OnnxGenaiEngine) -> None:
    exported = Path(quantised._folder.name) / "model"
    monkeypatch.setattr(
        "newsjuice_pipelines.podcast.engines.onnx_genai._export",
        lambda model, out, precision: shutil.copytree(exported, out),
    )
    engine = OnnxGenaiEngine(merged[0], CPU)
    folder = Path(engine._folder.name)
    assert folder.is_dir()

    engine.close()

    assert not folder.exists()


@needs_extra
def test_a_failed_export_shows_the_end_of_its_output_and_leaves_no_files(merged: Made, failing_exporter: Path) -> None:
    with pytest.raises(EngineError, match=r"in int4 \(exit code 3\)[^$]*unknown layer$"):
        open_engine("onnx_genai", merged[0], "cpu")

    assert list(failing_exporter.iterdir()) == []


@needs_extra
def test_usage_reports_to_the_vendor_are_off(merged: Made, failing_exporter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)

    with pytest.raises(EngineError, match="reports off: 1"):
        open_engine("onnx_genai", merged[0], "cpu")


@needs_extra
def test_settings_that_greedy_decoding_would_ignore_are_refused(merged: Made, tmp_path: Path) -> None:
    model = Path(shutil.copytree(merged[0], tmp_path / "model"))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))

    with pytest.raises(EngineError, match=r"repetition_penalty=1\.3"):
        open_engine("onnx_genai", model, "cpu")


@needs_extra
def test_a_machine_with_a_gpu_runs_it_on_the_cpu(merged: Made, failing_exporter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "best_device", lambda: Device("cuda", "a GPU", "bfloat16"))

    with pytest.raises(EngineError, match="could not be exported"):
        open_engine("onnx_genai", merged[0])


def test_asking_for_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "best_device", lambda: Device("cuda", "a GPU", "bfloat16"))

    with pytest.raises(EngineError, match="runs on the CPU, not on cuda"):
        open_engine("onnx_genai", tmp_path, "cuda")


def test_a_number_of_concurrent_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="onnx_genai engine runs one request at a time"):
        open_engine("onnx_genai", tmp_path, "cpu", concurrent_requests=4)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(EngineError, match=r"pip install 'newsjuice-pipelines\[cpu-engine\]'"):
        open_engine("onnx_genai", tmp_path, "cpu")
