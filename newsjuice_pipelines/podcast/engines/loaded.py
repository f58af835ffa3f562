"""A model folder opened for an engine: limits, end tokens, results, and the weights where they run in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from newsjuice_pipelines.podcast.engines import EngineError, EngineOptions, Request, Result
from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import end_token_ids
from newsjuice_pipelines.runtime.devices import Device

# Settings of a model's own generation_config.json that change greedy decoding, and their neutral values.
ALTERING_SETTINGS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
}


Item = TypeVar("Item")


def most_tokens(request: Request) -> int:
    """Tokens of a request in and out, at most."""
    return len(request.tokens) + request.max_new_tokens


def of_like_length(items: Iterable[Item], tokens: Callable[[Item], int]) -> list[list[Item]]:
    """The items in groups, the shortest first, in none of which one has more than twice the tokens of another."""
    groups: list[list[Item]] = []
    for item in sorted(items, key=tokens):
        if groups and tokens(item) <= 2 * tokens(groups[-1][0]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def refuse_altering_settings(own: Any, path: Path) -> None:
    """Raise `EngineError` when a model's own generation settings would change greedy decoding, which engines here ignore."""
    for name, neutral in ALTERING_SETTINGS.items():
        if getattr(own, name, None) not in neutral:
            raise EngineError(
                f"generation_config.json of {path} sets {name}={getattr(own, name)!r}, which greedy decoding here would "
                "ignore: remove it there."
            )


@dataclass
class LoadedModel:
    """A model with its tokenizer and limits; `model` is None where the weights run elsewhere."""

    model: Any
    tokenizer: Any
    device: Device
    end_ids: list[int]
    context_tokens: int
    vocabulary_tokens: int | None = None

    @classmethod
    def load(cls, path: Path, device: Device, options: EngineOptions | None = None) -> LoadedModel:
        """Load the folder `path`, set up to decode as `options` say.

        Raises:
            EngineError: its generation configuration asks for more than greedy decoding, which would be ignored.
        """
        tokenizer = load_tokenizer(path)
        model = load_model(path, device.dtype, device.type)
        own = model.generation_config
        refuse_altering_settings(own, path)
        end_ids = end_token_ids(tokenizer, own)
        model.generation_config = _decoding(options or EngineOptions(), tokenizer, end_ids)
        config = model.config
        return cls(model, tokenizer, device, end_ids, config.max_position_embeddings, config.vocab_size)

    @classmethod
    def without_weights(cls, path: Path, device: Device) -> LoadedModel:
        """The tokenizer and limits of the folder `path`, for an engine that runs the weights outside of PyTorch.

        Raises:
            EngineError: its generation configuration asks for more than greedy decoding, which would be ignored.
        """
        from transformers import AutoConfig, GenerationConfig

        tokenizer = load_tokenizer(path)
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        own = (
            GenerationConfig.from_pretrained(path, local_files_only=True)
            if (path / "generation_config.json").is_file()
            else GenerationConfig.from_model_config(config)
        )
        refuse_altering_settings(own, path)
        return cls(None, tokenizer, device, end_token_ids(tokenizer, own), config.max_position_embeddings, config.vocab_size)

    def unanswerable(self, request: Request) -> Result | None:
        """The error result of a request that the model cannot take: too long, or with ids it does not know; else None."""
        prompt_tokens = len(request.tokens)
        if prompt_tokens + request.max_new_tokens > self.context_tokens:
            return self.failure(
                request,
                prompt_tokens,
                f"{prompt_tokens} prompt tokens and {request.max_new_tokens} new ones exceed the context of "
                f"{self.context_tokens}: shorten the article or ask for fewer new tokens.",
            )
        # On a GPU one unknown id would make every later call of the process fail.
        if self.vocabulary_tokens is not None and not 0 <= min(request.tokens) <= max(request.tokens) < self.vocabulary_tokens:
            return self.failure(
                request,
                prompt_tokens,
                f"the prompt has ids beyond the model's {self.vocabulary_tokens} tokens: encode it with this model's tokenizer.",
            )
        return None

    def answer(
        self, request: Request, prompt_tokens: int, tokens: list[int], ttft_s: float | None, latency_s: float | None
    ) -> Result:
        """The result for the new `tokens` of a request."""
        ended = bool(tokens) and tokens[-1] in self.end_ids
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False)
        return Result(
            request.request_id, tuple(tokens), text.strip(), "eos" if ended else "length", prompt_tokens, ttft_s, latency_s
        )

    @staticmethod
    def failure(request: Request, prompt_tokens: int, error: str) -> Result:
        """The result of a request that could not be answered."""
        return Result(request.request_id, (), "", "error", prompt_tokens, None, None, error)

    def free_scratch(self) -> None:
        """Give back what a failed generation has left on the device, so that the next one has room."""
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        self.free_scratch()


def _decoding(options: EngineOptions, tokenizer: Any, end_ids: list[int]) -> Any:
    """The generation configuration of `options`; the sampling settings of the model itself (top-k, top-p) have no place in it."""
    from transformers import GenerationConfig

    settings: dict[str, Any] = {}
    if options.temperature > 0:
        settings |= {"temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    if options.repetition_penalty != 1.0:
        settings["repetition_penalty"] = options.repetition_penalty
    if options.prompt_lookup_tokens:
        settings["prompt_lookup_num_tokens"] = options.prompt_lookup_tokens
    return GenerationConfig(
        do_sample=options.temperature > 0,
        eos_token_id=end_ids,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0],
        **settings,
    )
