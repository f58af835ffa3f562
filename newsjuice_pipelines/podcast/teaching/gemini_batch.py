"""Batch jobs of Gemini on Vertex AI, at half price: input written as JSON lines, the job, and its output read back.

Which rows go into a job, when to ask for its state and what to do with rows that it left out is the caller's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.podcast.teaching.batches import BatchState, JobState
from newsjuice_pipelines.podcast.teaching.gemini import GeminiTeacher
from newsjuice_pipelines.podcast.teaching.gemini_errors import describe, translated
from newsjuice_pipelines.podcast.teaching.teacher import TeacherRefused, TeacherReply, TryAgain

if TYPE_CHECKING:
    from google.genai.types import BatchJob, HttpOptions
    from upath import UPath

logger = logging.getLogger("newsjuice.podcast")

# Limits of Vertex AI for one job.
MAX_REQUESTS = 200_000
MAX_INPUT_BYTES = 1_000_000_000
KEYS_FILE = "keys.json"

_STATES: Mapping[str, JobState] = {
    "JOB_STATE_SUCCEEDED": "done",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "done",
    "JOB_STATE_EXPIRED": "done",  # after 24 hours: finished rows are in the output and billed, the others are not
    "JOB_STATE_FAILED": "failed",
    "JOB_STATE_CANCELLED": "cancelled",
}


@dataclass(frozen=True)
class GeminiBatches:
    """Asks a teacher's questions in batch jobs. Calls are asynchronous and raise what `GeminiTeacher.ask` raises.

    Args:
        teacher: model, prompt, settings, prices and client.
        folder: folder for input and output, `gs://bucket/prefix` on the real Vertex AI.
        timeout_s: longest time for one call of the API.

    A job's files are in `folder/name`. They hold articles and scripts, and are left there.
    """

    teacher: GeminiTeacher
    folder: str
    timeout_s: float = 60.0

    async def submit(self, name: str, articles: Mapping[str, str]) -> str:
        """Write the input, start a job with this display name, return the job's resource name.

        After `TryAgain` with `may_be_billed` the job may exist: ask `find`.

        Args:
            name: of the job and its subfolder; the caller's, and different for each job.
            articles: by the caller's key. Each is asked for, also one that is there twice.

        Raises:
            ValueError: none or too many articles, or a name that is no plain one.
            TeacherRefused: a local folder for the real service, no right to write there, and what the service refuses.
        """
        from google.genai import types

        if not articles:
            raise ValueError("a batch job needs at least one article.")
        if len(articles) > MAX_REQUESTS:
            raise ValueError(f"{len(articles):,} requests: a batch job takes at most {MAX_REQUESTS:,}. Split them over jobs.")
        if not name or len(name) > 128 or not all(sign.isalnum() or sign in "-_." for sign in name):
            raise ValueError(f"job name {name!r}: use up to 128 letters, digits, '-', '_' and '.'.")
        self._check_folder()
        base = self._base(name)
        source = base / "input.jsonl"
        with self._storage():
            await asyncio.to_thread(_write_lines, source, (self.request_line(article) for article in articles.values()))
            await asyncio.to_thread(_write_keys, base / KEYS_FILE, ((self._digest(text), key) for key, text in articles.items()))
        config = types.CreateBatchJobConfig(
            display_name=name,
            dest=types.BatchJobDestination(format="jsonl", gcs_uri=(base / "output").as_uri()),
            http_options=self._once(),
        )
        with translated(self.teacher.model):
            async with asyncio.timeout(self.timeout_s):
                job = await self.teacher.client().aio.batches.create(
                    model=self.teacher.model,
                    src=types.BatchJobSource(format="jsonl", gcs_uri=[source.as_uri()]),
                    config=config,
                )
        logger.info("batch job %s with %d requests: %s", name, len(articles), job.name)
        return str(job.name)

    async def find(self, name: str) -> str | None:
        """The resource name of the newest job with this display name; None when there is none."""
        from google.genai import types

        config = types.ListBatchJobsConfig(filter=f'display_name="{name}"', page_size=100, http_options=self._once())
        with translated(self.teacher.model):
            async with asyncio.timeout(self.timeout_s):
                pager = await self.teacher.client().aio.batches.list(config=config)
                found = [job async for job in pager if job.display_name == name]
        return str(max(found, key=_created).name) if found else None

    async def state(self, job: str) -> BatchState:
        """Where a job stands."""
        found = await self._get(job)
        if found is None:
            return BatchState("failed", "the service does not know this job any more")
        name = found.state.name if found.state else "JOB_STATE_UNSPECIFIED"
        error = found.error.message if found.error else None
        if name == "JOB_STATE_EXPIRED":
            error = error or "the job ran out of time; rows that were not finished are missing"
        return BatchState(_STATES.get(name, "waiting"), error)

    async def cancel(self, job: str) -> None:
        """Ask the service to stop a job; what is finished by then is billed and can be read."""
        from google.genai import types

        config = types.CancelBatchJobConfig(http_options=self._once())
        with translated(self.teacher.model):
            async with asyncio.timeout(self.timeout_s):
                await self.teacher.client().aio.batches.cancel(name=job, config=config)

    async def replies(self, name: str, job: str) -> dict[str, TeacherReply]:
        """The replies of an ended job, by key; rows with an error, and rows that are not in the output, are absent.

        Output comes in any order and has no key of ours, so that a row is known by the prompt that Vertex AI repeats. Which
        keys those prompts have is in a file beside the input, so that any run can read them.
        """
        found = await self._get(job)
        if found is None:
            return {}
        folder = found.output_info.gcs_output_directory if found.output_info else None
        folder = folder or (found.dest.gcs_uri if found.dest else None)  # a job that was stopped may name only the latter
        if not folder:
            return {}
        with self._storage():
            keys = await asyncio.to_thread(_read_keys, self._base(name) / KEYS_FILE)
            if keys is None:
                logger.warning("batch job %s: %s is gone, so that its answers cannot be read", job, self._base(name) / KEYS_FILE)
                return {}
            return await asyncio.to_thread(self._read, folder, keys)

    def request_line(self, article: str) -> str:
        """The line of a job's input, the same request that is sent on-line."""
        generation: dict[str, Any] = {"maxOutputTokens": self.teacher.config.max_output_tokens}
        if self.teacher.config.temperature is not None:
            generation["temperature"] = self.teacher.config.temperature
        if self.teacher.facts.thinking:
            generation["thinkingConfig"] = {_camel(name): value for name, value in self.teacher.facts.thinking.items()}
        contents = [{"role": "user", "parts": [{"text": self.teacher.prompt(article)}]}]
        return json.dumps({"request": {"contents": contents, "generationConfig": generation}}, ensure_ascii=False)

    async def _get(self, job: str) -> BatchJob | None:
        """The job; None when the service does not know it."""
        from google.genai import types
        from google.genai.errors import ClientError

        config = types.GetBatchJobConfig(http_options=self._once())
        with translated(self.teacher.model):
            async with asyncio.timeout(self.timeout_s):
                try:
                    return await self.teacher.client().aio.batches.get(name=job, config=config)
                except ClientError as error:
                    if error.code == 404:
                        return None
                    raise

    def _read(self, folder: str, keys: Mapping[str, deque[str]]) -> dict[str, TeacherReply]:
        replies: dict[str, TeacherReply] = {}
        skipped = 0
        for line in _output_lines(folder):
            row = _row(line)
            waiting = keys.get(_sha256(row.prompt)) if row else None
            reply = self._reply(row.response) if row and row.response and waiting else None
            if waiting and reply:
                replies[waiting.popleft()] = reply
            else:
                skipped += 1
        if skipped:
            logger.warning("batch output in %s: %d rows with an error or without a request of ours", folder, skipped)
        return replies

    def _reply(self, response: Mapping[str, Any]) -> TeacherReply | None:
        from google.genai.types import GenerateContentResponse
        from pydantic import ValidationError

        try:
            read = GenerateContentResponse.model_validate(_needed(response))
        except (ValidationError, TypeError, AttributeError):
            return None  # not what the service writes
        if not read.candidates and read.prompt_feedback is None:
            return None  # an error in other words: nothing was generated and nothing blocked
        return self.teacher.reply(read, latency_s=None, mode="batch")

    def _digest(self, article: str) -> str:
        return _sha256(self.teacher.prompt(article))

    def _base(self, name: str) -> UPath:
        from upath import UPath

        return UPath(self.folder) / name

    def _check_folder(self) -> None:
        """The real service reads Cloud Storage only; a local server may read what it likes."""
        address = str(self.teacher.client()._api_client.get_read_only_http_options().get("base_url") or "")
        if "googleapis.com" in address and not self.folder.startswith("gs://"):
            raise TeacherRefused(
                f"batch jobs read and write Cloud Storage, and the folder is {self.folder}: give one as gs://bucket/prefix, "
                "or ask on-line."
            )

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Errors of the folder: a missing right or package is final, all else may pass."""
        try:
            yield
        except ImportError as error:
            raise TeacherRefused(
                f"{self.folder}: {error}. Install the gcp extra: pip install 'newsjuice-pipelines[gcp]'."
            ) from error
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            raise TeacherRefused(f"{self.folder}: {describe(error)}. Check that the folder exists and may be written.") from error
        except OSError as error:
            raise TryAgain(f"{self.folder}: {describe(error)}") from error

    def _once(self) -> HttpOptions:
        from google.genai import types

        return types.HttpOptions(timeout=round(self.timeout_s * 1000), retry_options=types.HttpRetryOptions(attempts=1))


@dataclass(frozen=True)
class _Row:
    prompt: str
    response: Mapping[str, Any]
    """Empty for a row with an error."""


def _row(line: str) -> _Row | None:
    """A line of the output; None when it is not one."""
    try:
        row = json.loads(line)
        prompt = "".join(part["text"] for content in row["request"]["contents"] for part in content["parts"])
        return _Row(prompt, {} if row.get("status") else row.get("response") or {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _needed(response: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a reply is read from. The library refuses fields that it does not know, and Vertex AI writes some."""
    needed: dict[str, Any] = {}
    if response.get("candidates"):
        first = response["candidates"][0]
        parts = (first.get("content") or {}).get("parts") or []
        spoken = [_only(part, "text", "thought") for part in parts]
        needed["candidates"] = [{"content": {"parts": spoken}} | _only(first, "finishReason")]
    if "promptFeedback" in response:
        needed["promptFeedback"] = _only(response["promptFeedback"], "blockReason")
    if "usageMetadata" in response:
        counts = ("promptTokenCount", "cachedContentTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
        needed["usageMetadata"] = _only(response["usageMetadata"], *counts)
    return needed


def _only(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _write_lines(path: UPath, lines: Iterable[str]) -> None:
    """Raises ValueError, and leaves nothing behind, where the input becomes larger than a job takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with path.open("wb") as file:
        for line in lines:
            raw = line.encode() + b"\n"
            size += len(raw)
            if size > MAX_INPUT_BYTES:
                break
            file.write(raw)
    if size > MAX_INPUT_BYTES:
        path.unlink()
        raise ValueError(f"the input is larger than the {MAX_INPUT_BYTES:,} bytes of a batch job: split it over jobs.")


def _output_lines(folder: str) -> Iterator[str]:
    from upath import UPath

    for path in sorted(UPath(folder).rglob("*.jsonl"), key=str):
        with path.open("r", encoding="utf-8") as file:
            yield from (line for line in file if line.strip())


def _write_keys(path: UPath, pairs: Iterable[tuple[str, str]]) -> None:
    """Which prompts (SHA-256) belong to which keys."""
    path.write_text(json.dumps(list(pairs)), encoding="utf-8")


def _read_keys(path: UPath) -> dict[str, deque[str]] | None:
    """Which keys belong to which prompts (SHA-256); None when the file is gone."""
    keys: dict[str, deque[str]] = defaultdict(deque)
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    for digest, key in pairs:
        keys[digest].append(key)
    return keys


def _sha256(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()


def _created(job: BatchJob) -> float:
    return job.create_time.timestamp() if job.create_time else 0.0


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
