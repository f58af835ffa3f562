"""What one process measures of one candidate for the CPU engine: the scripts of the scripted model, alone and together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.inference import HALF_COPIED
from newsjuice_pipelines.benchmarks.inference_runs import peak_memory

Ids = Sequence[int]
# Prompts and how many new tokens at most to their answers, and seconds to the first token (None where it is not told).
Writer = Callable[[Sequence[Ids], int], tuple[list[list[int]], float | None]]
CONTEXT_TOKENS = 1024


def measure_candidate(module: str, precision: str, home: Path, batch: int) -> dict[str, Any]:
    """Load one engine and time it.

    Args:
        module: import name of the engine.
        precision: `int8` or `int4`.
        home: folder that `inference.prepare` filled.
        batch: how many scripts are written together.

    Returns:
        `load_s`, `prefill_tokens_per_s`, `decode_tokens_per_s` and `script_s` of one script alone, `batch_tokens_per_s`,
        `as_scripted` (share of correct scripts), `peak_memory_mib`; None where the engine has no such thing.
    """
    scripts = json.loads((home / "scripts.json").read_text(encoding="utf-8"))[HALF_COPIED:][:batch]
    prompts, answers = [prompt for prompt, _ in scripts], [answer for _, answer in scripts]
    prepared = _exported(home, precision) if module == "onnxruntime_genai" else next((home / precision).glob("*.gguf"))
    opener = {"openvino_genai": _openvino, "onnxruntime_genai": _onnxruntime, "llama_cpp": _llama_cpp}[module]
    end_id = answers[0][-1]
    with peak_memory(gpu=False) as peak:
        started = time.perf_counter()
        write, together = opener(prepared, home, precision, end_id)
        load_s = time.perf_counter() - started
        write(prompts[:1], 4)
        started = time.perf_counter()
        alone, ttft_s = write(prompts[1:2], len(answers[1]))
        script_s = time.perf_counter() - started
        assert ttft_s is not None, "one script alone has a time to its first token"
        if together is not None:
            together(prompts, 4)  # whatever has to be made for a batch is made now
        started = time.perf_counter()
        batched = together(prompts, len(answers[0]))[0] if together is not None else None
        batch_s = time.perf_counter() - started
    correct = [
        alone[0] == answers[1],
        *([mine == theirs for mine, theirs in zip(batched, answers, strict=True)] if batched else []),
    ]
    return {
        "load_s": load_s,
        "prefill_tokens_per_s": len(prompts[1]) / ttft_s,
        "decode_tokens_per_s": (len(alone[0]) - 1) / (script_s - ttft_s),
        "script_s": script_s,
        "batch_tokens_per_s": sum(map(len, batched)) / batch_s if batched else None,
        "as_scripted": sum(correct) / len(correct),
        "peak_memory_mib": peak[0],
    }


def _openvino(file: Path, home: Path, precision: str, end_id: int) -> tuple[Writer, Writer | None]:
    from newsjuice_pipelines.podcast.engines import Engine, EngineOptions, Request, open_engine

    def opened(at_once: int) -> Engine:
        options = EngineOptions(concurrent_requests=at_once)
        return open_engine("openvino", home / "model", quantised=file.parent, device="cpu", options=options)

    def answers(engine: Engine, prompts: Sequence[Ids], limit: int) -> tuple[list[list[int]], float | None]:
        requests = [Request(str(number), tuple(prompt), limit) for number, prompt in enumerate(prompts)]
        results = {int(result.request_id): result for result in engine.generate(requests)}
        return [list(results[number].tokens) for number in range(len(prompts))], results[0].ttft_s

    alone = opened(1)

    several: list[Engine] = []

    def together(prompts: Sequence[Ids], limit: int) -> tuple[list[list[int]], float | None]:
        if not several:
            alone.close()  # one of them in memory is enough
            several.append(opened(len(prompts)))
        return answers(several[0], prompts, limit)

    return partial(answers, alone), together


def _onnxruntime(folder: Path, home: Path, precision: str, end_id: int) -> tuple[Writer, Writer | None]:
    import numpy as np
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))

    def write(prompts: Sequence[Ids], limit: int) -> tuple[list[list[int]], float | None]:
        parameters = genai.GeneratorParams(model)
        length = len(prompts[0]) + limit
        parameters.set_search_options(do_sample=False, num_beams=1, batch_size=len(prompts), max_length=length)
        started = time.perf_counter()
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(prompts if len(prompts) > 1 else prompts[0], dtype=np.int32))
        ttft_s = None
        while not generator.is_done():
            generator.generate_next_token()
            ttft_s = time.perf_counter() - started if ttft_s is None else ttft_s
        rows = [list(map(int, generator.get_sequence(row)[len(prompt) :])) for row, prompt in enumerate(prompts)]
        # Of a single script, the end token that stopped it is not among its tokens.
        rows = [row if end_id in row or len(row) >= limit else [*row, end_id] for row in rows]
        return [row[: row.index(end_id) + 1] if end_id in row else row for row in rows], ttft_s

    return write, write


def _llama_cpp(file: Path, home: Path, precision: str, end_id: int) -> tuple[Writer, Writer | None]:
    import torch
    from llama_cpp import Llama

    threads = torch.get_num_threads()
    model = Llama(
        str(file), n_ctx=CONTEXT_TOKENS, n_batch=CONTEXT_TOKENS, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def write(prompts: Sequence[Ids], limit: int) -> tuple[list[list[int]], float | None]:
        model.reset()
        started, ttft_s = time.perf_counter(), None
        tokens: list[int] = []
        for token in model.generate(list(prompts[0]), temp=0.0, top_k=1, repeat_penalty=1.0):
            ttft_s = time.perf_counter() - started if ttft_s is None else ttft_s
            tokens.append(token)
            if token == end_id or len(tokens) >= limit:
                break
        return [tokens], ttft_s

    return write, None


def _exported(home: Path, precision: str) -> Path:
    """The ONNX form of the model, written once."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    out = home / f"onnx-{precision}"
    if out.is_dir():
        return out
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(home / "model"),
        "-o",
        str(out),
        "-p",
        precision,
    ]
    command += ["-e", "cpu", "-c", str(home / "onnx-cache"), "--extra_options", "int4_accuracy_level=4"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=home)
    import torch

    file = out / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = torch.get_num_threads()  # its default is one
    file.write_text(json.dumps(config), encoding="utf-8")
    return out
