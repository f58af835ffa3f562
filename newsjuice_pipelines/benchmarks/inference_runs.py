"""What one process of the inference benchmark measures: a few scripts of the scripted model, written in one way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.scripted_model import Script

WARM_UP_TOKENS = 4
MEMORY_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Run:
    """One way to write scripts."""

    engine: str
    """`original` is a plain bf16 `generate`; the others are engines of this project."""
    model: Path
    quantised: Path | None
    scripts: Path
    """JSON list of `[prompt ids, answer ids]`."""
    first: int
    """Where this run's scripts start in the list."""
    count: int
    """How many scripts are written."""
    at_once: int
    lookup_tokens: int = 0
    prefix_cache: bool = False
    drop_prompt_tokens: int = 0
    """Tokens left out at the start of each prompt, as a shorter instruction would."""
    gpu: bool = False


def measure(run: Run) -> dict[str, Any]:
    """Write the scripts and time them; loading and a short warm-up are not counted.

    Returns:
        `wall_s`, `new_tokens`, `ttft_s` (of each request), `latency_s` (likewise), `as_scripted` (share of the scripts that
        came out token by token), `peak_memory_mib` (of this process, loading included).
    """
    listed = json.loads(run.scripts.read_text(encoding="utf-8"))
    scripts = [Script(tuple(prompt), tuple(answer)) for prompt, answer in listed]
    last = scripts[run.first :]
    warm, todo = scripts[run.first - 1], [last[number % len(last)] for number in range(run.count)]  # repeated where too few
    prompts = [script.prompt[run.drop_prompt_tokens :] for script in todo]
    limits = [len(script.answer) for script in todo]
    with peak_memory(run.gpu) as peak:
        write, close = _original(run) if run.engine == "original" else _engine(run)
        list(write([warm.prompt[run.drop_prompt_tokens :]], [WARM_UP_TOKENS]))
        started = time.perf_counter()
        answers = sorted(write(prompts, limits))
        wall_s = time.perf_counter() - started
        close()
    return {
        "wall_s": wall_s,
        "new_tokens": sum(len(tokens) for _, tokens, _, _ in answers),
        "ttft_s": [ttft_s for _, _, ttft_s, _ in answers],
        "latency_s": [latency_s for _, _, _, latency_s in answers],
        "as_scripted": sum(tokens == script.answer for (_, tokens, _, _), script in zip(answers, todo, strict=True)) / len(todo),
        "peak_memory_mib": peak[0],
    }


def _engine(run: Run) -> tuple[Any, Any]:
    """Writer and closer of an engine of this project."""
    from newsjuice_pipelines.podcast.engines import EngineOptions, Request, open_engine

    options = EngineOptions(
        concurrent_requests=run.at_once, prompt_lookup_tokens=run.lookup_tokens, prefix_cache=run.prefix_cache
    )
    engine = open_engine(run.engine, run.model, quantised=run.quantised, device="cuda" if run.gpu else "cpu", options=options)

    def write(prompts: Sequence[tuple[int, ...]], limits: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        requests = [
            Request(str(number), prompt, limit) for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
        ]
        for result in engine.generate(requests):
            if result.error is not None:
                raise RuntimeError(f"{run.engine}: {result.error}")
            yield int(result.request_id), result.tokens, result.ttft_s, result.latency_s

    return write, engine.close


def _original(run: Run) -> tuple[Any, Any]:
    """Writer and closer of the original loop: `generate` on bf16 weights, `at_once` prompts of one length together."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.bfloat16).to("cuda" if run.gpu else "cpu")

    def write(prompts: Sequence[tuple[int, ...]], limits: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(prompts), run.at_once):
            ids = torch.tensor(prompts[start : start + run.at_once], device=model.device)
            clock = _TokenClock()
            begun = time.perf_counter()
            with torch.inference_mode():
                whole = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max(limits),
                    do_sample=False,
                    streamer=clock if len(ids) == 1 else None,
                )
            new = whole[:, ids.shape[1] :].tolist()
            latency_s = time.perf_counter() - begun
            for place, tokens in enumerate(new):
                ttft_s = None if clock.first_at is None else clock.first_at - begun
                yield start + place, tuple(tokens), ttft_s, latency_s

    return write, lambda: None


class _TokenClock:
    """A streamer that notes when the first new token was there; `generate` hands it the prompt first."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen and self.first_at is None:
            self.first_at = time.perf_counter()
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing to close."""


@contextmanager
def peak_memory(gpu: bool) -> Iterator[list[float]]:
    """The most memory held within the block, MiB: allocated on the GPU, or resident memory of this process, sampled."""
    import psutil

    found = [0.0]
    done = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not done.wait(MEMORY_INTERVAL_S):
            found[0] = max(found[0], process.memory_info().rss / 2**20)

    if gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
        yield found
        found[0] = torch.cuda.max_memory_allocated() / 2**20
        return
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
