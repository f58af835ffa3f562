"""Chat messages to token ids: one encoding for training and inference, thinking switched off in both.

Cutting an article to its token budget is `chat.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]
IGNORED_LABEL = -100

# Headings instead of control tokens (defect D4); the end token stays, for whether it is trained is a question of its own.
PLAIN_TEMPLATE = """\
{%- for message in messages %}
{{- '### ' + message.role | capitalize + '\\n' + message.content }}
{{- eos_token if message.role == 'assistant' else '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant\\n' }}{% endif %}
"""


class ChatTemplateError(ValueError):
    """The chat template renders a conversation in a way that training or inference cannot use."""


def encode_prompt(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a prompt, up to the point where the answer starts."""
    return _encode(tokenizer, _render(tokenizer, prompt, add_generation_prompt=True))


def encode_example(tokenizer: Any, prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a prompt with its answer, and the labels of the loss: `(ids, labels)`.

    Labels are `IGNORED_LABEL` on the prompt; on the answer they equal the ids, and the last one is the end of the turn.

    Raises:
        ChatTemplateError: the prompt is not a prefix of the conversation, so training and inference would differ.
    """
    prefix = _render(tokenizer, prompt, add_generation_prompt=True)
    whole = _render(tokenizer, [*prompt, *completion], add_generation_prompt=False).rstrip()
    if not whole.startswith(prefix):
        raise ChatTemplateError(
            "the chat template renders the prompt differently once the answer follows it, so the model would be trained on "
            "another context than it sees at inference: use a template that honours enable_thinking=False, as Qwen3's does."
        )
    prompt_ids = _encode(tokenizer, prefix)
    answer_ids = _encode(tokenizer, whole[len(prefix) :])
    return prompt_ids + answer_ids, [IGNORED_LABEL] * len(prompt_ids) + answer_ids


def end_token_ids(tokenizer: Any, generation_config: Any) -> list[int]:
    """Ids that end an answer: those of the generation configuration and the tokenizer's end of turn, sorted."""
    configured = generation_config.eos_token_id
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    ids.add(tokenizer.eos_token_id)
    return sorted(ids - {None})


def plain_text(text: str, tokenizer: Any) -> str:
    """`text` without outer blanks, its control tokens (such as `<|im_end|>`) broken up so that they stay ordinary text."""
    markers = [token for token in tokenizer.get_added_vocab() if token.strip() and not token.isalnum()]
    if markers and any(marker in text for marker in markers):
        pattern = re.compile("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)))
        text = pattern.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}".rstrip(), text)
    return text.strip()


def _render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    plain = [{"role": message["role"], "content": plain_text(message["content"], tokenizer)} for message in messages]
    text: str = tokenizer.apply_chat_template(
        plain, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
    )
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
