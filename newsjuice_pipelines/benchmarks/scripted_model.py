"""A model of true size that writes known scripts: dense random weights, except for a table of which token follows which.

Random weights soon repeat one token, which would flatter everything that guesses ahead. Here each script is written token
by token by any engine, in any number format, at the full cost of the architecture. The table sits in the first layer's MLP,
one hidden unit a script token, so that a token's position follows from its id alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newsjuice_pipelines.benchmarks.true_size import QWEN3_0_6B, random_qwen3

FIRST_FREE_ID = 1000  # below it are the control tokens of any tokenizer
SENTENCE_TOKENS = 25  # copied passages are about this long
# How strongly a known token switches its hidden unit on, and how strongly that unit writes the next one. What random
# directions add to either is about a thirtieth of it.
DETECTION = 8.0
WRITING = 3.0
OTHER_LAYERS = 0.02  # the other layers' output weights, next to the usual ones: they cost the same and change nothing


@dataclass(frozen=True)
class Script:
    """A prompt and the script that the model writes for it, as token ids; the script ends with the end token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def made_up_scripts(
    kinds: Sequence[tuple[int, int, float]], prompt_tokens: int, end_id: int, common_prefix_tokens: int = 0
) -> list[Script]:
    """Scripts that copy a share of their tokens from the prompt in passages of a sentence's length, and share no token.

    Args:
        kinds: of each kind its number of scripts, the tokens of one (the end token included), and the share of them that is
            copied, 0 to 1; the others are in no prompt.
        prompt_tokens: of each prompt.
        end_id: the end token.
        common_prefix_tokens: tokens at the start of the prompt that are the same in all, as an instruction is.
    """
    prefix = tuple(range(FIRST_FREE_ID, FIRST_FREE_ID + common_prefix_tokens))
    free = FIRST_FREE_ID + common_prefix_tokens
    scripts = []
    for count, answer_tokens, copied_share in kinds:
        if not 0 <= copied_share <= 1:
            raise ValueError(f"copied_share is {copied_share}: it must lie between 0 and 1.")
        for _ in range(count):
            article = range(free, free + prompt_tokens - common_prefix_tokens)
            new = iter(range(article.stop, article.stop + answer_tokens))
            answer: list[int] = []
            copied = 0
            while len(answer) < answer_tokens - 1:
                length = min(SENTENCE_TOKENS, answer_tokens - 1 - len(answer))
                if copied < copied_share * (len(answer) + 1) and copied + length < len(article):
                    answer += article[copied : copied + length]
                    copied += length
                else:
                    answer += [next(new) for _ in range(length)]
            scripts.append(Script((*prefix, *article), (*answer, end_id)))
            free = article.stop + answer_tokens
    return scripts


def build_scripted(
    scripts: Sequence[Script], tokenizer: Any, out: Path, shape: Mapping[str, int] = QWEN3_0_6B, seed: int = 42
) -> int:
    """Write a Qwen3 in bf16 that answers the prompts of `scripts` with their answers; returns its number of parameters.

    Args:
        scripts: together at most as many answer tokens as the shape has hidden units in an MLP.
        tokenizer: any with a chat template and at most as many tokens as the shape.
        out: an existing empty directory.
        shape: sizes of a `Qwen3Config`.
        seed: decides the weights.
    """
    import torch

    steps = _followers(scripts)
    if len(steps) > shape["intermediate_size"]:
        raise ValueError(f"{len(steps)} script tokens do not fit into {shape['intermediate_size']} hidden units.")
    highest = max(max(step) for step in steps.items())
    if highest >= shape["vocab_size"]:
        raise ValueError(f"token {highest} is outside of a vocabulary of {shape['vocab_size']}: ask for fewer scripts.")
    model = random_qwen3(tokenizer, shape, seed)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.normal_(0, 0.02)
        directions = torch.nn.functional.normalize(embedding, dim=1)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(OTHER_LAYERS)
            layer.mlp.down_proj.weight.mul_(OTHER_LAYERS)
        table = model.model.layers[0].mlp
        norm = shape["hidden_size"] ** 0.5  # of a token's vector behind the RMS norm
        for unit, (token, follower) in enumerate(steps.items()):
            table.gate_proj.weight[unit] = directions[token] * (DETECTION / norm)
            table.up_proj.weight[unit] = directions[token] / norm
            table.down_proj.weight[:, unit] = directions[follower] * WRITING
    model.to(torch.bfloat16)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def _followers(scripts: Sequence[Script]) -> dict[int, int]:
    """The next token of each token, from the end of every prompt to the end of its answer."""
    steps: dict[int, int] = {}
    for script in scripts:
        for token, follower in zip((script.prompt[-1], *script.answer), script.answer, strict=False):
            if token in steps:
                raise ValueError(f"token {token} is followed by two tokens: scripts must not share or repeat a token.")
            steps[token] = follower
    return steps
