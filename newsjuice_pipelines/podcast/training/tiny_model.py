"""The stand-in base model: a small Qwen3 and its tokenizer, built and pre-trained here in about a minute and a half.

It exists so that the whole chain runs on a laptop with no account. Loading and fetching models is `base_model.py`.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newsjuice_pipelines.runtime.progress import Progress
from newsjuice_pipelines.runtime.seeds import set_seeds

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("newsjuice.base_model")

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, "<think>", "</think>")
HELD_OUT_SHARE = 0.1
MINIMUM_DOCUMENTS = 10

# Words with a leading space, numbers in single digits, runs of punctuation and of white space: as Qwen's tokenizers cut.
WORD_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# ChatML turns. As with Qwen3, the last assistant turn opens with an empty thinking block, and so does the prompt when
# thinking is switched off: then a training text and the prompt of inference share one prefix.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""


class TinyModelError(ValueError):
    """The stand-in model cannot be built from these texts or this configuration."""


@dataclass(frozen=True)
class TinyConfig:
    """Shape and pre-training of the stand-in model. The defaults give 5.2 M parameters in about 100 s on two CPU cores."""

    vocab_size: int = 2048
    """Tokens, special tokens and the 256 bytes included."""
    hidden_size: int = 256
    """Width of the residual stream."""
    intermediate_size: int = 768
    """Width of the gated feed-forward layer."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 8
    """Attention heads."""
    key_value_heads: int = 4
    """Heads of the grouped keys and values."""
    context_tokens: int = 4096
    """Longest sequence the model accepts."""
    steps: int = 500
    """Optimiser steps."""
    batch_size: int = 2
    """Sequences a step."""
    sequence_tokens: int = 256
    """Tokens of a training sequence."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule."""
    warmup_share: float = 0.05
    """Share of the steps with a rising learning rate."""
    weight_decay: float = 0.1
    """AdamW, on matrices only."""
    seed: int = 42
    """Weights, held-out documents and order of the fragments."""


def build_tiny(texts: Sequence[str], config: TinyConfig, out: Path) -> dict[str, Any]:
    """Build a small Qwen3 and its tokenizer from plain texts and write both to `out` in Hugging Face layout.

    A tenth of the documents is held out. The byte-level BPE and the weights see the other documents only.

    Args:
        texts: plain documents, in any order; empty ones and exact repeats are left out and counted.
        config: shape, steps, seed.
        out: an existing empty directory.

    Returns:
        Facts: parameters, tokens, training and held-out loss and the loss of a unigram model on the same held-out
        tokens (nats a token; add-one smoothing, fitted on the training documents), seconds.

    Raises:
        TinyModelError: too few documents, or a shape that does not fit together.
    """
    import torch

    started = time.monotonic()
    _check_shape(config)
    documents = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if len(documents) < MINIMUM_DOCUMENTS:
        raise TinyModelError(
            f"the stand-in model needs at least {MINIMUM_DOCUMENTS} different texts, got {len(documents)}: "
            "give it the articles of the demo corpus, or choose a base model from the hub."
        )
    random.Random(config.seed).shuffle(documents)
    held_out_count = max(1, round(len(documents) * HELD_OUT_SHARE))
    held_out, training = documents[:held_out_count], documents[held_out_count:]

    set_seeds(config.seed)
    tokenizer = _train_tokenizer(training, config)
    training_ids = token_stream(tokenizer, training, turns=True)
    held_out_ids = token_stream(tokenizer, held_out)
    if len(training_ids) <= config.sequence_tokens:
        raise TinyModelError(
            f"the texts have {len(training_ids)} tokens, fewer than one training sequence of {config.sequence_tokens}: "
            "give more text or lower sequence_tokens."
        )
    model = _new_model(tokenizer, config)
    train_loss = _pretrain(model, torch.tensor(training_ids), config)
    held_out_loss = mean_loss(model, torch.tensor(held_out_ids), config.sequence_tokens)
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": len(tokenizer),
        "documents": len(documents),
        "held_out_documents": held_out_count,
        "repeated_or_empty_texts": len(texts) - len(documents),
        "training_tokens": len(training_ids),
        "held_out_tokens": len(held_out_ids),
        "tokens_seen": config.steps * config.batch_size * config.sequence_tokens,
        "train_loss_nats": train_loss,
        "held_out_loss_nats": held_out_loss,
        "unigram_loss_nats": unigram_loss(training_ids, held_out_ids, len(tokenizer)),
        "seconds": round(time.monotonic() - started, 1),
    }
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(_model_card(facts), encoding="utf-8")
    return facts


def unigram_loss(training_ids: Sequence[int], held_out_ids: Sequence[int], vocab_size: int) -> float:
    """Cross-entropy (nats a token) of a unigram model with add-one smoothing; the first held-out token is not scored."""
    counts = Counter(training_ids)
    total = len(training_ids) + vocab_size
    scored = held_out_ids[1:]
    return -sum(math.log((counts[token] + 1) / total) for token in scored) / len(scored)


def mean_loss(model: Any, token_ids: torch.Tensor, sequence_tokens: int) -> float:
    """Mean cross-entropy (nats a token) over a token stream, in windows that overlap by the one token of context."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(token_ids) - 1, sequence_tokens):
            window = token_ids[start : start + sequence_tokens + 1].to(model.device)
            logits = model(input_ids=window[None, :-1], use_cache=False).logits[0].float()
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            count += len(window) - 1
    return total / count


def _check_shape(config: TinyConfig) -> None:
    if config.hidden_size % config.heads or config.heads % config.key_value_heads:
        raise TinyModelError(
            f"hidden_size {config.hidden_size}, heads {config.heads} and key_value_heads {config.key_value_heads} do not "
            "fit: the width must be a multiple of the heads, and these of the key_value_heads."
        )
    if config.vocab_size < 256 + len(SPECIAL_TOKENS):
        raise TinyModelError(f"vocab_size {config.vocab_size} is below the 256 bytes plus {len(SPECIAL_TOKENS)} special tokens.")
    if min(config.steps, config.batch_size, config.sequence_tokens) < 1:
        raise TinyModelError("steps, batch_size and sequence_tokens must be at least 1.")


def _train_tokenizer(texts: Sequence[str], config: TinyConfig) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # else bytes that the texts lack would vanish
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[START_OF_TURN],
        model_max_length=config.context_tokens,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def token_stream(tokenizer: Any, texts: Sequence[str], *, turns: bool = False) -> list[int]:
    """Documents one after another, each closed by the end-of-text token. Text that spells a special token stays text.

    With `turns` every second document is an assistant's turn, so that the chat's control tokens mean something to the
    model: an adapter leaves the embeddings alone, and could hardly teach a model to end with a token it never met.
    """
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    opening = tokenizer(f"{START_OF_TURN}assistant\n<think>\n\n</think>\n\n")["input_ids"]
    closing = tokenizer(f"{END_OF_TURN}\n")["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        encodings = backend.encode_batch(list(texts))
    finally:
        backend.encode_special_tokens = False
    stream: list[int] = []
    for number, encoding in enumerate(encodings):
        stream += [*opening, *encoding.ids, *closing, end] if turns and number % 2 else [*encoding.ids, end]
    return stream


def _new_model(tokenizer: Any, config: TinyConfig) -> Any:
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    end_of_text, end_of_turn = tokenizer.convert_tokens_to_ids([END_OF_TEXT, END_OF_TURN])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            head_dim=config.hidden_size // config.heads,
            max_position_embeddings=config.context_tokens,
            tie_word_embeddings=True,
            eos_token_id=end_of_turn,
            pad_token_id=end_of_text,
            bos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text, bos_token_id=None
    )
    return model


def _pretrain(model: Any, token_ids: torch.Tensor, config: TinyConfig) -> float:
    """Next-token training on random fragments of the token stream; the mean loss (nats a token) of the last tenth of steps."""
    import torch

    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
    )
    warmup = max(1, round(config.steps * config.warmup_share))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    generator = torch.Generator().manual_seed(config.seed)
    offsets = torch.arange(config.sequence_tokens + 1)
    progress = Progress("pre-training the stand-in model", config.steps, "steps")
    losses: list[float] = []
    model.train()
    for _ in range(config.steps):
        starts = torch.randint(len(token_ids) - config.sequence_tokens, (config.batch_size, 1), generator=generator)
        batch = token_ids[starts + offsets]
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise TinyModelError(f"the training loss became {loss.item()} at step {len(losses)}: lower the learning_rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        progress.advance(note=f"loss {losses[-1]:.2f}")
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _model_card(facts: dict[str, Any]) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# Stand-in base model

A Qwen3 of {facts["parameters"]:,} parameters with its own byte-level BPE of {facts["vocab_size"]:,} tokens. It exists to
exercise the whole chain (tuning, merging, generating, reporting) on a machine with no account and no GPU. It is **not** a
useful language model, and nothing that is measured with it says anything about Qwen3-0.6B.

## Training

- Text: {facts["documents"]:,} plain documents, {facts["held_out_documents"]:,} of them held out; the articles that the student is
  later tuned and tested on may be among them, so its scores on these are optimistic.
- Every second training document is framed as an assistant's chat turn; held-out documents are plain.
- Tokens seen: {facts["tokens_seen"]:,} (the training text has {facts["training_tokens"]:,}).
- Loss in nats a token: {facts["train_loss_nats"]:.3f} in training, {facts["held_out_loss_nats"]:.3f} held out; a unigram model
  gets {facts["unigram_loss_nats"]:.3f} on the same held-out tokens.

## Use

The chat template is ChatML with Qwen3's thinking block; pass `enable_thinking=False`, in training as in inference.
"""
