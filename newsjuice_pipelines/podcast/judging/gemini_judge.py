"""Asks a Gemini model single questions as a judge; each answer is paid for once. What is asked is `pairwise.py`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.teaching.gemini_errors import translated
from newsjuice_pipelines.podcast.teaching.gemini_models import gemini_model
from newsjuice_pipelines.podcast.teaching.teacher import RowRefused, TeacherRefused, TryAgain

if TYPE_CHECKING:
    from google.genai import Client

logger = logging.getLogger("newsjuice.judge")

MAX_OUTPUT_TOKENS = 512  # of one line, with room for the few thoughts of a model whose thinking is at its minimum
MAX_THINKING_TOKENS = 4096  # where thinking cannot be switched down: thoughts count as output, and would leave none for the line
TIMEOUT_S = 60
WAITS_S = (1.0, 4.0, 16.0)  # before the second attempt and so on


def gemini_judge(
    client_factory: Callable[[], Client], model: str, answers: Path, waits_s: tuple[float, ...] = WAITS_S
) -> Callable[[str], str]:
    """What asks `model` one question and gives its answer, an empty text when it has none.

    An empty answer is not kept: a later run asks again. The first of each reason is logged.

    Args:
        client_factory: makes a client of google-genai that does not retry by itself.
        model: name of the model on Vertex AI.
        answers: file that keeps every answer at once; what is found there is not asked again.
        waits_s: seconds before each further attempt after an error that may pass.

    Raises:
        TeacherRefused: the model was retired; later, when asked: credentials, permission, or no answer after all attempts.
    """
    facts = gemini_model(model)
    if facts.retired_on is not None:
        raise TeacherRefused(f"{model} was {facts.status}: set NEWSJUICE_GEMINI_MODEL to {', '.join(facts.replacements)}.")
    known = _read(answers)
    clients: list[Client] = []
    reasons: set[str] = set()

    def ask(prompt: str) -> str:
        key = hashlib.sha256(f"{model}\0{prompt}".encode("utf-8", "replace")).hexdigest()
        if key in known:
            return known[key]
        if not clients:
            clients.append(client_factory())
        answer, reason = _ask(clients[0], model, prompt, waits_s)
        if answer:
            known[key] = answer
            _keep(answers, key, answer)
        elif reason not in reasons:
            reasons.add(reason)
            logger.warning("the judge %s gave an empty answer (%s): it is not kept, further ones are not logged", model, reason)
        return answer

    return ask


def _ask(client: Client, model: str, prompt: str, waits_s: tuple[float, ...]) -> tuple[str, str]:
    """The answer, and why it ended."""
    for wait_s in (*waits_s, None):
        try:
            with translated(model):
                response = client.models.generate_content(
                    model=model, contents=prompt.encode("utf-8", "replace").decode("utf-8"), config=_request_config(model)
                )
            if not response.candidates:
                return "", "no candidate"
            reason = response.candidates[0].finish_reason
            return (response.text or "").strip(), str(getattr(reason, "value", reason))
        except RowRefused as error:
            return "", str(error)
        except TryAgain as error:
            if wait_s is None:
                raise TeacherRefused(
                    f"the judge {model} did not answer after {len(waits_s) + 1} attempts ({error}): run again later, the "
                    "answers so far are kept."
                ) from error
            logger.warning("the judge did not answer (%s), again in %g s", error, wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _request_config(model: str) -> Any:
    from google.genai import types

    facts = gemini_model(model)
    return types.GenerateContentConfig(
        max_output_tokens=MAX_OUTPUT_TOKENS if facts.thinking else MAX_THINKING_TOKENS,
        temperature=0.0 if "temperature" in facts.sampling_fields else None,
        thinking_config=types.ThinkingConfig(**facts.thinking) if facts.thinking else None,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        http_options=types.HttpOptions(timeout=TIMEOUT_S * 1000, retry_options=types.HttpRetryOptions(attempts=1)),
    )


def _read(answers: Path) -> dict[str, str]:
    """Answers by key. A last line that a crash tore is cut off, a damaged one is passed over; their questions are asked again."""
    if not answers.exists():
        return {}
    raw = answers.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(answers, len(whole))
    known: dict[str, str] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            key, answer = str(entry["key"]), str(entry["answer"])
        except (ValueError, KeyError, TypeError):
            logger.warning("line %d of %s is damaged: its question is asked again", number, answers)
            continue
        if answer:
            known[key] = answer
    return known


def _keep(answers: Path, key: str, answer: str) -> None:
    with answers.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"key": key, "answer": answer}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
