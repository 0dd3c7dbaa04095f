"""Mixtures of experts in a form that can be traced and is fast: each expert computes the tokens that chose it.

A product of one row takes another kernel than one of several, with other last bits. So every expert computes two rows
of zeros more, and a token's score does not depend on which others chose the same expert.
"""

from typing import Any

import torch

_NAME = "plaudit_experts_apart"
_PADDING_ROWS = 2
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


class _Expert(torch.nn.Module):
    """The weights of one expert, which are views of those of all."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))


def take_experts_apart(model: torch.nn.Module) -> None:
    """Give every mixture of transformers' common interface this form, in place and for good: it is for the trace."""
    for module in list(model.modules()):
        if hasattr(module, "is_transposed") and isinstance(getattr(module, "down_proj", None), torch.nn.Parameter):
            _take_apart(module)


def _take_apart(experts: Any) -> None:
    ALL_EXPERTS_FUNCTIONS = _interface()
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _compute)
    names = [name for name, _ in experts.named_parameters(recurse=False) if name.removesuffix("_bias") in _WEIGHTS]
    weights = {name: experts._parameters.pop(name).detach() for name in names}
    experts.apart = torch.nn.ModuleList(
        _Expert({name: weight[index] for name, weight in weights.items()}) for index in range(experts.num_experts)
    )
    experts.config._experts_implementation = _NAME


def _interface() -> Any:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS  # transformers 4 has none

    return ALL_EXPERTS_FUNCTIONS


def _compute(
    experts: Any,
    hidden: torch.Tensor,  # (N, H)
    top_k_index: torch.Tensor,  # (N, k)
    top_k_weights: torch.Tensor,  # (N, k)
) -> torch.Tensor:
    """The experts function of transformers: (N, H)."""
    N = hidden.shape[0]
    rows = torch.nn.functional.pad(hidden, (0, 0, 0, _PADDING_ROWS))
    result = torch.zeros_like(rows)
    always = top_k_index.new_ones(_PADDING_ROWS, dtype=torch.bool)
    for index, expert in enumerate(experts.apart):
        chosen = top_k_index == index
        shares = torch.where(chosen, top_k_weights, 0).sum(dim=-1)
        places = torch.cat([chosen.any(dim=-1), always]).nonzero().squeeze(-1)
        shares = torch.nn.functional.pad(shares, (0, _PADDING_ROWS))
        output = _expert_output(experts, expert, rows.index_select(0, places))
        output = output * shares.index_select(0, places).unsqueeze(-1)
        result = result.index_put((places,), output.to(result.dtype), accumulate=True)
    return result[:N]


def _expert_output(experts: Any, expert: Any, rows: torch.Tensor) -> torch.Tensor:
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = _linear(experts, expert, first, rows)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    output = _linear(experts, expert, "down_proj", inner)
    return experts.post_expert_norm(output) if experts.has_post_expert_norm else output


def _linear(experts: Any, expert: Any, name: str, rows: torch.Tensor) -> torch.Tensor:
    weight = getattr(expert, name)
    return torch.nn.functional.linear(
        rows, weight.T if experts.is_transposed else weight, getattr(expert, f"{name}_bias", None)
    )
