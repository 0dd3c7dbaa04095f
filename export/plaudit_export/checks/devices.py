"""Lets a model compute on a device whose memory holds one of its layers at a time. Knows nothing of texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from plaudit_export.errors import SourceError

# Where a module keeps a weight, by which name, and the weight.
_Place = tuple[dict[str, Any], str, torch.Tensor]


def check_device(device: str) -> None:
    """Refuse a device that torch does not have.

    Raises:
        SourceError: it has none of this name.
    """
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= torch.cuda.device_count():
        raise SourceError(
            f"--device {device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; install "
            "a torch with CUDA, check nvidia-smi, or leave --device at cpu"
        )


@contextmanager
def computing_on(model: torch.nn.Module, device: str) -> Iterator[None]:
    """Inside, `model` computes on the device, on inputs that are there; its weights keep their place on the CPU.

    Each layer's are copied when its turn comes, and dropped behind it. What lies outside of the layers, such as
    embeddings and head, stays on the device until the end.

    Args:
        model: on the CPU.
        device: of torch; `cpu` changes nothing.
    """
    if device == "cpu":
        yield
        return
    layers = _layers(model)
    inside = {id(tensor) for layer in layers for _, _, tensor in _places(layer)}
    hooks: list[Any] = []
    with _moved([place for place in _places(model) if id(place[2]) not in inside], device):
        try:
            for layer in layers:
                hooks += _moved_for_its_turn(layer, device)
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _moved_for_its_turn(layer: torch.nn.Module, device: str) -> list[Any]:
    turns: list[Any] = []

    def begin(*_: Any) -> None:
        turns.append(_moved(_places(layer), device))
        turns[-1].__enter__()

    def end(*_: Any) -> None:
        turns.pop().__exit__(None, None, None)

    return [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end, always_call=True)]


@contextmanager
def _moved(places: list[_Place], device: str) -> Iterator[None]:
    copies = {id(tensor): tensor.detach().to(device) for _, _, tensor in places}
    for store, name, tensor in places:
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        store[name] = torch.nn.Parameter(copies[id(tensor)], False) if is_parameter else copies[id(tensor)]
    try:
        yield
    finally:
        for store, name, tensor in places:
            store[name] = tensor


def _places(module: torch.nn.Module) -> list[_Place]:
    stores = [store for each in module.modules() for store in (each._parameters, each._buffers)]
    return [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Of the lists of modules the one that holds most of the weights."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=lambda each: sum(weight.numel() for weight in each.parameters()), default=[]))
