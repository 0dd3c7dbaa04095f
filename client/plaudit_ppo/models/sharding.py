"""Weights, gradients and optimizer state of a network spread over the processes: FSDP, and reading what is spread.

A layer's weights are whole only while it computes; the policy's also while it generates, and a state that is written or
read. Of a network that is not sharded, all functions here but `shard` give what is there. DeepSpeed's way of spreading
is in `distributed/deepspeed_learner`; its weights are read and written here.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(
    model: nn.Module, layers: Iterable[nn.Module], *, device: torch.device, processes: int, gathered: str = "float32"
) -> None:
    """Spreads a network over all processes, in place; before its optimizer is made.

    Zhao et al. 2023, arXiv 2304.11277, in PyTorch's second version of it.

    Args:
        model: which is then called as a whole alone.
        layers: parts of it that are gathered one after the other, an inner one before the one around it.
        device: of this process.
        processes: how many there are.
        gathered: "float32", or "bfloat16": what whole weights are in, while each shard, its gradient and its optimizer
            state stay in the type of the parameter. Micikevicius et al. 2018, arXiv 1710.03740, section 3.1.
    """
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = mixed if gathered == "bfloat16" else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (processes,))
    for module in [*layers, model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every process has the whole weights, so that each may make as many forward passes as it likes."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield model
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, are_changed: bool = False) -> Iterator[None]:
    """Inside, parameters that DeepSpeed has spread over the processes are whole; all processes have to enter.

    Args:
        parameters: any; the others are as they are.
        are_changed: what the first process writes into them is kept.
    """
    spread = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with ExitStack() as stack:
        if spread:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(spread, modifier_rank=0 if are_changed else None))
        yield


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process has a shard; all processes have to ask for it.

    Of a weight that DeepSpeed trains in bfloat16, its master in float32.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if tensor.dtype == torch.bfloat16 and _is_trained_by_zero(tensor):
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor = safe_get_full_fp32_param(tensor)
        return master
    if isinstance(tensor, nn.Parameter) and hasattr(tensor, "ds_id"):
        with gathered([tensor]):
            return tensor.detach().clone()
    return tensor


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of `whole`, without asking for it."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's shard of a whole tensor that all processes have, spread as another one is."""
    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    if hasattr(other, "ds_tensor"):
        size = other.ds_tensor.numel()  # the last part is padded
        part = tensor.flatten()[size * torch.distributed.get_rank() :][:size]
        return nn.functional.pad(part, (0, size - part.numel()))
    return tensor


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A network's whole state; all processes have to ask for it, and get nothing with `keep` False.

    Tied weights stay one tensor.
    """
    state = model.state_dict(keep_vars=True)
    wholes: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in wholes:
            complete = whole(tensor).detach()
            wholes[id(tensor)] = complete.cpu() if keep else torch.empty(0)
    return {name: wholes[id(tensor)] for name, tensor in state.items()} if keep else {}


def load_whole_state(model: nn.Module, state: Mapping[str, Tensor], *, partial: bool = False) -> None:
    """Gives a network the state that `whole_state` returned, or a part of it; also ZeRO's copy of what it trains.

    Raises:
        RuntimeError: it is of another network.
    """
    changed = [parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name in state]
    with gathered(changed, are_changed=True):
        own = model.state_dict()
        shards = {name: shard_like(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
        model.load_state_dict(shards, strict=not partial)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state and _is_trained_by_zero(parameter):
            _set_master(parameter, state[name])


def _is_trained_by_zero(tensor: Tensor) -> bool:
    return tensor.requires_grad and (hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"))


def _set_master(parameter: Tensor, value: Tensor) -> None:
    """What ZeRO's optimizer steps from, of which the network's weights are a copy."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    part = shard_like(value, parameter)
    (safe_set_full_fp32_param if part is value else safe_set_local_fp32_param)(parameter, part)
