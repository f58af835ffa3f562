"""Attention of packed rows, each row by itself, so that no work goes into what a row must not see anyway.

The stock way is one square of the whole sequence under a mask: with three rows in it, about six times the work.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from itertools import pairwise
from typing import Any

logger = logging.getLogger("newsjuice.finetune")

PACKED_ATTENTION = "packed_sdpa"


def use_packed_attention(model: Any) -> None:
    """Let `model` attend row by row wherever a batch says where its rows begin (`cu_seq_lens_q`, from TRL's packing collator).

    Batches that do not say so are computed as with `sdpa`: padded ones, and single rows. A model with a sliding window or
    chunks keeps its stock attention, since only its masks know what is out of a token's reach.
    """
    if not attends_to_everything(model.config):
        logger.info("some layers do not attend to the whole row: packed rows are kept apart by the model's own masks")
        return
    _register()
    model.set_attn_implementation(PACKED_ATTENTION)


def attends_to_everything(config: Any) -> bool:
    """Whether every layer of a model with this configuration attends to all tokens before a token."""
    text = config.get_text_config()
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        return False
    return getattr(text, "sliding_window", None) is None or not getattr(text, "use_sliding_window", True)


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*args: Any, attention_mask: Any = None, **options: Any) -> Any:
        # Without padding nothing is hidden but the future and the other rows, and both are the attention's own business.
        return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **options)

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, mask)


def packed_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, cu_seq_lens_q: Any = None, **options: Any
) -> tuple[Any, None]:
    """Causal attention within each row of a packed batch of one sequence; shapes as transformers has them.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, head size).
        key: (1, key-value heads, tokens, head size).
        value: like `key`.
        attention_mask: a mask of an unpacked batch, or None.
        cu_seq_lens_q: where rows begin, and the end of the last; None: the batch is not packed.
        options: for SDPA.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if cu_seq_lens_q is None or attention_mask is not None:
        attended: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return attended
    if query.device.type == "cuda" and query.dtype == torch.bfloat16:  # GPUs with bf16 have the flash kernel
        return _on_gpu(module, query, key, value, cu_seq_lens_q, options), None
    bounds = cu_seq_lens_q.tolist()
    rows = []
    for start, end in pairwise(bounds):
        row = (part[:, :, start:end] for part in (query, key, value))
        rows.append(sdpa_attention_forward(module, *row, None, **options)[0])
    return torch.cat(rows, dim=1), None


def _on_gpu(module: Any, query: Any, key: Any, value: Any, bounds: Any, options: dict[str, Any]) -> Any:
    """All rows in one flash kernel, which takes their bounds from the GPU's memory, so that nothing waits for it."""
    from torch.nn.attention.varlen import varlen_attn

    longest, scale = options["max_length_q"], options.get("scaling")
    tokens = (part[0].transpose(0, 1) for part in (query, key, value))
    attended = varlen_attn(
        *tokens, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=module.num_key_value_groups > 1
    )
    return attended[None]
