"""The teacher that a launchpad form stands for."""

from typing import Any

import dagster as dg
import pytest

from newsjuice_pipelines.assets.forms import TeacherForm
from newsjuice_pipelines.assets.podcast import _teacher
from newsjuice_pipelines.podcast.gemini import GeminiConfig, GeminiTeacher
from newsjuice_pipelines.podcast.teacher import ExtractiveTeacher
from newsjuice_pipelines.resources.vertex import VertexAI


class WithToken(VertexAI):
    """Vertex AI with a given token in place of the machine's credentials."""

    def client(self, credentials: Any = None) -> Any:
        from google.oauth2.credentials import Credentials

        return super().client(Credentials("token"))


def chosen(**config: Any) -> Any:
    """The teacher of a run with this launchpad configuration."""
    seen = []

    @dg.asset
    def scripts(config: TeacherForm) -> None:  # type: ignore[valid-type]
        seen.append(_teacher(config, WithToken(project="P")))

    instance = dg.DagsterInstance.ephemeral()
    assert dg.materialize([scripts], run_config={"ops": {"scripts": {"config": config}}}, instance=instance).success
    return seen[0]


def test_limits_retries_and_prices_of_the_form_reach_the_paid_teacher() -> None:
    pytest.importorskip("google.genai")
    settings = {
        "max_output_tokens": 300,
        "timeout_s": 20.0,
        "attempts": 2,
        "first_delay_s": 0.5,
        "max_delay_s": 9.0,
        "input_price": 0.25,
        "output_price": 1.5,
    }

    teacher = chosen(teacher="gemini", gemini_model="gemini-3.1-flash-lite", **settings)

    assert isinstance(teacher, GeminiTeacher)
    assert teacher.model == "gemini-3.1-flash-lite"
    assert teacher.config == GeminiConfig(**settings)


def test_an_untouched_form_gives_the_paid_teacher_its_defaults() -> None:
    pytest.importorskip("google.genai")

    assert chosen(teacher="gemini").config == GeminiConfig()


def test_the_free_teacher_needs_nothing_of_the_form() -> None:
    assert isinstance(chosen(teacher="extractive"), ExtractiveTeacher)
