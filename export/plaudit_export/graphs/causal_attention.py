"""Attention of a decoder as one operator without a mask: rows are padded on the right, where causality hides padding.

ONNX's Attention joins the keys and values of a prefix with the new ones itself, and takes fewer of their heads than of
the queries' as they are. On CUDA, attention without a mask alone takes the flash kernel at every length.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]

_NAME = "plaudit_causal"
# What layers say to their attention that the operator needs no word of.
_WITHOUT_MEANING = {
    "dropout",
    "position_ids",
    "position_embeddings",
    "is_causal",
    "use_cache",
    "cache_position",
    "output_attentions",  # said by Gemma 2 of transformers 4
}
# Of a probe, whose numbers may differ by the rounding of another kernel.
_PROBE_ROWS, _PROBE_TOKENS = 2, 9
_PROBE_DIFFERENCE = 1e-3


class AttentionLayers:
    """The attention layers of one pass.

    Args:
        past: keys and values of the prefix, of each layer, (B, H, P, D).

    Attributes:
        present: keys and values of prefix and tokens, of each layer that attended, (B, H, P + T, D).
        windows: the sliding windows that layers named, in tokens.
        unknown: what layers said that the operator does not do.
    """

    def __init__(self, past: KeyValues) -> None:
        self._past = past
        self.present: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.windows: set[int] = set()
        self.unknown: set[str] = set()

    def attend(
        self,
        module: Any,
        query: torch.Tensor,  # (B, Q, T, D)
        key: torch.Tensor,  # (B, H, T, D)
        value: torch.Tensor,  # (B, H, T, D)
        _: Any = None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **said: Any,
    ) -> tuple[torch.Tensor, None]:
        """The attention function of transformers: (B, T, Q, D)."""
        past_key, past_value = self._past[module.layer_idx]
        output, present_key, present_value, _ = torch.onnx.ops.attention(
            query, key, value, None, past_key, past_value, is_causal=True, scale=scaling, softcap=softcap or 0.0
        )
        self.present[module.layer_idx] = (present_key, present_value)
        self.windows |= set() if sliding_window is None else {sliding_window}
        self.unknown |= {name for name, value in said.items() if value is not None} - _WITHOUT_MEANING
        return output.transpose(1, 2), None


class NewKeyValues(transformers.DynamicCache):
    """Keeps nothing, and gives the new keys and values as they are: the operator joins them with the prefix's."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new ones."""
        return key_states, value_states


@contextmanager
def maskless(base: Any, past: KeyValues) -> Iterator[AttentionLayers]:
    """Inside, a decoder of transformers attends by the operator, and makes no mask.

    Args:
        base: the decoder, which then has to be given `NewKeyValues`.
        past: as of `AttentionLayers`.
    """
    layers = AttentionLayers(past)
    with attending(base, _NAME, layers.attend, lambda *_, **__: None):
        yield layers


@contextmanager
def attending(base: Any, name: str, attend: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Inside, a decoder of transformers attends by a function of ours.

    Args:
        base: the decoder.
        name: which transformers is to know it by.
        attend: as transformers' attention functions.
        mask: makes the mask for it, as transformers' mask functions.
    """
    before = base.config._attn_implementation
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    base.config._attn_implementation = name
    try:
        yield
    finally:
        base.config._attn_implementation = before


@torch.no_grad()
def is_maskless(base: Any, shapes: list[tuple[int, int, int]], max_tokens: int) -> bool:
    """Whether a decoder gives the same without a mask, by trying: every layer goes by the operator, and no window cuts.

    Args:
        base: the decoder, in float32.
        shapes: heads, and the sizes of a key and of a value, of each layer.
        max_tokens: of the longest text.
    """
    vocab_size = len(base.get_input_embeddings().weight)
    ids = (torch.arange(_PROBE_ROWS * _PROBE_TOKENS) % vocab_size).reshape(_PROBE_ROWS, _PROBE_TOKENS)
    given = {"input_ids": ids, "position_ids": torch.arange(_PROBE_TOKENS).expand(ids.shape), "use_cache": True}
    masked = base(**given, attention_mask=torch.ones_like(ids)).last_hidden_state
    nothing = [
        (torch.zeros(_PROBE_ROWS, heads, 0, size), torch.zeros(_PROBE_ROWS, heads, 0, value))
        for heads, size, value in shapes
    ]
    try:
        with maskless(base, nothing) as layers:
            free = base(**given, attention_mask=None, past_key_values=NewKeyValues()).last_hidden_state
    except Exception:  # noqa: BLE001  a model of another make, which needs its mask or its cache
        return False
    if len(layers.present) != len(shapes) or layers.unknown:
        return False
    if any(window < max_tokens for window in layers.windows | _chunks(base.config)):
        return False
    return bool((free - masked).abs().max() <= _PROBE_DIFFERENCE * masked.abs().max())


def _chunks(config: Any) -> set[int]:
    """Windows and chunks that a mask alone would make, of layers that say nothing of them."""
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ())
    chunk = getattr(text_config, "attention_chunk_size", None)
    window = getattr(text_config, "sliding_window", None) if "sliding_attention" in kinds else None
    return {size for size in (chunk, window) if size}
