"""What is known of the Gemini models, in one dated table: whether they are served, thinking control, sampling fields, prices.

Nothing is asked here: the teacher is in `gemini.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AS_OF = "2026-11"

# Vertex AI bills a batch at half price. Cached tokens keep their own price: that discount does not add to this one.
BATCH_FACTOR = 0.5


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens of text, on the global endpoint; None is not known."""

    input: float | None = None
    """Prompt tokens that came from no cache."""
    cached: float | None = None
    """Prompt tokens from a cache; where only this one is not known, they are counted at the input price, which is never less."""
    output: float | None = None
    """Tokens of answer and thoughts."""

    @property
    def known(self) -> bool:
        """Whether a cost can be computed."""
        return self.input is not None and self.output is not None


@dataclass(frozen=True)
class GeminiModel:
    """The facts of one model."""

    name: str
    retired_on: str | None = None
    """Date since which it answers no request."""
    replacements: tuple[str, ...] = ()
    """What to use in place of a retired model."""
    thinking: Mapping[str, Any] = field(default_factory=dict)
    """How thinking is switched off or to its minimum: `thinking_budget` (2.5) or `thinking_level` (3.x); both are an error."""
    sampling_fields: tuple[str, ...] = ("temperature", "top_p", "top_k")
    """Sampling fields that change the answer; a model ignores the others."""
    prices: Prices = field(default_factory=Prices)
    price_source: str = ""
    """Where the prices are from, and when they were seen there."""

    @property
    def status(self) -> str:
        """`served`, or since when it is not."""
        return f"retired on {self.retired_on}" if self.retired_on else "served"


GEMINI_MODELS: Mapping[str, GeminiModel] = {
    model.name: model
    for model in (
        GeminiModel(
            "gemini-3.5-flash-lite",
            thinking={"thinking_level": "MINIMAL"},
            sampling_fields=(),
            prices=Prices(input=0.30, cached=0.03, output=2.50),
            price_source="ai.google.dev/gemini-api/docs/pricing, as quoted in five independent price tables, 2026-07 to 2026-08",
        ),
        GeminiModel(
            "gemini-3.1-flash-lite",
            thinking={"thinking_level": "MINIMAL"},
            sampling_fields=("temperature", "top_p"),
            prices=Prices(input=0.25, cached=0.025, output=1.50),
            price_source="ai.google.dev/gemini-api/docs/pricing, 2026-05",
        ),
        GeminiModel(
            "gemini-2.5-flash",
            retired_on="2026-10-16",
            replacements=("gemini-3.5-flash-lite", "gemini-3.1-flash-lite"),
            thinking={"thinking_budget": 0},
        ),
    )
}


def gemini_model(name: str) -> GeminiModel:
    """The facts of a model; one that is not in the table has no price and is sent no thinking control."""
    return GEMINI_MODELS.get(name) or GeminiModel(name)


def cost_usd(
    prices: Prices,
    input_tokens: int,
    cached_tokens: int = 0,
    output_tokens: int = 0,
    thought_tokens: int = 0,
    *,
    batch: bool = False,
) -> float | None:
    """What one answer costs, US dollars; None when a price is not known.

    Args:
        prices: per million tokens.
        input_tokens: of the whole prompt, `cached_tokens` included.
        cached_tokens: those of the prompt that came from a cache.
        output_tokens: of the answer, without thoughts.
        thought_tokens: billed as output.
        batch: whether a batch job answered.
    """
    if prices.input is None or prices.output is None:
        return None
    factor = BATCH_FACTOR if batch else 1.0
    cached_price = prices.input * factor if prices.cached is None else prices.cached
    cached_tokens = min(cached_tokens, input_tokens)
    full = (input_tokens - cached_tokens) * prices.input + (output_tokens + thought_tokens) * prices.output
    return (full * factor + cached_tokens * cached_price) / 1e6


def check_price(name: str, value: float | None) -> None:
    """Raises ValueError for a price that cannot be one."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value}: must be US dollars per million tokens, 0 or more, or empty for the built-in price.")
