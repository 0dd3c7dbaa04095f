"""A copy of what is trained of a network, which can change places with it: the network as it was.

Of a network spread by FSDP each process keeps its own shard. The copy is in the CPU's memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class KeptWeights:
    """The trained weights of a network as they were when they were kept; at first none.

    Args:
        network: without a wrapper for DDP. DeepSpeed's own copies of weights do not follow a change of places.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._kept: list[Tensor] = []

    @property
    def exist(self) -> bool:
        """Whether any were kept."""
        return bool(self._kept)

    def keep(self) -> None:
        """Keeps the weights that the network has now."""
        self._kept = [_copy(tensor) for tensor in self._trained()]

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the network has the kept weights; where none were kept, its own.

        Must not be left in the middle: a signal whose handler raises would leave the network half of each.
        """
        self._change_places()
        try:
            yield
        finally:
            self._change_places()

    def _change_places(self) -> None:
        for own, kept in zip(self._trained() if self._kept else (), self._kept, strict=True):
            before = _copy(own)
            own.copy_(kept)
            kept.copy_(before)

    def _trained(self) -> list[Tensor]:
        """The trained weights as this process holds them, which FSDP does not gather before they are used again."""
        for module in self._network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return [
            parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()
            for parameter in self._network.parameters()
            if parameter.requires_grad
        ]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)
