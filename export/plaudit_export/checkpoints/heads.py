"""Reward models that transformers has no class for: a decoder of its own below a head of a trainer's.

They answer as a *ForSequenceClassification does, for one text at a time: `model(input_ids=...).logits`, and have its
parts: `base_model`, and `score`, which makes scores in float32 of the hidden states of one token a text.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

from plaudit_export.checkpoints.loading import network
from plaudit_export.errors import SourceError

# Model types that multiply logits by their `logits_scaling`, by which all others divide.
_MULTIPLYING = ("hyperclovax",)


class HeadedModel(torch.nn.Module):
    """A decoder below a linear head or an MLP.

    Args:
        backbone: the decoder, without any head.
        score: the head.
        pooled_before: the head reads the token before the first one of this id; None: the last.
    """

    def __init__(self, backbone: torch.nn.Module, score: torch.nn.Module, pooled_before: int | None) -> None:
        super().__init__()
        self.base_model = backbone
        self.score = score
        self._pooled_before = pooled_before

    @property
    def config(self) -> Any:
        """The backbone's."""
        return self.base_model.config

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return self.base_model.get_input_embeddings()  # type: ignore[operator]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """`logits`, shape (1, heads), of one text, shape (1, T)."""
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return SimpleNamespace(logits=self.score(hidden[:, self._pooled(input_ids[0])]))

    def along(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The heads at every token of one text, shape (1, T): shape (1, T, heads)."""
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        heads: torch.Tensor = self.score(hidden)
        return heads

    def _pooled(self, ids: torch.Tensor) -> int:
        places = [] if self._pooled_before is None else (ids == self._pooled_before).nonzero().flatten().tolist()
        return places[0] - 1 if places else -1  # before the very first: -1 again, as in the trainer's own class


class TokenLogitsModel(torch.nn.Module):
    """A language model whose logits of some tokens, behind a text, are its heads."""

    def __init__(self, language_model: torch.nn.Module, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.language_model: Any = language_model
        self.token_ids = list(token_ids)

    @property
    def base_model(self) -> Any:
        """The language model without its head."""
        return network(self.language_model)

    @property
    def config(self) -> Any:
        """The language model's."""
        return self.language_model.config

    @cached_property
    def score(self) -> "TokenLogits":
        """The rows of the language model's head, as they are when asked for first: behind a merge of an adapter."""
        return TokenLogits(self.language_model.get_output_embeddings(), self.token_ids, self.config.get_text_config())

    def get_input_embeddings(self) -> Any:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """`logits`, shape (1, tokens), of one text, by the language model's own forward pass."""
        return SimpleNamespace(logits=self.along(input_ids, attention_mask)[:, -1])

    def along(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The heads at every token of one text, shape (1, T): shape (1, T, tokens)."""
        logits = self.language_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        heads: torch.Tensor = logits[..., self.token_ids]
        return heads


class TokenLogits(torch.nn.Module):
    """Some rows of a language model's head, with the scale and the soft cap that its config gives logits."""

    def __init__(self, head: Any, token_ids: Sequence[int], config: Any) -> None:
        super().__init__()
        rows = list(token_ids)
        self.weight = torch.nn.Parameter(head.weight.detach()[rows].float().clone(), requires_grad=False)
        bias = getattr(head, "bias", None)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach()[rows].float().clone(), False)
        self._scale = _logit_scale(config)
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma's

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, shape (B, tokens), of hidden states, shape (B, hidden)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias) * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


def _logit_scale(config: Any) -> float:
    """What a language model multiplies its logits by: Cohere's `logit_scale`; Granite divides by `logits_scaling`."""
    scaling = float(getattr(config, "logits_scaling", None) or 1)
    if config.model_type in _MULTIPLYING:
        return scaling
    return float(getattr(config, "logit_scale", None) or 1) / scaling


def build_head(source: str, name: str, weights: Mapping[str, torch.Tensor], hidden_size: int) -> torch.nn.Module:
    """The head of these weights: one linear layer, or several with ReLU between them.

    Args:
        source: the directory.
        name: of the head's module.
        weights: the head's, by their names from `name` on: `weight` and `bias`, or `0.weight`, `2.weight` and so on.
        hidden_size: of the backbone.

    Raises:
        SourceError: they make no such head on this backbone.
    """
    layers = sorted({key.rpartition(".")[0] for key in weights}, key=lambda layer: (len(layer), layer))
    expected = [""] if layers == [""] else [str(2 * index) for index in range(len(layers))]
    names = {f"{layer}.{part}".removeprefix(".") for layer in expected for part in ("weight", "bias")}
    biases = {name for name in names if name.endswith("bias")}
    if not weights or not names - biases <= set(weights) <= names:
        stored = ", ".join(sorted(weights)) or "none at all"
        raise SourceError(f"{source}: the head {name} has weights of an unsupported form: {stored}")
    modules: list[torch.nn.Module] = []
    size = hidden_size
    for layer in layers:
        prefix = f"{layer}." if layer else ""
        linear = _linear(
            source, f"{name}.{prefix}weight", weights[f"{prefix}weight"], weights.get(f"{prefix}bias"), size
        )
        modules += [torch.nn.ReLU(), linear] if modules else [linear]
        size = linear.out_features
    return (modules[0] if len(modules) == 1 else torch.nn.Sequential(*modules)).eval().requires_grad_(False)


def num_outputs(score: Any) -> int:
    """Of a head that `build_head` made."""
    last: Any = score[-1] if isinstance(score, torch.nn.Sequential) else score
    return int(last.out_features)


def _linear(
    source: str, name: str, weight: torch.Tensor, bias: torch.Tensor | None, in_features: int
) -> torch.nn.Linear:
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != in_features:
        raise SourceError(
            f"{source}: {name} has shape {tuple(weight.shape)}, but the model gives {in_features} numbers; check "
            "that it is the head of this model"
        )
    if bias is not None and bias.numel() != weight.shape[0]:
        raise SourceError(
            f"{source}: the bias of {name} has shape {tuple(bias.shape)}, but its weight {tuple(weight.shape)}; "
            "check that it is the head of this model"
        )
    linear = torch.nn.Linear(in_features, weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.float()
    if bias is not None:
        linear.bias.data = bias.float().reshape(-1)
    return linear
