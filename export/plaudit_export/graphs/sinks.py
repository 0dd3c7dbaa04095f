"""Attention with a sink (gpt-oss), in an order of sums that padding does not change.

transformers puts the sink's logit behind those of the keys. A padded row has more keys, so the sink stands elsewhere,
and the sum of the softmax has other last bits. Here it stands first, and masked keys only add zeros at the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.masking_utils import eager_mask

from plaudit_export.graphs.causal_attention import attending

_NAME = "plaudit_sink_first"


@contextmanager
def sinks_first(base: Any) -> Iterator[None]:
    """Inside, a decoder whose layers have sinks attends this way; others are as they were."""
    if not any(hasattr(module, "sinks") for module in base.modules()):
        yield
        return
    with attending(base, _NAME, _attend, eager_mask):
        yield


def _attend(
    module: Any,
    query: torch.Tensor,  # (B, Q, T, D)
    key: torch.Tensor,  # (B, H, S, D)
    value: torch.Tensor,  # (B, H, S, D)
    attention_mask: torch.Tensor | None,  # (B, 1, T, S), added
    *,
    scaling: float,
    s_aux: torch.Tensor,  # (Q,)
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers: (B, T, Q, D)."""
    groups = module.num_key_value_groups
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    sinks = s_aux.reshape(1, -1, 1, 1).expand(query.shape[0], -1, query.shape[-2], -1)
    shares = torch.softmax(torch.cat([sinks, logits], dim=-1), dim=-1)[..., 1:]
    return (shares.to(value.dtype) @ value).transpose(1, 2).contiguous(), None
