"""The gate of a quantised model: are its weights, and the engine that runs them, still the student?

Two parts: what rounding the weights costs on held-out scripts, measured in PyTorch so that nothing else differs, and what the
engine then makes of whole answers. Writing the file is `gguf_export.py`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from newsjuice_pipelines.podcast.engines import EngineError, EngineOptions, Request, Result
from newsjuice_pipelines.podcast.engines.openvino_genai import OpenvinoEngine
from newsjuice_pipelines.podcast.engines.parity import SCORED_POSITIONS, Parity, compare
from newsjuice_pipelines.podcast.engines.reference import ReferenceEngine
from newsjuice_pipelines.podcast.quantising.gguf_export import dequantised
from newsjuice_pipelines.podcast.quantising.source_model import QuantisingError
from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_example
from newsjuice_pipelines.runtime.devices import best_device

logger = logging.getLogger("newsjuice.quantise")

# 2 % more perplexity than the student's own. Rounding to 8 bits costs a tenth of it or less; 4 bits can cost more.
MOST_NLL_INCREASE_NATS = 0.02
# Two models this close still differ where two tokens are about equally likely. On few positions chance alone goes further,
# so that the limit gives way by this many standard deviations of a share.
LEAST_TOP1_AGREEMENT = 0.95
TOP1_STANDARD_DEVIATIONS = 3
# On fewer positions than this the agreement's limit has given way by four points and more, so that a form that goes wrong at
# every tenth token would pass. What fails on so few has still failed.
LEAST_POSITIONS = 300
# How much less probable the engine's tokens are, in the student's eyes, than the student's first choice at the same place. One
# flip between two near-equal tokens costs next to nothing, while the texts that follow from it differ in probability by
# chance; so this is held against a limit, and the difference between whole answers is only shown.
MOST_REGRET_NATS = 0.02
# One request at a time runs through another implementation of the attention, which a few prompts are enough to check.
SINGLE_PROMPTS = 4

HeldOut = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class GateMeasure:
    """One measure held against its limit."""

    value: float | None
    """None when the model gave no finite number, which does not pass."""
    limit: float
    bound: Literal["at most", "at least"]
    passed: bool


@dataclass(frozen=True)
class Reference:
    """What the student itself does on the held-out rows, for any number of quantised forms to be held against."""

    model: Path
    rows: HeldOut
    nll_nats: float
    """Mean negative log-likelihood a token of the held-out answers."""
    top1: tuple[tuple[int, ...], ...]
    """By row, the most probable token at each position of the answer."""
    requests: tuple[Request, ...]
    results: tuple[Result, ...] | None
    """Greedy answers; None when there is no engine to hold against them."""


@dataclass(frozen=True)
class GateVerdict:
    """The verdict on a quantised form; `passed` is None when too little could be measured and nothing of that failed."""

    passed: bool | None
    why: str
    measures: dict[str, GateMeasure]
    nll_nats: float | None
    reference_nll_nats: float
    positions: int
    parity: Parity | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {**asdict(self), "parity": None if self.parity is None else self.parity.as_json()}


def engine_installed() -> bool:
    """Whether the engine that runs quantised models is there."""
    return importlib.util.find_spec("openvino_genai") is not None


def context_tokens(model: Path) -> int:
    """The longest sequence that the model in a folder takes, prompt and answer together."""
    tokens: int = json.loads((model / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    return tokens


def held_out_rows(dataset: Path, model: Path, count: int) -> HeldOut:
    """Token ids of prompt and answer of the first `count` validation rows that have an answer and fit into the context.

    Raises:
        QuantisingError: the validation split is missing.
    """
    import pandas as pd

    file = dataset / "validation.parquet"
    if not file.is_file():
        raise QuantisingError(f"{file} is missing, and the gate needs held-out rows: materialise student_dataset again.")
    tokenizer = load_tokenizer(model)
    context = context_tokens(model)
    rows: HeldOut = []
    for prompt, completion in pd.read_parquet(file, columns=["prompt", "completion"]).itertuples(index=False):
        ids, labels = encode_example(tokenizer, list(prompt), list(completion))
        answer_tokens = sum(label >= 0 for label in labels)
        if answer_tokens and len(ids) <= context:
            rows.append((ids[:-answer_tokens], ids[-answer_tokens:]))
        if len(rows) == count:
            break
    return rows


def measure_reference(model: Path, rows: HeldOut, max_new_tokens: int) -> Reference:
    """Run the student in float32: the likelihood of held-out answers and, where an engine is installed, its own answers.

    Args:
        model: folder of the model before it was quantised.
        rows: of `held_out_rows`, at least one.
        max_new_tokens: most tokens of an own answer.
    """
    device = replace(best_device(), dtype="float32")
    nll_nats, top1 = _likelihood(load_model(model, device.dtype, device.type), rows)
    context = context_tokens(model)
    requests = tuple(
        Request(str(number), tuple(prompt), max(1, min(max_new_tokens, context - len(prompt))))
        for number, (prompt, _) in enumerate(rows)
    )
    results = None
    if engine_installed():
        engine = ReferenceEngine(model, device, EngineOptions())
        results = tuple(engine.generate(requests))
        engine.close()
    return Reference(model, rows, nll_nats, top1, requests, results)


def judge_quantised(reference: Reference, folder: Path, file: Path) -> GateVerdict:
    """Hold the quantised form in `folder`, whose weights are in `file`, against the student.

    An engine that cannot read the file does not pass.
    """
    device = replace(best_device(), dtype="float32")
    model = load_model(reference.model, device.dtype, device.type)
    _put_weights(model, file)
    nll_nats, top1 = _likelihood(model, reference.rows)
    del model
    same = sum(
        ours == theirs for mine, other in zip(top1, reference.top1, strict=True) for ours, theirs in zip(mine, other, strict=True)
    )
    positions = sum(map(len, reference.top1))
    noise = TOP1_STANDARD_DEVIATIONS * math.sqrt(LEAST_TOP1_AGREEMENT * (1 - LEAST_TOP1_AGREEMENT) / positions)
    measures = {
        "nll_increase_nats": _at_most(nll_nats - reference.nll_nats, MOST_NLL_INCREASE_NATS),
        "top1_agreement": _at_least(same / positions, LEAST_TOP1_AGREEMENT - noise),
    }
    parity, broken = None, None
    if reference.results is not None:
        try:
            parity, engine_measures = _judge_engine(reference, folder)
            measures |= engine_measures
        except EngineError as error:
            broken = str(error).replace(f"{folder}/", "")  # where it was made is not what it is
    passed, why = _verdict(measures, positions, broken, parity)
    logger.info("gate of %s over %d rows, %d positions: %s", file.name, len(reference.rows), positions, why)
    return GateVerdict(passed, why, measures, _finite(nll_nats), reference.nll_nats, positions, parity)


def _verdict(
    measures: dict[str, GateMeasure], positions: int, broken: str | None, parity: Parity | None
) -> tuple[bool | None, str]:
    failed = [name for name, measure in measures.items() if not measure.passed]
    if broken is not None:
        return False, f"the engine cannot run it: {broken}"
    if failed:
        shown = ", ".join(f"{name} {_shown(measures[name])}" for name in failed)
        return False, f"not within the limits: {shown}"
    if parity is None:
        return None, "the engine's answers were not measured: the extra cpu-engine is not installed"
    if positions < LEAST_POSITIONS:
        few = f"the held-out answers have {positions} tokens, and a verdict needs {LEAST_POSITIONS}"
        return None, f"too little was measured: {few} (raise gate_prompts, or take a larger data set)"
    return True, f"all {len(measures)} measures are within their limits"


def _shown(measure: GateMeasure) -> str:
    value = "is not finite" if measure.value is None else f"is {measure.value:.3g}"
    return f"{value} (must be {measure.bound} {measure.limit:.3g})"


class _Scores:
    """Scores answers to the gate's requests under the student, and keeps what each answer gave."""

    def __init__(self, reference: Reference) -> None:
        device = replace(best_device(), dtype="float32")
        self._model = load_model(reference.model, device.dtype, device.type)
        self._prompts = {request.request_id: request.tokens for request in reference.requests}
        self._found: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}

    def __call__(self, request_ids: Sequence[str], answers: Sequence[Sequence[int]]) -> list[float]:
        """Mean log-probability a token of each answer, in nats."""
        return [self._of(name, tuple(tokens))[0] for name, tokens in zip(request_ids, answers, strict=True)]

    def regret_nats(self, results: Sequence[Result]) -> float:
        """By how much the tokens fall behind the student's first choice after the same text, on average; NaN without tokens."""
        answered = [result for result in results if result.tokens]
        tokens = sum(result.new_tokens for result in answered)
        regret = sum(self._of(result.request_id, result.tokens)[1] * result.new_tokens for result in answered)
        return regret / tokens if tokens else math.nan

    def _of(self, request_id: str, tokens: tuple[int, ...]) -> tuple[float, float]:
        """Mean log-probability and mean regret a token of one answer."""
        import torch

        if (request_id, tokens) not in self._found:
            with torch.inference_mode():
                ids = torch.tensor([[*self._prompts[request_id], *tokens]], device=self._model.device)
                logits = self._model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=len(tokens)).logits[0]
                chosen = logits.gather(1, ids[0, -len(tokens) :, None])[:, 0]
                norm = torch.cat([part.logsumexp(-1) for part in logits.split(SCORED_POSITIONS)])
                self._found[request_id, tokens] = float((chosen - norm).mean()), float((logits.amax(-1) - chosen).mean())
        return self._found[request_id, tokens]


def _judge_engine(reference: Reference, folder: Path) -> tuple[Parity, dict[str, GateMeasure]]:
    """How far the engine's greedy answers are from the student's, several at once and, for some prompts, one at a time."""
    several = _engine_answers(folder, reference.requests, EngineOptions())
    single = _engine_answers(folder, reference.requests[:SINGLE_PROMPTS], EngineOptions(concurrent_requests=1))
    scores = _Scores(reference)
    parity = compare(reference.results or (), several, scores)
    answered = sum(result.finish_reason != "error" for result in several + single)
    return parity, {
        "answered": _at_least(answered / len(several + single), 1.0),
        "regret_nats": _at_most(scores.regret_nats(several), MOST_REGRET_NATS),
        "single_stream_regret_nats": _at_most(scores.regret_nats(single), MOST_REGRET_NATS),
    }


def _engine_answers(folder: Path, requests: Sequence[Request], options: EngineOptions) -> list[Result]:
    engine = OpenvinoEngine(folder, replace(best_device(), type="cpu", dtype="float32"), options)
    try:
        return list(engine.generate(requests))
    finally:
        engine.close()


def _likelihood(model: Any, rows: HeldOut) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """Mean negative log-likelihood a token of the answers (nats), and the most probable token at each position of them."""
    import torch

    total, count, top1 = 0.0, 0, []
    with torch.inference_mode():
        for prompt, answer in rows:
            ids = torch.tensor([prompt + answer], device=model.device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
            count += len(answer)
            top1.append(tuple(logits.argmax(-1).tolist()))
    return total / count, tuple(top1)


def _put_weights(model: Any, file: Path) -> None:
    """Replace the weights of a PyTorch model by those of a GGUF file, tensor by tensor."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in dequantised(file, model):
            parameters.pop(name).copy_(torch.tensor(values))
    if parameters:
        raise QuantisingError(f"{file} lacks {', '.join(sorted(parameters))}: quantise the model again.")


def _at_most(value: float, limit: float) -> GateMeasure:
    return GateMeasure(_finite(value), limit, "at most", value <= limit)  # NaN is not at most anything


def _at_least(value: float, limit: float) -> GateMeasure:
    return GateMeasure(_finite(value), limit, "at least", value >= limit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
