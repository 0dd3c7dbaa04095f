"""What this process may use of its machine: cores and memory, no more than its cgroups allow.

A CPU quota is time, not cores: under one of 2 CPUs, a process sees every core of its machine, and where it computes on
all of them, the kernel stops it for most of each period. `os.process_cpu_count` knows the affinity alone.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Cores of the affinity (which a cpuset bounds, too), or the quota rounded up, whichever is less; at least 1."""
    return math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota(_read(_OWN_CGROUPS), _CGROUPS)))


def memory_bytes() -> int:
    """Memory of the machine, or the limit of the cgroups, whichever is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(physical, memory_limit(_read(_OWN_CGROUPS), _CGROUPS)))


def cpu_quota(own_cgroups: str, mount: Path) -> float:
    """CPUs that the cgroups of a process may keep busy on average: the least of them and their parents; inf: no limit.

    A container may see paths of its host, while its own cgroup is mounted as the root: a directory that is not there
    says nothing. What it cannot see of its parents is not known.

    Args:
        own_cgroups: Content of `/proc/self/cgroup`.
        mount: Where version 2 is mounted, or the controllers of version 1 are.
    """
    files = ["cpu.max"], "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    return min(map(parse_quota, _texts(own_cgroups, mount, *files)), default=math.inf)


def memory_limit(own_cgroups: str, mount: Path) -> float:
    """Bytes that the cgroups of a process may hold; as `cpu_quota`."""
    files = ["memory.max"], "memory", ["memory.limit_in_bytes"]
    return min(map(parse_bytes, _texts(own_cgroups, mount, *files)), default=math.inf)


def parse_quota(text: str) -> float:
    """CPUs of `QUOTA PERIOD`, both in microseconds; inf where it is no limit (`max`, -1) or cannot be read."""
    try:
        quota_us, period_us = map(int, text.split())
    except ValueError:
        return math.inf
    return quota_us / period_us if quota_us > 0 and period_us > 0 else math.inf


def parse_bytes(text: str) -> float:
    """A number of bytes; inf where it is no limit (`max`, -1) or cannot be read."""
    try:
        limit = int(text)
    except ValueError:
        return math.inf
    return limit if limit > 0 else math.inf


def _texts(
    own_cgroups: str, mount: Path, files: Sequence[str], controller: str, files_v1: Sequence[str]
) -> Iterator[str]:
    """What the files say of each cgroup from that of the process up to the root, in both versions."""
    for line in own_cgroups.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            root, names = mount, files
        elif controller in controllers.split(","):
            root, names = mount / controller, files_v1
        else:
            continue
        own = Path(path.lstrip("/"))
        for cgroup in (own, *own.parents):
            yield " ".join(_read(root / cgroup / name) for name in names)


def _read(path: Path) -> str:
    """Its text, or nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
