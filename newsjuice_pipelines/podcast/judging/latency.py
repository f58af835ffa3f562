"""How long a script takes, where the time goes, and what it costs: timing an engine, and the numbers of the latency report.

The page and its plots are in `latency_page.py`, hourly prices in `prices.py`.
"""

from __future__ import annotations

import csv
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.engines import Engine, EngineError, EngineOptions, Request
from newsjuice_pipelines.podcast.judging import latency_page
from newsjuice_pipelines.podcast.judging.prices import AS_OF, find_machine
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt
from newsjuice_pipelines.runtime.devices import peak_memory_mib, reset_peak_memory
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.latency")

TIMINGS_FILE = "timings.csv"
CPU_BATCHES, GPU_BATCHES = (1, 8), (1, 8, 32, 128)
WARM_UP_REQUESTS, WARM_UP_TOKENS = 8, 4
# Below these numbers of timings a percentile is little more than the slowest one, and is not given.
TIMINGS_FOR_P95, TIMINGS_FOR_P99 = 20, 100
LENGTH_GROUPS = 3
TIMED = ("request_id", "prompt_tokens", "new_tokens", "ttft_s", "latency_s", "finish_reason", "error")
FREE_TEACHERS = ("extractive",)

Timing = dict[str, Any]


class LatencyError(ValueError):
    """Nothing can be timed with what was given."""


@dataclass(frozen=True)
class LatencyConfig:
    """What is timed, and on which machine it is priced."""

    prompts: int = 30
    """Test articles that are timed one at a time. The 95th percentile needs 20 of them, the 99th 100."""
    max_new_tokens: int = 400
    """Tokens after which a script is cut."""
    batches: tuple[int, ...] = ()
    """Numbers of requests at once that are timed. Empty: 1 and 8 on a CPU; 1, 8, 32 and 128 elsewhere."""
    rounds: int = 4
    """Requests for each place of a batch. The more, the less the places count that are empty at the end; 4 give a batch of 8
    its 95th percentile and one of 32 its 99th."""
    prompt_lookup_tokens: int = 0
    """Tokens guessed ahead from the article where one request runs at a time; 0 switches it off."""
    machine: str | None = None
    """The machine of the dated price table that this one is like. Empty, and without `hourly_usd`: no cost."""
    hourly_usd: float | None = None
    """Price of this machine in US dollars an hour, in place of the table's."""

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise LatencyError(f"{name} is {getattr(self, name)}: give at least 1.")
        if any(size < 1 for size in self.batches):
            raise LatencyError(f"batches is {list(self.batches)}: each must be at least 1.")
        if self.prompt_lookup_tokens < 0:
            raise LatencyError(f"prompt_lookup_tokens is {self.prompt_lookup_tokens}: give at least 1, or 0 to switch it off.")
        if self.hourly_usd is not None and not 0 < self.hourly_usd < float("inf"):
            raise LatencyError(f"hourly_usd is {self.hourly_usd}: give the price of an hour in US dollars.")
        if self.machine is not None and self.hourly_usd is None:
            find_machine(self.machine)


def measure_latency(
    dataset: Path, tokenizer: Any, open: Callable[[EngineOptions], Engine], config: LatencyConfig = LatencyConfig()
) -> dict[str, Any]:
    """Time test prompts one at a time, then in batches, each after a warm-up that is not counted.

    The prompts are spread evenly over the lengths that the test split has; a batch larger than the split repeats some.

    Args:
        dataset: folder of the student data set.
        tokenizer: the model's own.
        open: opens the engine with these options; called once for the single stream and once for each batch size above 1.
        config: what to time.

    Returns:
        JSON values: `engine` (its capabilities), `single_stream` and `batches`, each with the timing of every request,
        `wall_s` from the first request to the last answer, and `memory_mib` at its peak. A batch that the engine cannot
        run has no timings and says `why`.

    Raises:
        LatencyError: no test rows, or an engine that cannot run one request at a time.
        EngineError: the engine cannot be opened.
    """
    prompts = _encoded(dataset, tokenizer)
    engine = _open_single(open, config.prompt_lookup_tokens)
    try:
        capabilities = engine.capabilities()
        alone = _timed(engine, _requests(prompts, min(config.prompts, len(prompts)), config.max_new_tokens), capabilities.device)
    finally:
        engine.close()
    sizes = config.batches or (CPU_BATCHES if _device_type(capabilities.device) == "cpu" else GPU_BATCHES)
    batches = []
    for size in sorted(set(sizes)):
        if size == 1:
            batches.append({"batch": 1, "concurrent_requests": 1, "why": None, **alone})
        else:
            requests = _requests(prompts, size * config.rounds, config.max_new_tokens)
            batches.append({"batch": size, **_timed_batch(open, size, requests)})
    return {
        "engine": asdict(capabilities),
        "max_new_tokens": config.max_new_tokens,
        "prompt_lookup_tokens": config.prompt_lookup_tokens,
        "single_stream": alone,
        "batches": batches,
    }


def latency_report(
    measured: Mapping[str, Any],
    generation: Mapping[str, pd.DataFrame | None],
    teacher: pd.DataFrame,
    out: Path,
    config: LatencyConfig = LatencyConfig(),
) -> dict[str, Any]:
    """Write the latency report and return its numbers, without the single timings.

    What was not measured is None. Seconds are of whole scripts unless `ttft` (to the first token) or `inter_token` is said.

    Args:
        measured: from `measure_latency`, for the tuned model.
        generation: the scripts of `student` and `base`, as `generate_scripts` gives them; None where there are none.
        teacher: the teacher's calls: `latency_s`, `cost_usd`, `model` and `mode` (`online` or `batch`).
        out: an existing empty directory.
        config: prices the scripts.
    """
    single = _single_stream(measured["single_stream"])
    batches = [_batch(entry) for entry in measured["batches"]]
    taught = _teacher(teacher)
    results: dict[str, Any] = {
        "engine": dict(measured["engine"]),
        "max_new_tokens": measured["max_new_tokens"],
        "prompt_lookup_tokens": measured["prompt_lookup_tokens"],
        "single_stream": single,
        "by_length": _by_length(measured["single_stream"]["timings"]),
        "batches": batches,
        "generation": {name: None if scripts is None else _generation(scripts) for name, scripts in generation.items()},
        "teacher": taught,
        "cost": _cost(config, measured["engine"]["device"], batches, taught["usd_per_1000"]),
        "student_over_teacher": _ratio(single["latency_p50_s"], taught["latency_p50_s"]),
    }
    results["answer"] = where_the_time_goes(single)
    write_json(out / "results.json", results)
    _write_timings(measured, out / TIMINGS_FILE)
    latency_page.write_page(results, out)
    return results


def where_the_time_goes(single: Mapping[str, Any]) -> str:
    """One sentence: whether prefill, which the original experiment blamed, takes the time of a script."""
    if single["prefill_share"] is None:
        return "Where the time goes was not measured: no script was timed alone with its first token."
    prefill, decode = 100 * single["prefill_share"], 100 * single["decode_share"]
    found = (
        f"prefill takes {prefill:.1f} % of the time of a script and decoding {decode:.1f} % "
        f"({single['measured']} scripts, one at a time)"
    )
    if decode > prefill:
        return f"The original blamed prefill, but {found}: the time goes into writing tokens, not into reading the article."
    return f"The original blamed prefill, and here it is right: {found}, so shorter prompts or a cached prefix help most."


def percentiles(seconds: Sequence[float | None], name: str) -> dict[str, float | None]:
    """`<name>_p50_s`, `<name>_p95_s` and `<name>_p99_s` of the values that are known; None where too few are."""
    import numpy as np

    known = np.asarray([value for value in seconds if value is not None and value == value], dtype=float)
    needed = {50: 1, 95: TIMINGS_FOR_P95, 99: TIMINGS_FOR_P99}
    return {
        f"{name}_p{percent}_s": float(np.percentile(known, percent)) if len(known) >= least else None
        for percent, least in needed.items()
    }


def _encoded(dataset: Path, tokenizer: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Ids and tokens of the prompts of the test split."""
    import pandas as pd

    table = pd.read_parquet(dataset / "test.parquet", columns=["chunk_id", "prompt"])
    if table.empty:
        raise LatencyError("the test split has no rows to time: make the student data set again.")
    return [(str(chunk_id), tuple(encode_prompt(tokenizer, list(prompt)))) for chunk_id, prompt in table.to_numpy()]


def _requests(prompts: Sequence[tuple[str, tuple[int, ...]]], count: int, max_new_tokens: int) -> list[Request]:
    """`count` requests: as many of the prompts as there are, spread evenly over their lengths, repeated where they are fewer."""
    taken = min(count, len(prompts))
    by_length = sorted(range(len(prompts)), key=lambda place: (len(prompts[place][1]), place))
    # In the order of the data set: a run by rising length would mistake a machine that slows down for long prompts.
    places = sorted(by_length[number * len(prompts) // taken] for number in range(taken))
    chosen = [prompts[place] for place in places]
    return [
        Request(f"{chosen[number % taken][0]}#{number // taken}", chosen[number % taken][1], max_new_tokens)
        for number in range(count)
    ]


def _open_single(open: Callable[[EngineOptions], Engine], prompt_lookup_tokens: int) -> Engine:
    try:
        return open(EngineOptions(concurrent_requests=1, prompt_lookup_tokens=prompt_lookup_tokens))
    except EngineError:  # an engine that never runs more than one refuses the option
        engine = open(EngineOptions(prompt_lookup_tokens=prompt_lookup_tokens))
    together = engine.capabilities().concurrent_requests
    if together != 1:
        engine.close()
        raise LatencyError(f"the engine runs {together} requests at once and cannot time one alone: choose another engine.")
    return engine


def _timed_batch(open: Callable[[EngineOptions], Engine], size: int, requests: Sequence[Request]) -> dict[str, Any]:
    try:
        engine = open(EngineOptions(concurrent_requests=size))
    except EngineError as error:
        logger.warning("batches of %d are not timed: %s", size, error)
        return {"concurrent_requests": None, "why": str(error), "timings": [], "wall_s": None, "memory_mib": None}
    try:
        capabilities = engine.capabilities()
        return {
            "concurrent_requests": capabilities.concurrent_requests,
            "why": None,
            **_timed(engine, requests, capabilities.device),
        }
    finally:
        engine.close()


def _timed(engine: Engine, requests: Sequence[Request], device: str) -> dict[str, Any]:
    kind = _device_type(device)
    reset_peak_memory(kind)
    # Backwards, so that an engine which caches the beginnings of prompts has not read these when they are timed.
    backwards = [Request(f"warm-up {number}", request.tokens[::-1], WARM_UP_TOKENS) for number, request in enumerate(requests)]
    for _ in engine.generate(backwards[:WARM_UP_REQUESTS]):
        pass
    progress = Progress(f"timing {engine.capabilities().concurrent_requests} at once", len(requests), "scripts", per_minute=True)
    timings = []
    started = time.perf_counter()
    for result in engine.generate(requests):
        timings.append({name: getattr(result, name) for name in TIMED})
        progress.advance()
    wall_s = time.perf_counter() - started
    memory_mib = peak_memory_mib(kind) if kind in ("cpu", "cuda") else None  # a server's memory is not ours to see
    return {"timings": timings, "wall_s": wall_s, "memory_mib": memory_mib}


def _device_type(device: str) -> str:
    return device.partition(":")[0]


def _answered(timings: Sequence[Timing]) -> list[Timing]:
    return [timing for timing in timings if timing["finish_reason"] != "error"]


def _spread(timings: Sequence[Timing]) -> dict[str, Any]:
    """Counts, percentiles and mean lengths of some timings."""
    answered = _answered(timings)
    known = [timing for timing in answered if timing["latency_s"] is not None]
    between = [
        (timing["latency_s"] - timing["ttft_s"]) / (timing["new_tokens"] - 1)
        for timing in known
        if timing["ttft_s"] is not None and timing["new_tokens"] > 1
    ]
    return {
        "scripts": len(timings),
        "measured": len(known),
        "errors": len(timings) - len(answered),
        **percentiles([timing["latency_s"] for timing in known], "latency"),
        **percentiles([timing["ttft_s"] for timing in known], "ttft"),
        **percentiles(between, "inter_token"),
        "prompt_tokens_mean": _mean([timing["prompt_tokens"] for timing in answered]),
        "new_tokens_mean": _mean([timing["new_tokens"] for timing in answered]),
        "finish_reasons": dict(Counter(timing["finish_reason"] for timing in timings)),
    }


def _single_stream(measured: Mapping[str, Any]) -> dict[str, Any]:
    timed = [timing for timing in _answered(measured["timings"]) if None not in (timing["ttft_s"], timing["latency_s"])]
    prefill_s = sum(timing["ttft_s"] for timing in timed)
    total_s = sum(timing["latency_s"] for timing in timed)
    share = _ratio(prefill_s, total_s)
    return {
        **_spread(measured["timings"]),
        "prefill_share": share,
        "decode_share": None if share is None else 1 - share,
        "prefill_tokens_per_s": _ratio(sum(timing["prompt_tokens"] for timing in timed), prefill_s),
        "decode_tokens_per_s": _ratio(sum(timing["new_tokens"] - 1 for timing in timed), total_s - prefill_s),
        "tokens_per_s": _ratio(sum(timing["new_tokens"] for timing in timed), total_s),
        "memory_mib": measured["memory_mib"],
    }


def _batch(measured: Mapping[str, Any]) -> dict[str, Any]:
    answered = _answered(measured["timings"])
    errors = [timing["error"] for timing in measured["timings"] if timing["finish_reason"] == "error"]
    wall_s = measured["wall_s"] if answered else None
    return {
        "batch": measured["batch"],
        "concurrent_requests": measured["concurrent_requests"],
        "repeated": len(measured["timings"]) - len({timing["request_id"].rpartition("#")[0] for timing in measured["timings"]}),
        "why": measured["why"] or (f"{len(errors)} requests failed; the first says: {errors[0]}" if errors else None),
        **_spread(measured["timings"]),
        "wall_s": wall_s,
        "tokens_per_s": _ratio(sum(timing["new_tokens"] for timing in answered), wall_s),
        "scripts_per_hour": _ratio(3600 * len(answered), wall_s),
        "memory_mib": measured["memory_mib"],
    }


def _by_length(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """The single stream in groups of equal size by the length of the prompt; prompts of one length stay together."""
    ordered = sorted(_answered(timings), key=lambda timing: timing["prompt_tokens"])
    if len(ordered) < LENGTH_GROUPS:
        return []
    ends = [len(ordered) * part // LENGTH_GROUPS for part in range(1, LENGTH_GROUPS + 1)]
    limits = sorted({ordered[end - 1]["prompt_tokens"] for end in ends})
    groups = []
    for low, high in zip([0, *limits], limits, strict=False):
        group = [timing for timing in ordered if low < timing["prompt_tokens"] <= high]
        lengths = {"prompt_tokens_least": group[0]["prompt_tokens"], "prompt_tokens_most": group[-1]["prompt_tokens"]}
        groups.append({**lengths, **_spread(group)})
    return groups


def _generation(scripts: pd.DataFrame) -> dict[str, Any]:
    records = scripts[[name for name in TIMED if name in scripts]].astype(object).to_dict("records")
    rows = [{str(name): None if value != value else value for name, value in row.items()} for row in records]
    return {**_spread(rows), "engine": ", ".join(sorted(set(scripts["engine"])))}


def _teacher(calls: pd.DataFrame) -> dict[str, Any]:
    """The teacher's recorded calls. Answers of a batch job have no latency of their own, and are counted apart."""
    online = calls[calls["mode"] != "batch"]
    seconds = [float(value) for value in online["latency_s"].dropna()]
    costs = [float(value) for value in calls["cost_usd"].dropna()]
    models = sorted({str(model) for model in calls["model"]})
    mean_usd = _mean(costs)
    return {
        "models": models,
        "hosted": bool(set(models) - set(FREE_TEACHERS)),
        "calls": len(calls),
        "batch_calls": len(calls) - len(online),
        "measured": len(seconds),
        **percentiles(seconds, "latency"),
        "calls_with_cost": len(costs),
        "usd_per_1000": None if mean_usd is None else 1000 * mean_usd,
    }


def _cost(
    config: LatencyConfig, device: str, batches: Sequence[Mapping[str, Any]], teacher_usd_per_1000: float | None
) -> dict[str, Any]:
    """US dollars per 1,000 scripts at the batch size that writes most of them, on one machine that is never idle."""
    listed = None if config.machine is None or config.hourly_usd is not None else find_machine(config.machine)
    hourly_usd = config.hourly_usd if listed is None else listed.hourly_usd
    best = max(
        (entry for entry in batches if entry["scripts_per_hour"]), key=lambda entry: entry["scripts_per_hour"], default=None
    )
    why = None
    if hourly_usd is None:
        why = "neither a machine of the price table nor an hourly price is configured"
    elif best is None:
        why = "no batch was timed"
    elif listed is not None and _device_type(device) == ("cpu" if listed.accelerator else "cuda"):
        other = "has a GPU" if listed.accelerator else "has no GPU"
        why = f"the machine {listed.name} {other}, but the scripts were timed on {device}"
    return {
        "machine": config.machine,
        "hourly_usd": hourly_usd,
        "price_source": ("configured" if listed is None else listed.source) if hourly_usd is not None else None,
        "price_seen_on": None if listed is None else listed.seen_on,
        "price_table": AS_OF,
        "batch": best["batch"] if best else None,
        "scripts_per_hour": best["scripts_per_hour"] if best else None,
        "student_usd_per_1000": 1000 * hourly_usd / best["scripts_per_hour"] if why is None and hourly_usd and best else None,
        "teacher_usd_per_1000": teacher_usd_per_1000,
        "why": why,
    }


def _write_timings(measured: Mapping[str, Any], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ("batch", *TIMED), lineterminator="\n")
        writer.writeheader()
        for name, group in [
            ("single stream", measured["single_stream"]),
            *((entry["batch"], entry) for entry in measured["batches"]),
        ]:
            if name != 1:  # the batch of one is the single stream
                writer.writerows({"batch": name, **timing} for timing in group["timings"])


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(values) / len(values)) if values else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
