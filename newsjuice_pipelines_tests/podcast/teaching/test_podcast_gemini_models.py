"""The table of models and the cost of an answer."""

from __future__ import annotations

import pytest

from newsjuice_pipelines.podcast.teaching.gemini_models import AS_OF, BATCH_FACTOR, GEMINI_MODELS, Prices, cost_usd, gemini_model
from newsjuice_pipelines.settings import Settings

SERVED = [model for model in GEMINI_MODELS.values() if model.status == "served"]


def test_the_default_model_is_served_at_a_known_price() -> None:
    default = gemini_model(Settings.model_fields["gemini_model"].default)
    assert default in SERVED
    assert default.prices.known


@pytest.mark.parametrize("model", SERVED, ids=lambda model: model.name)
def test_a_price_has_a_source_with_a_date_not_after_the_table(model: object) -> None:
    assert model.price_source  # type: ignore[attr-defined]
    assert model.price_source[-7:] <= AS_OF  # type: ignore[attr-defined]


def test_a_retired_model_names_replacements_that_are_served() -> None:
    retired = gemini_model("gemini-2.5-flash")
    assert retired.status == "retired on 2026-10-16"
    assert [GEMINI_MODELS[name].status for name in retired.replacements] == ["served", "served"]


def test_no_model_is_sent_a_budget_and_a_level_together() -> None:
    assert all(len(model.thinking) == 1 for model in GEMINI_MODELS.values())


def test_an_unknown_model_has_no_price_and_no_thinking_control() -> None:
    unknown = gemini_model("gemini-x")
    assert not unknown.thinking
    assert cost_usd(unknown.prices, 1000, output_tokens=1000) is None


def test_cached_tokens_are_part_of_the_prompt_and_have_their_own_price() -> None:
    prices = Prices(input=1.0, cached=0.1, output=10.0)
    assert cost_usd(prices, 1_000_000, 400_000) == pytest.approx(0.6 * 1.0 + 0.4 * 0.1)


def test_thoughts_are_billed_as_output() -> None:
    assert cost_usd(Prices(1.0, 0.1, 10.0), 0, 0, 100_000, 900_000) == pytest.approx(10.0)


def test_a_batch_is_half_price_except_for_cached_tokens() -> None:
    prices = Prices(input=1.0, cached=0.1, output=10.0)
    assert cost_usd(prices, 1_000_000, 0, 1_000_000, batch=True) == pytest.approx(BATCH_FACTOR * 11.0)
    assert cost_usd(prices, 1_000_000, 1_000_000, batch=True) == pytest.approx(0.1)


def test_cached_tokens_without_a_price_are_counted_at_the_input_price() -> None:
    assert cost_usd(Prices(input=1.0, output=10.0), 1_000_000, 400_000) == pytest.approx(1.0)
    assert cost_usd(Prices(input=1.0, output=10.0), 1_000_000, 400_000, batch=True) == pytest.approx(0.5)


@pytest.mark.parametrize("prices", [Prices(), Prices(input=1.0), Prices(output=1.0)])
def test_a_price_that_is_not_known_gives_no_cost(prices: Prices) -> None:
    assert cost_usd(prices, 10, 0, 10) is None
