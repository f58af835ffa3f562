"""The merge gate: does the merged model do what base and adapter did together, as far as its number format allows?

It only compares logits. Running the models and writing the weights is `merge.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

ALLOWED_RATIO = 1.5
EFFECT_KEPT_LIMIT = 0.9
EFFECT_MOST = 1.1  # more than the whole effect is a merge at a wrong strength
# In float32 the reference is zero. These allow for rounding in another order of summation, and for the top-1 measure also
# for the few positions where two tokens are about equally likely: which of them flip is chance, so that the count of the
# reference is itself uncertain by about its square root.
RELATIVE_ERROR_FLOOR = 1e-4
KL_FLOOR_NATS = 1e-5
TOP1_FLOOR_SHARE = 0.005
TOP1_FLOOR_POSITIONS = 2
TOP1_STANDARD_DEVIATIONS = 3

_CHUNK_POSITIONS = 64  # in float64, 152,000 tokens of vocabulary make 78 MB of them


class NotFiniteError(ValueError):
    """Logits that hold NaN or infinity cannot be compared."""


@dataclass(frozen=True)
class Comparison:
    """How far one model is from the adapter in float32, summed over the answer positions of one prompt."""

    error_square: float
    """|A - X|^2 of the centred logits."""
    kl_nats: float
    """KL(A || X), summed over positions."""
    agreed: int
    """Positions where both prefer the same token."""
    effect_dot: float
    """<X - base, A - base> of the centred logits."""


@dataclass(frozen=True)
class PromptMeasures:
    """What the gate keeps of one prompt: sums over its answer positions."""

    positions: int
    adapter_square: float
    """|A|^2 of the centred logits."""
    effect_square: float
    """|A - base|^2 of the centred logits."""
    merged: Comparison
    rounded: Comparison


@dataclass(frozen=True)
class GateMeasure:
    """One measure of the merged model, beside that of the adapter in the same number format."""

    value: float | None
    """Of the merged model; None when the adapter has no effect that could be kept."""
    reference: float | None
    """Of the unmerged adapter in the number format of the merged model."""
    limit: float
    """What the value is held against."""
    bound: Literal["at most", "at least"]
    """On which side of the limit the value has to be."""
    passed: bool
    by_prompt: tuple[float, float, float] | None
    """Lowest, median and highest value of single prompts."""


@dataclass(frozen=True)
class GateResult:
    """The verdict of the gate with every measure behind it."""

    passed: bool
    prompts: int
    positions: int
    measures: dict[str, GateMeasure]

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values; `failed` names the measures that did not pass."""
        failed = [name for name, measure in self.measures.items() if not measure.passed]
        return {**asdict(self), "failed": failed}


def measure_prompt(
    base: torch.Tensor, adapter: torch.Tensor, merged: torch.Tensor, rounded: torch.Tensor | None = None
) -> PromptMeasures:
    """Compare the models on one prompt, from teacher-forced logits of the same answer.

    Logits are centred at each position (their mean over the vocabulary is taken away) before errors and effects are
    measured: a constant added to all logits of a position changes no probability and must neither hide nor feign an error.

    Args:
        base: logits `[answer positions, vocabulary]` of the untuned base in float32.
        adapter: the same of base and adapter in float32 (A).
        merged: the same of the merged model as written (M).
        rounded: the same of base and adapter in the number format of the merged model (B); None where that is float32.

    Raises:
        NotFiniteError: some logits are NaN or infinite; says whose.
    """
    named = {"base": base, "adapter": adapter, "merged model": merged, "adapter in the merged model's format": rounded}
    for name, logits in named.items():
        if logits is not None and not logits.isfinite().all():
            raise NotFiniteError(f"logits of the {name} are not finite")
    others = [merged] if rounded is None else [merged, rounded]
    adapter_square = effect_square = 0.0
    sums = [[0.0, 0.0, 0, 0.0] for _ in others]
    for start in range(0, len(adapter), _CHUNK_POSITIONS):
        part = slice(start, start + _CHUNK_POSITIONS)
        a = _centred(adapter[part])
        effect = a - _centred(base[part])
        log_sum = a.logsumexp(-1, keepdim=True)
        probabilities = (a - log_sum).exp_()
        adapter_square += _dot(a, a)
        chunk_effect_square = _dot(effect, effect)
        effect_square += chunk_effect_square
        for other, total in zip(others, sums, strict=True):
            x = _centred(other[part])
            error = x - a
            total[0] += _dot(error, error)
            # KL(A || X) = sum of p_A (log p_A - log p_X), with log p = logits - logsumexp(logits)
            total[1] += float((x.logsumexp(-1) - log_sum[:, 0]).sum()) - _dot(probabilities, error)
            total[2] += int((x.argmax(-1) == a.argmax(-1)).sum())
            total[3] += _dot(error, effect) + chunk_effect_square
    compared = [Comparison(error, max(kl, 0.0), int(agreed), dot) for error, kl, agreed, dot in sums]
    unchanged = Comparison(0.0, 0.0, len(adapter), effect_square)
    return PromptMeasures(
        positions=len(adapter),
        adapter_square=adapter_square,
        effect_square=effect_square,
        merged=compared[0],
        rounded=unchanged if rounded is None else compared[1],
    )


def judge_merge(prompts: Sequence[PromptMeasures]) -> GateResult:
    """The verdict over all prompts.

    Relative error, mean KL (nats a position) and top-1 disagreement of the merged model may be at most `ALLOWED_RATIO`
    times those of the adapter in the same number format, plus a floor; at least `EFFECT_KEPT_LIMIT` of what the adapter
    does to the logits has to be there, and at most `EFFECT_MOST`. An adapter that changes nothing does not pass.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("the merge gate needs at least one prompt with an answer.")
    positions = sum(prompt.positions for prompt in prompts)

    def lowest_agreement(reference: float) -> float:
        noise = TOP1_STANDARD_DEVIATIONS * math.sqrt((1 - reference) / positions)
        return 1 - ALLOWED_RATIO * (1 - reference) - max(TOP1_FLOOR_SHARE, TOP1_FLOOR_POSITIONS / positions, noise)

    measures = {
        "relative_error": _judge(_relative_error, prompts, lambda reference: ALLOWED_RATIO * reference + RELATIVE_ERROR_FLOOR),
        "kl_nats": _judge(_mean_kl, prompts, lambda reference: ALLOWED_RATIO * reference + KL_FLOOR_NATS),
        "top1_agreement": _judge(_top1_agreement, prompts, lowest_agreement, "at least"),
        "effect_kept": _judge(_effect_kept, prompts, lambda _: EFFECT_KEPT_LIMIT, "at least"),
        "effect_not_exceeded": _judge(_effect_kept, prompts, lambda _: EFFECT_MOST),
    }
    return GateResult(all(measure.passed for measure in measures.values()), len(prompts), positions, measures)


def _judge(
    figure: Callable[[Sequence[PromptMeasures], str], float | None],
    prompts: Sequence[PromptMeasures],
    limit_for: Callable[[float], float],
    bound: Literal["at most", "at least"] = "at most",
) -> GateMeasure:
    value, reference = figure(prompts, "merged"), figure(prompts, "rounded")
    limit = limit_for(reference or 0.0)
    passed = value is not None and (value <= limit if bound == "at most" else value >= limit)
    single = [one for prompt in prompts if (one := figure([prompt], "merged")) is not None]
    spread = (min(single), statistics.median(single), max(single)) if single else None
    return GateMeasure(value, reference, limit, bound, passed, spread)


def _relative_error(prompts: Sequence[PromptMeasures], which: str) -> float | None:
    norm = sum(prompt.adapter_square for prompt in prompts)
    return math.sqrt(sum(_of(prompt, which).error_square for prompt in prompts) / norm) if norm else None


def _mean_kl(prompts: Sequence[PromptMeasures], which: str) -> float:
    return sum(_of(prompt, which).kl_nats for prompt in prompts) / sum(prompt.positions for prompt in prompts)


def _top1_agreement(prompts: Sequence[PromptMeasures], which: str) -> float:
    return sum(_of(prompt, which).agreed for prompt in prompts) / sum(prompt.positions for prompt in prompts)


def _effect_kept(prompts: Sequence[PromptMeasures], which: str) -> float | None:
    effect = sum(prompt.effect_square for prompt in prompts)
    return sum(_of(prompt, which).effect_dot for prompt in prompts) / effect if effect else None


def _of(prompt: PromptMeasures, which: str) -> Comparison:
    return prompt.merged if which == "merged" else prompt.rounded


def _centred(logits: torch.Tensor) -> torch.Tensor:
    double = logits.double()
    return double - double.mean(-1, keepdim=True)


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first.flatten().dot(second.flatten()))
