"""Log-probabilities of completion tokens whose logits are never there all at once: a chunk of positions at a time.

Knows of a network only that its logits are a function of its backbone's last hidden states.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from plaudit_ppo.errors import ConfigError

_Statistics = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Chunked:
    """What a network that `answer_in_chunks` has changed is called with instead of being asked for logits.

    Attributes:
        ids: shape (B, T), int64, the completion tokens, at the end of the inputs.
        size: positions of a chunk, of all B rows together.
        statistics: of logits (N, V) and ids (N,): two figures for each token, float32 (N,).
    """

    ids: Tensor
    size: int
    statistics: _Statistics


def answer_in_chunks(
    model: PreTrainedModel, *, is_checked: bool = True, agree: Callable[[int], int] = lambda count: count
) -> None:
    """Lets a causal LM be called with `chunked=Chunked(...)`, which returns two tensors of shape (B, T) and no logits.

    The head runs inside the network's forward, so that whatever wraps it (DDP, FSDP, DeepSpeed, PEFT, autocast) sees
    one forward pass as before. With gradients, each chunk is computed again in the backward pass. Chen et al. 2016,
    arXiv 1604.06174.

    Args:
        model: changed in place, whole and before it is wrapped.
        is_checked: whether it is tried at once; False: its tensors have no data.
        agree: from the chunks that this process has to the most that any has. So many are computed, the last of them
            empty, where each one gathers the head's weights from all processes (ZeRO's stage 3).

    Raises:
        ConfigError: its logits are not made of its backbone's last hidden states alone.
    """
    backbone, whole = _backbone(model), model.forward
    if is_checked:
        _check(model, backbone, whole)

    @wraps(whole)
    def forward(*args: Any, chunked: Chunked | None = None, **inputs: Any) -> Any:
        if chunked is None:
            return whole(*args, **inputs)
        T = chunked.ids.shape[1]
        hidden = backbone(*args, **inputs).last_hidden_state[:, -T - 1 : -1].flatten(0, 1)  # (B * T, d)

        def compute(hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            return chunked.statistics(_head(backbone, whole, hidden), ids)

        chunks = list(zip(hidden.split(chunked.size), chunked.ids.flatten().split(chunked.size), strict=True))
        chunks += [(hidden[:0], chunked.ids.flatten()[:0])] * (agree(len(chunks)) - len(chunks))
        parts = [checkpoint(compute, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return tuple(torch.cat(figures).view_as(chunked.ids) for figures in zip(*parts, strict=True))

    model.forward = forward


def _backbone(model: PreTrainedModel) -> nn.Module:
    """What gives a network's head its input; where the base model is an encoder's frame (OPT), its decoder.

    Gemma 3 of transformers 4.57 calls its base model otherwise than by its prefix.
    """
    base = getattr(model, "model", model) if model.base_model is model else model.base_model
    backbone: nn.Module = getattr(base, "decoder", base)
    return backbone


def _head(backbone: nn.Module, whole: Callable[..., Any], hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, d): the network's own forward, with softcap and scale, behind its backbone."""
    with _answering(backbone, BaseModelOutputWithPast(last_hidden_state=hidden[None])):
        logits: Tensor = whole(use_cache=False).logits[0]
    return logits


@contextmanager
def _answering(backbone: nn.Module, output: BaseModelOutputWithPast) -> Iterator[None]:
    """Inside, the backbone returns this, whatever it is called with."""
    own = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: output
    try:
        yield
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own


@torch.no_grad()
def _check(model: PreTrainedModel, backbone: nn.Module, whole: Callable[..., Any]) -> None:
    """Holds the logits of two tokens by the head alone against those of the whole network."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    try:
        logits = whole(**inputs).logits[0]
        alone = _head(backbone, whole, backbone(**inputs).last_hidden_state[0])
        is_same = bool(torch.allclose(logits, alone, rtol=1e-4, atol=1e-5))
    except Exception:  # noqa: BLE001 - an architecture that is built otherwise fails in its own way
        is_same = False
    if not is_same:
        raise ConfigError(
            f"logits_chunk_tokens: {type(model).__name__} does not compute its logits from the last hidden states "
            "alone; set logits_chunk_tokens = 0"
        )
