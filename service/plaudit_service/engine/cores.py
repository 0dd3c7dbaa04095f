"""How many cores this process may use: those of its affinity, and no more than the CPU quota of its cgroups.

A quota is time, not cores: under one of 2 CPUs, a process sees every core of its machine, and where it computes on all
of them, the kernel stops it for most of each period. `os.process_cpu_count` knows the affinity alone.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Cores of the affinity (which a cpuset bounds, too), or the quota rounded up, whichever is less; at least 1."""
    return math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota(_read(_OWN_CGROUPS), _CGROUPS)))


def cpu_quota(own_cgroups: str, mount: Path) -> float:
    """CPUs that the cgroups of a process may keep busy on average: the least of them and their parents; inf: no limit.

    A container may see paths of its host, while its own cgroup is mounted as the root: a directory that is not there
    says nothing. What it cannot see of its parents is not known.

    Args:
        own_cgroups: Content of `/proc/self/cgroup`.
        mount: Where version 2 is mounted, or the controllers of version 1 are.
    """
    quotas = [parse_quota(text) for text in _quota_texts(own_cgroups, mount)]
    return min(quotas, default=math.inf)


def parse_quota(text: str) -> float:
    """CPUs of `QUOTA PERIOD`, both in microseconds; inf where it is no limit (`max`, -1) or cannot be read."""
    try:
        quota_us, period_us = map(int, text.split())
    except ValueError:
        return math.inf
    return quota_us / period_us if quota_us > 0 and period_us > 0 else math.inf


def _quota_texts(own_cgroups: str, mount: Path) -> Iterator[str]:
    """`QUOTA PERIOD` of each cgroup from that of the process up to the root, in both versions."""
    for line in own_cgroups.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            root, files = mount, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            root, files = mount / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        own = Path(path.lstrip("/"))
        for cgroup in (own, *own.parents):
            yield " ".join(_read(root / cgroup / file) for file in files)


def _read(path: Path) -> str:
    """Its text, or nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
