"""Timing an engine, the latency report, its cost and its sentence on where the time goes."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from newsjuice_pipelines.podcast.engines import Capabilities, Engine, EngineError, EngineOptions, Request, Result, open_engine
from newsjuice_pipelines.podcast.judging.latency import (
    LatencyConfig,
    LatencyError,
    latency_report,
    measure_latency,
    percentiles,
    where_the_time_goes,
)
from newsjuice_pipelines.podcast.judging.prices import AS_OF, MACHINES, find_machine
from newsjuice_pipelines.podcast.judging.scripts import GenerationConfig, generate_scripts
from newsjuice_pipelines.podcast.training.base_model import load_tokenizer

Made = tuple[Path, dict[str, Any]]
Open = Callable[[EngineOptions], Engine]
CONFIG = LatencyConfig(prompts=3, max_new_tokens=16, batches=(1, 4), rounds=2)
NO_TEACHER = pd.DataFrame({"latency_s": [], "cost_usd": [], "model": [], "mode": [], "status": []})


class WrittenEngine:
    """Answers each request with times that are written down here: it shows what is made of them, and what was asked."""

    def __init__(
        self, options: EngineOptions, *, most: int = 128, device: str = "cpu: 2 CPU cores", context_tokens: int = 4096
    ) -> None:
        self.options, self.most, self.device, self.context_tokens = options, most, device, context_tokens
        self.asked: list[Request] = []
        self.closed = False

    def capabilities(self) -> Capabilities:
        together = min(self.options.concurrent_requests or self.most, self.most)
        return Capabilities("written", self.device, "int8", together, True, self.context_tokens)

    def generate(self, requests: Sequence[Request]) -> Iterator[Result]:
        for request in requests:
            self.asked.append(request)
            yield timing(request.request_id, prompt_tokens=len(request.tokens))

    def close(self) -> None:
        self.closed = True


def timing(
    request_id: str, prompt_tokens: int = 600, new_tokens: int = 101, ttft_s: float = 0.5, token_s: float = 0.04
) -> Result:
    tokens = tuple(range(new_tokens))
    latency_s = ttft_s + token_s * (new_tokens - 1)
    return Result(request_id, tokens, "Hello.", "eos", prompt_tokens, ttft_s, latency_s)


def timings(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Timings as `measure_latency` gives them, their prompts of rising length, the last one the slowest."""
    names = ("request_id", "prompt_tokens", "new_tokens", "ttft_s", "latency_s", "finish_reason", "error")
    results = [timing(f"a{n}:0#0", prompt_tokens=100 + n, token_s=0.04 if n < count - 1 else 0.4) for n in range(count)]
    return [{**{name: getattr(result, name) for name in names}, **changes} for result in results]


def measured(
    single: list[dict[str, Any]], batches: Sequence[dict[str, Any]] = (), device: str = "cpu: 2 CPU cores"
) -> dict[str, Any]:
    """What `measure_latency` returns for these timings; the batch of one is the single stream."""
    alone = {"timings": single, "repeated": 0, "wall_s": 5.0 * len(single), "memory_mib": 900}
    capabilities = {"engine": "written", "device": device, "dtype": "int8", "concurrent_requests": 1}
    return {
        "engine": capabilities,
        "max_new_tokens": 400,
        "prompt_lookup_tokens": 0,
        "single_stream": alone,
        "batches": [{"batch": 1, "concurrent_requests": 1, "why": None, **alone}, *batches],
    }


def eight(count: int = 16, wall_s: float = 20.0) -> dict[str, Any]:
    run = {"timings": timings(count), "repeated": 4, "wall_s": wall_s, "memory_mib": 1200}
    return {"batch": 8, "concurrent_requests": 8, "why": None, **run}


def teacher(
    seconds: Sequence[float | None],
    usd: float | None = 0.0005,
    mode: str = "online",
    model: str = "gemini-3.5-flash-lite",
    status: str = "ok",
) -> Any:
    return pd.DataFrame({"latency_s": list(seconds), "cost_usd": usd, "model": model, "mode": mode, "status": status})


@pytest.fixture(scope="module")
def open_transformers(merged: Made) -> Open:
    return lambda options: open_engine("transformers", merged[0], device="cpu", options=options)


@pytest.fixture(scope="module")
def really_measured(open_transformers: Open, merged: Made, dataset: Path) -> dict[str, Any]:
    """The merged micro model, timed."""
    return measure_latency(dataset, load_tokenizer(merged[0]), open_transformers, CONFIG)


@pytest.fixture(scope="module")
def student(merged: Made, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    engine = open_engine("reference", merged[0], device="cpu")
    scratch = tmp_path_factory.mktemp("scratch")
    return generate_scripts(
        dataset, ["test"], engine, GenerationConfig(max_new_tokens=40), scratch, tokenizer=load_tokenizer(merged[0])
    )


def test_a_real_model_is_timed_alone_and_in_batches(really_measured: dict[str, Any]) -> None:
    alone, (one, four) = really_measured["single_stream"], really_measured["batches"]

    assert len(alone["timings"]) == 3
    assert one["timings"] == alone["timings"]
    assert (four["batch"], four["concurrent_requests"], len(four["timings"])) == (4, 4, 8)
    for entry in alone["timings"]:
        assert 0 < entry["ttft_s"] < entry["latency_s"]
    assert sum(entry["latency_s"] for entry in alone["timings"]) <= alone["wall_s"]
    assert alone["memory_mib"] > 100
    assert json.loads(json.dumps(really_measured)) == really_measured


def test_a_report_on_a_real_model_says_that_decoding_takes_the_time(
    really_measured: dict[str, Any], student: pd.DataFrame, tmp_path: Path
) -> None:
    results = latency_report(really_measured, {"student": student, "base": None}, teacher([7.5, 8.0]), tmp_path, CONFIG)

    single = results["single_stream"]
    assert single["measured"] == 3
    assert single["decode_share"] > single["prefill_share"] > 0
    assert results["answer"].startswith("The original blamed prefill, but prefill takes")
    assert results["generation"]["student"]["scripts"] == 4
    assert results["generation"]["base"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {file.name for file in tmp_path.iterdir()} == {
        *("results.json", "report.md", "timings.csv", "latency.png", "batches.png", "by_length.png")
    }
    with (tmp_path / "timings.csv").open() as stream:
        assert [row["batch"] for row in csv.DictReader(stream)] == ["single stream"] * 3 + ["4"] * 8


def test_the_reference_engine_is_timed_alone_and_its_batches_say_why_they_are_not(merged: Made, dataset: Path) -> None:
    def reference(options: EngineOptions) -> Engine:
        if options.concurrent_requests is not None:
            raise EngineError("the reference engine would ignore concurrent_requests")
        return open_engine("reference", merged[0], device="cpu", options=options)

    found = measure_latency(dataset, load_tokenizer(merged[0]), reference, LatencyConfig(prompts=2, max_new_tokens=4))

    assert len(found["single_stream"]["timings"]) == 2
    assert [(entry["batch"], entry["why"]) for entry in found["batches"]] == [
        (1, None),
        (8, "the reference engine would ignore concurrent_requests"),
    ]


@pytest.fixture
def measure(dataset: Path, base: Path) -> Callable[..., tuple[dict[str, Any], list[WrittenEngine]]]:
    """Times a written engine: what was measured, and the engines that were opened for it."""

    def run(config: LatencyConfig, **engine: Any) -> tuple[dict[str, Any], list[WrittenEngine]]:
        engines: list[WrittenEngine] = []

        def opened(options: EngineOptions) -> Engine:
            engines.append(WrittenEngine(options, **engine))
            return engines[-1]

        return measure_latency(dataset, load_tokenizer(base), opened, config), engines

    return run


@pytest.mark.parametrize(("device", "sizes"), [("cpu: 2 CPU cores", [1, 8]), ("cuda: NVIDIA L4", [1, 8, 32, 128])])
def test_the_batches_follow_from_the_device(measure: Any, monkeypatch: pytest.MonkeyPatch, device: str, sizes: list[int]) -> None:
    monkeypatch.setattr("newsjuice_pipelines.podcast.judging.latency.reset_peak_memory", lambda kind: None)
    monkeypatch.setattr("newsjuice_pipelines.podcast.judging.latency.peak_memory_mib", lambda kind: 7)

    found, engines = measure(LatencyConfig(prompts=2), device=device)

    assert [entry["batch"] for entry in found["batches"]] == sizes
    assert [engine.options.concurrent_requests for engine in engines] == sizes
    assert [len(entry["timings"]) for entry in found["batches"]] == [2, *(4 * size for size in sizes[1:])]
    assert all(engine.closed for engine in engines)


def test_the_memory_of_a_server_is_not_measured(measure: Any) -> None:
    found, _ = measure(LatencyConfig(prompts=2, batches=(1,)), device="server: http://127.0.0.1:8000/v1")

    assert found["single_stream"]["memory_mib"] is None


def test_the_warm_up_does_not_count_and_reads_no_prompt_that_is_timed(measure: Any) -> None:
    found, (engine,) = measure(LatencyConfig(prompts=4, max_new_tokens=9, batches=(1,)))

    warm_up, timed = engine.asked[:1], engine.asked[1:]
    assert {request.max_new_tokens for request in timed} == {9}
    assert not {request.tokens for request in warm_up} & {request.tokens for request in timed}
    assert [entry["request_id"] for entry in found["single_stream"]["timings"]] == [request.request_id for request in timed]


def test_the_warm_up_takes_each_place_and_the_room_of_whole_answers(measure: Any) -> None:
    _, (_, engine) = measure(LatencyConfig(prompts=1, max_new_tokens=40, batches=(1, 3), rounds=2))

    warm_up, timed = engine.asked[:3], engine.asked[3:]
    room = [[len(request.tokens) + request.max_new_tokens for request in requests] for requests in (warm_up, timed)]
    assert len(timed) == 6
    assert [request.max_new_tokens for request in warm_up] == [40, 4, 4]
    assert room[0] == sorted(room[1], reverse=True)[:3]


def test_a_prompt_too_long_for_the_model_does_not_stand_for_the_longest_in_the_warm_up(measure: Any, dataset: Path) -> None:
    _, (whole,) = measure(LatencyConfig(prompts=4, max_new_tokens=40, batches=(1,)))
    by_length = sorted(len(request.tokens) for request in whole.asked[1:])
    room = by_length[-1] + 39

    _, (engine,) = measure(LatencyConfig(prompts=4, max_new_tokens=40, batches=(1,)), context_tokens=room)

    fitting = [length for length in by_length if length < by_length[-1]]
    assert [len(request.tokens) for request in engine.asked[:-4]] == fitting[-1:]


def test_nothing_is_made_ready_while_a_real_engine_is_timed(
    open_transformers: Open, merged: Made, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    made: list[object] = []
    create = ContinuousBatchingManager.__init__

    def noted(manager: Any, *args: Any, **settings: Any) -> None:
        made.append(manager)
        create(manager, *args, **settings)

    monkeypatch.setattr(ContinuousBatchingManager, "__init__", noted)

    measure_latency(
        dataset,
        load_tokenizer(merged[0]),
        open_transformers,
        LatencyConfig(prompts=2, max_new_tokens=12, batches=(1, 10), rounds=1),
    )

    assert len(made) == 2  # one for each engine, in its warm-up


def test_prompts_that_were_asked_before_are_counted_over_the_whole_measurement(measure: Any, tmp_path: Path) -> None:
    found, _ = measure(LatencyConfig(prompts=3, batches=(1, 2, 8), rounds=1))

    # Four prompts: three are asked alone; of the two by two at least one again; then all, and each once more.
    single = {entry["request_id"] for entry in found["single_stream"]["timings"]}
    pair = {entry["request_id"] for entry in found["batches"][1]["timings"]}
    repeated = [entry["repeated"] for entry in found["batches"]]
    assert repeated == [0, len(pair & single), 8 - len({"a1019:0#0", "a1020:0#0", "a1021:0#0", "a1022:0#0"} - single - pair)]
    results = latency_report(found, {}, NO_TEACHER, tmp_path)
    assert [entry["repeated"] for entry in results["batches"]] == repeated
    assert "A server that caches prompts" in (tmp_path / "report.md").read_text()


def test_the_prompts_cover_the_lengths_of_the_split(base: Path, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, test=40)
    table = pd.read_parquet(dataset / "test.parquet")
    table["prompt"] = [[{"role": "user", "content": "word " * (1 + (7 * number) % 40)}] for number in range(40)]
    table.to_parquet(dataset / "test.parquet")
    engine = WrittenEngine(EngineOptions())

    measure_latency(dataset, load_tokenizer(base), lambda _: _with_one(engine), LatencyConfig(prompts=4, batches=(1,)))

    lengths = sorted(len(request.tokens) for request in engine.asked[1:])
    gaps = [after - before for before, after in pairwise(lengths)]
    assert max(gaps) <= 1.5 * min(gaps)


def _with_one(engine: WrittenEngine) -> WrittenEngine:
    engine.most = 1
    return engine


def test_prompt_lookup_is_for_the_single_stream_only(measure: Any) -> None:
    _, engines = measure(LatencyConfig(prompts=1, batches=(1, 4), prompt_lookup_tokens=5))

    assert [engine.options.prompt_lookup_tokens for engine in engines] == [5, 0]


def test_an_engine_that_always_runs_many_is_not_timed_as_one(dataset: Path, base: Path) -> None:
    def stubborn(options: EngineOptions) -> Engine:
        if options.concurrent_requests == 1:
            raise EngineError("no")
        return WrittenEngine(options, most=8)

    with pytest.raises(LatencyError, match="runs 8 requests at once and cannot time one alone"):
        measure_latency(dataset, load_tokenizer(base), stubborn)


def test_shares_and_speeds_are_those_of_the_timings(tmp_path: Path) -> None:
    # 0.5 s to the first token, then 100 tokens of 0.04 s each: 4.5 s, and 40.5 s for the slowest one.
    single = latency_report(measured(timings(20)), {}, NO_TEACHER, tmp_path)["single_stream"]

    assert single["latency_p50_s"] == pytest.approx(4.5)
    assert single["ttft_p50_s"] == single["ttft_p95_s"] == pytest.approx(0.5)
    assert single["inter_token_p50_s"] == pytest.approx(0.04)
    assert single["prefill_share"] == pytest.approx(20 * 0.5 / (19 * 4.5 + 40.5))
    assert single["decode_share"] == pytest.approx(1 - single["prefill_share"])
    assert single["decode_tokens_per_s"] == pytest.approx(2000 / (19 * 4 + 40))
    assert single["prefill_tokens_per_s"] == pytest.approx(sum(range(100, 120)) / 10)


@pytest.mark.parametrize(("count", "known"), [(1, "p50"), (19, "p50"), (20, "p50 p95"), (99, "p50 p95"), (100, "p50 p95 p99")])
def test_percentiles_of_too_few_timings_are_not_given(count: int, known: str) -> None:
    found = percentiles([1.0, None, float("nan")] + [2.0] * (count - 1), "latency")

    assert [name[8:11] for name, value in found.items() if value is not None] == known.split()


def test_no_timing_at_all_gives_no_percentile() -> None:
    assert set(percentiles([None, None], "ttft").values()) == {None}


def test_groups_by_length_are_of_equal_size_and_in_order(tmp_path: Path) -> None:
    groups = latency_report(measured(timings(30)), {}, NO_TEACHER, tmp_path)["by_length"]

    assert [(group["prompt_tokens_least"], group["prompt_tokens_most"], group["measured"]) for group in groups] == [
        *((100, 109, 10), (110, 119, 10), (120, 129, 10))
    ]


def test_prompts_of_one_length_are_one_group(tmp_path: Path) -> None:
    groups = latency_report(measured(timings(9, prompt_tokens=64)), {}, NO_TEACHER, tmp_path)["by_length"]

    assert [group["measured"] for group in groups] == [9]


def test_failed_requests_are_counted_and_timed_by_none(tmp_path: Path) -> None:
    broken = {"finish_reason": "error", "ttft_s": None, "latency_s": None, "new_tokens": 0, "error": "out of memory"}
    rows = [*timings(3), *timings(2, **broken)]

    results = latency_report(measured(rows, [{**eight(), "timings": timings(16, **broken)}]), {}, NO_TEACHER, tmp_path)

    assert (results["single_stream"]["measured"], results["single_stream"]["errors"]) == (3, 2)
    assert results["batches"][1]["scripts_per_hour"] is None
    assert "8 at once: 16 requests failed; the first says: out of memory" in (tmp_path / "report.md").read_text()


def test_an_engine_without_first_token_times_leaves_the_shares_open(tmp_path: Path) -> None:
    results = latency_report(measured(timings(3, ttft_s=None)), {}, NO_TEACHER, tmp_path)

    assert results["single_stream"]["prefill_share"] is None
    assert results["single_stream"]["latency_p50_s"] == pytest.approx(4.5)
    assert results["answer"].startswith("Where the time goes was not measured")


def test_scripts_of_one_token_do_not_say_where_the_time_goes(tmp_path: Path) -> None:
    short = timings(5, new_tokens=1, latency_s=0.5)

    alone = latency_report(measured(short), {}, NO_TEACHER, tmp_path)
    mixed = latency_report(measured([*short, *timings(2)]), {}, NO_TEACHER, tmp_path)

    assert alone["answer"].startswith("Where the time goes was not measured: no script of two tokens or more")
    assert mixed["single_stream"]["prefill_share"] == pytest.approx((0.5 + 0.5) / (4.5 + 40.5))
    assert "(2 scripts of two tokens or more, one at a time)" in mixed["answer"]


def test_a_machine_that_reads_longer_than_it_writes_is_said_to(tmp_path: Path) -> None:
    slow = {"prefill_share": 0.7, "decode_share": 0.3, "decoded": 4}

    assert where_the_time_goes(slow).startswith("The original blamed prefill, and here it is right: prefill takes 70.0 %")


def test_the_cost_is_the_hourly_price_by_the_scripts_of_the_best_batch(tmp_path: Path) -> None:
    config = LatencyConfig(machine="g2-standard-4")

    cost = latency_report(measured(timings(4), [eight()], "cuda: NVIDIA L4"), {}, teacher([7.5]), tmp_path, config)["cost"]

    assert (cost["batch"], cost["scripts_per_hour"]) == (8, 16 / 20 * 3600)
    assert cost["student_usd_per_1000"] == pytest.approx(0.7068 / 2880 * 1000)
    assert cost["teacher_usd_per_1000"] == pytest.approx(0.5)
    assert "seen on 2025-03-06" in (tmp_path / "report.md").read_text()


def test_a_batch_with_failed_requests_sets_no_price(tmp_path: Path) -> None:
    broken = {"finish_reason": "error", "ttft_s": None, "latency_s": None, "new_tokens": 0, "error": "out of memory"}
    failed = {**eight(wall_s=0.1), "timings": [*timings(1), *timings(15, **broken)]}
    config = LatencyConfig(hourly_usd=1.0)

    cost = latency_report(measured(timings(4), [failed]), {}, NO_TEACHER, tmp_path, config)["cost"]

    assert (cost["batch"], cost["scripts_per_hour"]) == (1, 4 / 20 * 3600)
    assert cost["why"] == "batches with failed requests are left out (8 at once)"
    assert cost["why"] in (tmp_path / "report.md").read_text()


def test_without_a_whole_batch_there_is_no_price(tmp_path: Path) -> None:
    broken = {"finish_reason": "error", "ttft_s": None, "latency_s": None, "new_tokens": 0, "error": "out of memory"}
    rows = [*timings(3), *timings(1, **broken)]

    cost = latency_report(measured(rows), {}, NO_TEACHER, tmp_path, LatencyConfig(hourly_usd=1.0))["cost"]

    assert cost["student_usd_per_1000"] is None
    assert cost["why"] == "batches with failed requests are left out (1 at once)"


def test_an_own_price_wins_over_the_table(tmp_path: Path) -> None:
    config = LatencyConfig(machine="our rack", hourly_usd=2.88)

    cost = latency_report(measured(timings(4), [eight()]), {}, NO_TEACHER, tmp_path, config)["cost"]

    assert cost["student_usd_per_1000"] == pytest.approx(1.0)
    assert cost["price_source"] == "configured"


def test_without_a_price_the_cost_is_not_measured(tmp_path: Path) -> None:
    cost = latency_report(measured(timings(4), [eight()]), {}, NO_TEACHER, tmp_path)["cost"]

    assert cost["student_usd_per_1000"] is cost["teacher_usd_per_1000"] is None
    page = (tmp_path / "report.md").read_text()
    assert "| student | not measured |" in page
    assert "neither a machine of the price table nor an hourly price is configured" in page


@pytest.mark.parametrize(
    ("machine", "device", "why"),
    [("g2-standard-4", "cpu: 2 CPU cores", "has a GPU, but"), ("c4-highcpu-8", "cuda: NVIDIA L4", "has no GPU, but")],
)
def test_times_of_another_kind_of_machine_are_not_priced(tmp_path: Path, machine: str, device: str, why: str) -> None:
    config = LatencyConfig(machine=machine)

    cost = latency_report(measured(timings(4), device=device), {}, NO_TEACHER, tmp_path, config)["cost"]

    assert cost["student_usd_per_1000"] is None
    assert why in cost["why"]


def test_the_teachers_single_calls_are_held_beside_the_student(tmp_path: Path) -> None:
    calls = pd.concat([teacher([7.0, 8.0, None]), teacher([3600.0], mode="batch", usd=0.0001), teacher([9.0], usd=None)])

    results = latency_report(measured(timings(4)), {}, calls, tmp_path)

    taught = results["teacher"]
    assert (taught["calls"], taught["batch_calls"], taught["measured"]) == (5, 1, 3)
    assert taught["latency_p50_s"] == 8.0
    assert taught["latency_p95_s"] is None
    assert taught["usd_per_1000"] == pytest.approx(1000 * (3 * 0.0005 + 0.0001) / 4)
    assert results["student_over_teacher"] == pytest.approx(4.5 / 8.0)
    assert "1 answers of batch jobs have no time of their own" in (tmp_path / "report.md").read_text()


def test_a_rejected_script_of_the_teacher_costs_but_has_no_time(tmp_path: Path) -> None:
    calls = pd.concat(
        [
            teacher([8.0] * 4, usd=0.01),
            teacher([0.2] * 4, usd=0.01, status="rejected"),
            teacher([None] * 2, usd=None, status="not_asked"),
        ]
    )

    taught = latency_report(measured(timings(4)), {}, calls, tmp_path)["teacher"]

    assert taught["latency_p50_s"] == 8.0
    assert taught["usd_per_1000"] == pytest.approx(20.0)
    assert (taught["calls"], taught["usable"], taught["measured"]) == (8, 4, 4)
    assert "Of the teacher's 8 calls, 4 gave a script that can be used" in (tmp_path / "report.md").read_text()


def test_the_free_teacher_does_not_make_the_hosted_one_cheaper(tmp_path: Path) -> None:
    calls = pd.concat([teacher([8.0] * 2, usd=0.01), teacher([None] * 18, usd=0.0, model="extractive")])

    taught = latency_report(measured(timings(4)), {}, calls, tmp_path)["teacher"]

    assert taught["usd_per_1000"] == pytest.approx(10.0)
    assert taught["models"] == ["gemini-3.5-flash-lite"]
    assert (taught["calls"], taught["free_calls_left_out"]) == (2, 18)
    assert "18 scripts of the free extractive teacher are left out" in (tmp_path / "report.md").read_text()


def test_the_free_teacher_is_called_what_it_is(tmp_path: Path) -> None:
    results = latency_report(measured(timings(4)), {}, teacher([None, None], usd=0.0, model="extractive"), tmp_path)

    assert results["teacher"]["hosted"] is False
    assert results["teacher"]["latency_p50_s"] is results["student_over_teacher"] is None
    assert results["cost"]["teacher_usd_per_1000"] == 0
    page = (tmp_path / "report.md").read_text()
    assert "free and no hosted model" in page
    assert "costs nothing, since no hosted model is asked" in page


def test_names_in_the_tables_cannot_break_out_of_the_page(student: pd.DataFrame, tmp_path: Path) -> None:
    calls = teacher([7.0], model="<script>alert(1)</script>|x")
    hostile = student.assign(engine="![x](http://evil)")

    latency_report(measured(timings(4)), {"student": hostile}, calls, tmp_path)

    page = (tmp_path / "report.md").read_text()
    assert "<script>" not in page
    assert "![x]" not in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 0}, "prompts is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"batches": (8, 0)}, r"batches is \[8, 0\]"),
        ({"prompt_lookup_tokens": -1}, "prompt_lookup_tokens is -1"),
        ({"hourly_usd": 0.0}, "hourly_usd is 0.0"),
        ({"hourly_usd": float("nan")}, "hourly_usd is nan"),
        ({"machine": "laptop"}, "there is no price for the machine 'laptop': choose one of c4-highcpu-8"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyConfig(**settings)


def test_a_split_without_rows_is_refused(base: Path, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    pd.read_parquet(dataset / "test.parquet").head(0).to_parquet(dataset / "test.parquet")

    with pytest.raises(LatencyError, match="the test split has no rows to time"):
        measure_latency(dataset, load_tokenizer(base), WrittenEngine)


def test_each_price_says_where_and_when_it_was_seen() -> None:
    assert find_machine("a3-highgpu-1g").accelerator == "H100 80 GB"
    for name, machine in MACHINES.items():
        assert name == machine.name
        assert machine.hourly_usd > 0
        assert machine.source
        assert "2025-01-01" < machine.seen_on < f"{AS_OF}-31"
