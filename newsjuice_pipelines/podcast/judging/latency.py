"""How long a script takes, where the time goes, and what it costs: timing an engine, and the numbers of the latency report.

The page and its plots are in `latency_page.py`, prices and costs in `prices.py`.
"""

from __future__ import annotations

import csv
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.engines import Capabilities, Engine, EngineError, EngineOptions, Request
from newsjuice_pipelines.podcast.judging import latency_page
from newsjuice_pipelines.podcast.judging.prices import cost_of_scripts, find_machine
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt
from newsjuice_pipelines.runtime.devices import peak_memory_mib, reset_peak_memory
from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.reports import write_json

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("newsjuice.latency")

TIMINGS_FILE = "timings.csv"
CPU_BATCHES, GPU_BATCHES = (1, 8), (1, 8, 32, 128)
WARM_UP_TOKENS = 4
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

    The prompts are spread evenly over the lengths that the test split has. Batches ask prompts again that were asked one at a
    time, or within them when the split has too few.

    Args:
        dataset: folder of the student data set.
        tokenizer: the model's own.
        open: opens the engine with these options; called once for the single stream and once for each batch size above 1.
        config: what to time.

    Returns:
        JSON values: `engine` (its capabilities), `single_stream` and `batches`, each with the timing of every request,
        `wall_s` from the first request to the last answer, `memory_mib` at its peak, and `repeated`: how many of its prompts
        had been asked before. A batch that the engine cannot run has no timings and says `why`.

    Raises:
        LatencyError: no test rows, or an engine that cannot run one request at a time.
        EngineError: the engine cannot be opened.
    """
    prompts = _encoded(dataset, tokenizer)
    asked: set[tuple[int, ...]] = set()
    engine = _open_single(open, config.prompt_lookup_tokens)
    try:
        capabilities = engine.capabilities()
        alone = _timed(engine, _requests(prompts, min(config.prompts, len(prompts)), config.max_new_tokens), asked)
    finally:
        engine.close()
    sizes = config.batches or (CPU_BATCHES if _device_type(capabilities.device) == "cpu" else GPU_BATCHES)
    batches = []
    for size in sorted(set(sizes)):
        if size == 1:
            batches.append({"batch": 1, "concurrent_requests": 1, "why": None, **alone})
        else:
            requests = _requests(prompts, size * config.rounds, config.max_new_tokens)
            batches.append({"batch": size, **_timed_batch(open, size, requests, asked)})
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
        teacher: the teacher's calls: `latency_s`, `cost_usd`, `model`, `mode` (`online` or `batch`) and `status` (`ok`: a
            script that can be used).
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
        "cost": cost_of_scripts(config.machine, config.hourly_usd, measured["engine"]["device"], batches, taught["usd_per_1000"]),
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
        return "Where the time goes was not measured: no script of two tokens or more was timed alone with its first token."
    prefill, decode = 100 * single["prefill_share"], 100 * single["decode_share"]
    found = (
        f"prefill takes {prefill:.1f} % of the time of a script and decoding {decode:.1f} % "
        f"({single['decoded']} scripts of two tokens or more, one at a time)"
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


def _timed_batch(
    open: Callable[[EngineOptions], Engine], size: int, requests: Sequence[Request], asked: set[tuple[int, ...]]
) -> dict[str, Any]:
    try:
        engine = open(EngineOptions(concurrent_requests=size))
    except EngineError as error:
        logger.warning("batches of %d are not timed: %s", size, error)
        nothing = {"timings": [], "repeated": 0, "wall_s": None, "memory_mib": None}
        return {"concurrent_requests": None, "why": str(error), **nothing}
    try:
        together = engine.capabilities().concurrent_requests
        return {"concurrent_requests": together, "why": None, **_timed(engine, requests, asked)}
    finally:
        engine.close()


def _timed(engine: Engine, requests: Sequence[Request], asked: set[tuple[int, ...]]) -> dict[str, Any]:
    """The timings of `requests` after a warm-up; the prompts of both are added to those `asked` so far."""
    can = engine.capabilities()
    warm_up = _warm_up(requests, can)
    for _ in engine.generate(warm_up):
        pass
    kind = _device_type(can.device)
    reset_peak_memory(kind)
    asked.update(request.tokens for request in warm_up)
    repeated = len(requests) - len({request.tokens for request in requests} - asked)
    asked.update(request.tokens for request in requests)
    progress = Progress(f"timing {can.concurrent_requests} at once", len(requests), "scripts", per_minute=True)
    timings = []
    started = time.perf_counter()
    for result in engine.generate(requests):
        timings.append({name: getattr(result, name) for name in TIMED})
        progress.advance()
    wall_s = time.perf_counter() - started
    memory_mib = peak_memory_mib(kind) if kind in ("cpu", "cuda") else None  # a server's memory is not ours to see
    return {"timings": timings, "repeated": repeated, "wall_s": wall_s, "memory_mib": memory_mib}


def _warm_up(requests: Sequence[Request], can: Capabilities) -> list[Request]:
    """Requests after which the engine has all that the timed ones need: its places are taken by the longest of them, and each
    takes the room of a whole answer. The first one may write it; the others, drawn out to that length, write few tokens,
    so that this takes about as long as one script.

    They are answered to the end, since an engine that is stopped early may throw away what it has made ready.
    """
    fitting = [request for request in requests if len(request.tokens) + request.max_new_tokens <= can.context_tokens]
    longest_first = sorted(fitting, key=lambda request: len(request.tokens), reverse=True)[: can.concurrent_requests]
    warm_up = []
    for number, request in enumerate(longest_first):
        new_tokens = min(request.max_new_tokens, WARM_UP_TOKENS) if number else request.max_new_tokens
        # Backwards, so that an engine which caches the beginnings of prompts has not read these when they are timed.
        backwards = cycle(reversed(request.tokens))
        drawn_out = tuple(islice(backwards, len(request.tokens) + request.max_new_tokens - new_tokens))
        warm_up.append(Request(f"warm-up {number}", drawn_out, new_tokens))
    return warm_up


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
    # A script of one token is read but not written, and says nothing on where the time of a script goes.
    decoded = [timing for timing in timed if timing["new_tokens"] > 1]
    prefill_s, total_s = _total(decoded, "ttft_s"), _total(decoded, "latency_s")
    share = _ratio(prefill_s, total_s)
    return {
        **_spread(measured["timings"]),
        "decoded": len(decoded),
        "prefill_share": share,
        "decode_share": None if share is None else 1 - share,
        "prefill_tokens_per_s": _ratio(_total(timed, "prompt_tokens"), _total(timed, "ttft_s")),
        "decode_tokens_per_s": _ratio(_total(decoded, "new_tokens") - len(decoded), total_s - prefill_s),
        "tokens_per_s": _ratio(_total(timed, "new_tokens"), _total(timed, "latency_s")),
        "memory_mib": measured["memory_mib"],
    }


def _batch(measured: Mapping[str, Any]) -> dict[str, Any]:
    answered = _answered(measured["timings"])
    errors = [timing["error"] for timing in measured["timings"] if timing["finish_reason"] == "error"]
    wall_s = measured["wall_s"] if answered else None
    return {
        "batch": measured["batch"],
        "concurrent_requests": measured["concurrent_requests"],
        "repeated": measured["repeated"],
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
    """The recorded calls of the hosted teachers; where there are none, those of the free one.

    Only a script that can be used has a time, while all calls have their price: a rejected script is paid for too. Answers
    of a batch job have no latency of their own, and are counted apart.
    """
    asked = calls[calls["status"] != "not_asked"]
    free = asked["model"].isin(FREE_TEACHERS)
    hosted = not free.all()
    if hosted:
        asked = asked[~free]
    usable = asked[asked["status"] == "ok"]
    online = usable[usable["mode"] != "batch"]
    seconds = [float(value) for value in online["latency_s"].dropna()]
    priced = asked[asked["cost_usd"].notna()]
    priced_usable = int((priced["status"] == "ok").sum())
    usd = _ratio(float(priced["cost_usd"].sum()), priced_usable)
    return {
        "models": sorted({str(model) for model in asked["model"]}),
        "hosted": hosted,
        "calls": len(asked),
        "usable": len(usable),
        "free_calls_left_out": int(free.sum()) if hosted else 0,
        "batch_calls": len(usable) - len(online),
        "measured": len(seconds),
        **percentiles(seconds, "latency"),
        "calls_with_cost": len(priced),
        "usable_with_cost": priced_usable,
        "usd_per_1000": None if usd is None else 1000 * usd,
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


def _total(timings: Sequence[Timing], name: str) -> float:
    return float(sum(timing[name] for timing in timings))


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(values) / len(values)) if values else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
