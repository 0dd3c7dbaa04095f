"""Reads the log of the CUDA stub, one section from each MARK line to the next. Its lines: README.md."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# Part of a kernel's name: the attention that it belongs to. The first that fits counts.
_ATTENTION = {
    "flash_fwd_splitkv_combine": None,  # goes with flash_fwd_splitkv_kernel
    "flash_fwd": "flash",
    "attention_kernel_batched_impl": "memory-efficient",
    "UnfusedSoftmaxKernel": "unfused",
    "attention_softmax_cuda::": "unfused",
    "kernel_mha": "other",
    "masked_multihead_attention_kernel": "other",
    "fmha_": "other",
    "PagedAttention": "other",
    "PagedLatentAttention": "other",
}


@dataclass
class Section:
    """What the device was asked to do.

    Attributes:
        kernels: by their names without arguments.
        gemms: products, as the log describes them.
        attention: kernels by kind: flash, memory-efficient, unfused, other.
        num_bytes: copied, by direction: H2D, D2H, D2D, H2H.
        devices: on which memory was taken.
        memory_start: bytes in use before; of one device, as are the next two.
        memory_peak: the most in between.
        memory_end: after.
        bad_launches: kernels that a GPU would refuse.
        out_of_memory: allocations that were refused.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    gemms: Counter[str] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    devices: set[int] = field(default_factory=set)
    memory_start: int = 0
    memory_peak: int = 0
    memory_end: int = 0
    bad_launches: list[str] = field(default_factory=list)
    out_of_memory: int = 0


def sections(lines: Iterable[str]) -> dict[str, Section]:
    """The sections of one process's log by the texts of their marks; what comes before the first is left out."""
    section, found = Section(), {}
    reason = None
    for line in lines:
        kind, _, rest = line.rstrip("\n").partition(" ")
        words = rest.split(" ")
        if kind == "MARK":
            in_use = section.memory_end
            section = found[rest] = Section(memory_start=in_use, memory_peak=in_use, memory_end=in_use)
        elif kind == "BADLAUNCH":
            reason = rest
        elif kind == "KERNEL":
            kernel = rest.split(" ", 6)[6]
            section.kernels[_short(kernel)] += 1
            section.attention += Counter([_attention(kernel)] if _attention(kernel) else [])
            section.bad_launches += [f"{reason}: {_short(kernel)}"] if reason else []
            reason = None
        elif kind == "GEMM":
            section.gemms[rest] += 1
        elif kind == "COPY":
            section.num_bytes[words[0]] += int(words[1])
        elif kind in ("MALLOC", "FREE"):
            section.memory_end = int(words[2])
            section.memory_peak = max(section.memory_peak, section.memory_end)
            section.devices |= {int(words[4])} if kind == "MALLOC" else set()
        elif kind == "OOM":
            section.out_of_memory += 1
    return found


def _attention(kernel: str) -> str | None:
    return next((kind for part, kind in _ATTENTION.items() if part in kernel), None)


def _short(kernel: str) -> str:
    return re.split(r"[<(]", kernel.replace("(anonymous namespace)::", "").removeprefix("void "))[0]
