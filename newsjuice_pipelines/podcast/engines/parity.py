"""How far one engine's answers are from another's: exact matches, first divergence, and what the difference costs in nats.

What counts as too far is decided by the gate that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import EngineError, Request, Result
from newsjuice_pipelines.podcast.training.base_model import load_model
from newsjuice_pipelines.runtime.devices import Device

# Request ids and answers of equal number to the mean log-probability a token of each answer, in nats.
Scorer = Callable[[Sequence[str], Sequence[Sequence[int]]], list[float]]

# Positions whose scores are normalised at once: 64 rows of a vocabulary of 150,000 are 40 MB in float32.
SCORED_POSITIONS = 64


@dataclass(frozen=True)
class Parity:
    """How far the answers of an engine are from those of the reference, request by request in the reference's order."""

    requests: int
    exact: int
    """Requests with the very same tokens."""
    first_divergence: tuple[int | None, ...]
    """Of each request, the index of the first new token that differs; None for equal answers, 0 for a missing one."""
    score_difference_nats: float | None
    """Mean over the answered requests of the log-probability a token of the reference's answer minus that of the other's,
    both under the reference model: above 0, the other's text is the less probable one. None when it was not scored."""
    worst_score_difference_nats: float | None
    """The same of the request where the other engine's answer falls behind most."""
    unanswered: int = 0
    """Requests that one of the two engines answered with an error or not at all."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {**asdict(self), "first_divergence": list(self.first_divergence)}


def compare(reference: Iterable[Result], other: Iterable[Result], scorer: Scorer | None = None) -> Parity:
    """Hold `other` against `reference`, the results of two engines for the same requests, in any order.

    Args:
        reference: results of the oracle; their order is that of the comparison.
        other: results of the engine in question.
        scorer: gives the log-probability of answers, as `model_scorer` does; None leaves the scores unmeasured.

    Raises:
        EngineError: the two do not answer the same requests, or one request twice.
    """
    expected, found = _by_id(reference), _by_id(other)
    strangers = sorted(found.keys() - expected.keys())
    if strangers:
        raise EngineError(f"the reference has no answer to request {strangers[0]!r}: give both engines the same requests.")
    divergence: list[int | None] = []
    answered: list[str] = []
    for request_id, result in expected.items():
        match = found.get(request_id)
        if match is None or "error" in (result.finish_reason, match.finish_reason):
            divergence.append(0)
        else:
            answered.append(request_id)
            divergence.append(first_divergence(result.tokens, match.tokens))
    differences: list[float] = []
    if scorer is not None and answered:
        tokens = [results[name].tokens for results in (expected, found) for name in answered]
        scores = scorer([*answered, *answered], tokens)  # in one call, as a scorer may load its model for each
        differences = [ours - theirs for ours, theirs in zip(scores[: len(answered)], scores[len(answered) :], strict=True)]
    return Parity(
        requests=len(expected),
        exact=divergence.count(None),
        first_divergence=tuple(divergence),
        score_difference_nats=sum(differences) / len(differences) if differences else None,
        worst_score_difference_nats=max(differences, default=None),
        unanswered=len(expected) - len(answered),
    )


def first_divergence(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Index of the first token that differs, the shorter length when one starts with the other, None for equal ones."""
    for index, (left, right) in enumerate(zip(expected, found, strict=False)):
        if left != right:
            return index
    return None if len(expected) == len(found) else min(len(expected), len(found))


def model_scorer(model: Path, device: Device, requests: Iterable[Request]) -> Scorer:
    """A scorer of answers to `requests` under the model in the folder `model`, which it loads for each call."""
    prompts = {request.request_id: request.tokens for request in requests}

    def score(request_ids: Sequence[str], answers: Sequence[Sequence[int]]) -> list[float]:
        return score_tokens(model, device, [prompts[request_id] for request_id in request_ids], answers)

    return score


def score_tokens(model: Path, device: Device, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
    """Mean log-probability a token, in nats, of each answer after its prompt, under the model in the folder `model`.

    One forward pass a row; the vocabulary's scores are kept for the answer's positions only.

    Raises:
        EngineError: an empty prompt or answer, or more of one than of the other.
    """
    import torch

    if len(prompts) != len(answers):
        raise EngineError(f"{len(prompts)} prompts and {len(answers)} answers: give one answer for each prompt.")
    empty = next((row for row, pair in enumerate(zip(prompts, answers, strict=True)) if not all(map(len, pair))), None)
    if empty is not None:
        raise EngineError(f"row {empty} has an empty prompt or answer, which has no probability: leave it out.")
    loaded = load_model(model, device.dtype, device.type)
    with torch.inference_mode():
        return [_score(loaded, list(prompt), list(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def _score(model: Any, prompt: list[int], answer: list[int]) -> float:
    import torch
    from torch.nn.functional import cross_entropy

    row = torch.tensor([[*prompt, *answer]], device=model.device)
    # The last position predicts what would follow the answer: not asked for.
    logits = model(row[:, :-1], use_cache=False, logits_to_keep=len(answer)).logits[0]
    targets = row[0, len(prompt) :]
    parts = zip(logits.split(SCORED_POSITIONS), targets.split(SCORED_POSITIONS), strict=True)
    total = sum(float(cross_entropy(part.float(), wanted, reduction="sum")) for part, wanted in parts)
    return -total / len(answer)


def _by_id(results: Iterable[Result]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for result in results:
        if result.request_id in found:
            raise EngineError(f"request {result.request_id!r} has two answers: give each request an id of its own.")
        found[result.request_id] = result
    return found
