"""Bytes of tensors that are there at once, by kind, while code runs; also of tensors without data. No networks."""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# These need a second tensor of their input's size while they compute, which no operator shows.
_WITH_A_COPY = {torch.ops.aten.logsumexp.default, torch.ops.aten.multinomial.default}


class LiveMemory(TorchDispatchMode):
    """Inside it, follows every storage that an operator makes until it is freed.

    Args:
        held: tensors that are there before and are not counted, such as weights.
        vocabulary: a tensor whose rows have this many entries is of logits; the rest are activations.

    Attributes:
        peak: bytes by kind at the moment when most were there: "activations", "logits", and what `move` has named.
    """

    def __init__(self, held: Iterable[Tensor], *, vocabulary: int) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._live: dict[int, tuple[str, int]] = {}
        self._held = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in held}
        self._references: dict[int, Any] = {}
        self._now: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        self._compare(args[0] if func in _WITH_A_COPY else None)
        return result

    def move(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Counts what is followed as another kind from now on."""
        for tensor in tensors:
            key = id(tensor.untyped_storage())
            if key in self._live:
                before, size = self._live[key]
                self._add(before, -size)
                self._add(kind, size)
                self._live[key] = (kind, size)

    def now(self, kind: str) -> int:
        """Bytes of one kind that are there."""
        return self._now.get(kind, 0)

    def restart(self) -> None:
        """Forgets the peak so far; what is there still counts."""
        self.peak = dict(self._now)

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._held or key in self._live:
            return
        is_logits = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
        kind, size = "logits" if is_logits else "activations", storage.nbytes()
        self._live[key] = (kind, size)
        self._references[key] = weakref.ref(storage, partial(self._forget, key))
        self._add(kind, size)

    def _forget(self, key: int, _: object) -> None:
        kind, size = self._live.pop(key)
        del self._references[key]
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self._now[kind] = self._now.get(kind, 0) + size

    def _compare(self, copied: Tensor | None) -> None:
        kind = "logits" if copied is not None and copied.shape[-1] == self._vocabulary else "activations"
        extra = 0 if copied is None else copied.numel() * copied.element_size()
        if sum(self._now.values()) + extra > sum(self.peak.values()):
            self.peak = dict(self._now)
            self.peak[kind] = self.peak.get(kind, 0) + extra
