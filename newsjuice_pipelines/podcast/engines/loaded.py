"""A model loaded for greedy decoding, with what every engine in this process needs: encoding, limits, results."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.podcast.engines import EngineError, Request, Result
from newsjuice_pipelines.podcast.training.base_model import load_model, load_tokenizer
from newsjuice_pipelines.podcast.training.chat_tokens import encode_prompt, end_token_ids
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
    """A model, its tokenizer and its greedy generation configuration on one device."""

    model: Any
    tokenizer: Any
    device: Device
    end_ids: list[int]
    context_tokens: int

    @classmethod
    def load(cls, path: Path, device: Device) -> LoadedModel:
        """Load the folder `path`.

        Raises:
            EngineError: its generation configuration asks for more than greedy decoding, which would be ignored.
        """
        from transformers import GenerationConfig

        tokenizer = load_tokenizer(path)
        model = load_model(path, device.dtype, device.type)
        own = model.generation_config
        refuse_altering_settings(own, path)
        end_ids = end_token_ids(tokenizer, own)
        # Sampling settings of the model (temperature, top-k, top-p) have no place in a greedy configuration.
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=end_ids,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0],
        )
        return cls(model, tokenizer, device, end_ids, model.config.max_position_embeddings)

    def encode(self, request: Request) -> list[int]:
        """Token ids of the request's prompt."""
        return encode_prompt(self.tokenizer, request.prompt)

    def too_long(self, request: Request, prompt_tokens: int) -> Result | None:
        """The error result of a request that does not fit into the model's context; None when it fits."""
        if prompt_tokens + request.max_new_tokens <= self.context_tokens:
            return None
        return self.failure(
            request,
            prompt_tokens,
            f"{prompt_tokens} prompt tokens and {request.max_new_tokens} new ones exceed the context of {self.context_tokens}: "
            "shorten the article or ask for fewer new tokens.",
        )

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

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
