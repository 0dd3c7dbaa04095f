"""How many cores and how much memory a process may use, whatever its machine has."""

import math
import os

import httpx2
import pytest

from plaudit_service.engine import machine
from plaudit_service.engine.machine import cpu_quota, memory_bytes, memory_limit, num_cores, parse_bytes, parse_quota

QUOTAS = {
    "200000 100000\n": 2.0,
    "150000 100000": 1.5,
    "5000 10000": 0.5,
    "max 100000\n": math.inf,
    "-1\n 100000\n": math.inf,  # version 1 without a limit
    "0 100000": math.inf,
    "100000 0": math.inf,
    "100000": math.inf,
    "1e5 100000": math.inf,
    "two 100000 100000": math.inf,
    "": math.inf,
}


@pytest.mark.parametrize(("text", "cpus"), QUOTAS.items())
def test_a_quota_is_its_time_by_its_period_and_what_is_none_limits_nothing(text, cpus):
    assert parse_quota(text) == cpus


V1 = "5:cpuset:/jobs/one\n4:cpu,cpuacct:/jobs/one\n0::/jobs/one\n"

TREES = {
    "a container that sees its own cgroup as the root": ("0::/\n", {"cpu.max": "250000 100000"}, 2.5),
    "its own limit is the tighter": (
        "0::/pod/one\n",
        {"pod/cpu.max": "400000 100000", "pod/one/cpu.max": "100000 100000"},
        1.0,
    ),
    "its parent's limit is the tighter": (
        "0::/pod/one\n",
        {"pod/cpu.max": "100000 100000", "pod/one/cpu.max": "400000 100000"},
        1.0,
    ),
    "only the parent of its parent has a limit": (
        "0::/slice/pod/one\n",
        {"slice/cpu.max": "300000 100000", "slice/pod/cpu.max": "max 100000", "slice/pod/one/cpu.max": "max 100000"},
        3.0,
    ),
    "a sibling's limit is not its own": ("0::/pod/one\n", {"pod/two/cpu.max": "100000 100000"}, math.inf),
    "version 1": (V1, {"cpu/jobs/one/cpu.cfs_quota_us": "150000\n", "cpu/jobs/one/cpu.cfs_period_us": "100000\n"}, 1.5),
    "version 1 without a limit": (
        V1,
        {"cpu/jobs/one/cpu.cfs_quota_us": "-1\n", "cpu/jobs/one/cpu.cfs_period_us": "100000\n"},
        math.inf,
    ),
    "version 1 in a container that sees its host's paths": (
        V1,
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        2.0,
    ),
    "a quota without its period": (V1, {"cpu/cpu.cfs_quota_us": "200000\n"}, math.inf),
    "a cgroup whose name has a colon": ("0::/a:b\n", {"a:b/cpu.max": "100000 100000"}, 1.0),
    "a cgroup outside of what the container sees": ("0::/../other\n", {"cpu.max": "100000 100000"}, 1.0),
    "no cgroups": ("", {}, math.inf),
    "garbage": ("garbage\n7\n:::\n0\n", {"cpu/cpu.cfs_quota_us": "\x00", "cpu.max": "much"}, math.inf),
}


@pytest.mark.parametrize(("own_cgroups", "files", "cpus"), TREES.values(), ids=TREES)
def test_the_tightest_quota_from_a_cgroup_up_to_the_root_counts(tmp_path, own_cgroups, files, cpus):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(own_cgroups, tmp_path) == cpus


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("210000 100000", 3), ("1000 100000", 1), ("6400000 100000", 8)],
)
def test_cores_are_those_of_the_affinity_or_the_quota_rounded_up_whichever_is_less(
    tmp_path, monkeypatch, quota, expected
):
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert num_cores() == expected


@pytest.mark.parametrize(
    ("text", "limit"),
    [("1073741824\n", 1 << 30), ("max\n", math.inf), ("-1", math.inf), ("", math.inf), ("1G", math.inf)],
)
def test_a_limit_of_memory_is_a_number_of_bytes_and_what_is_none_limits_nothing(text, limit):
    assert parse_bytes(text) == limit


MEMORY = {
    "version 2, its own": ("0::/pod/one\n", {"pod/memory.max": "8000", "pod/one/memory.max": "2000"}, 2000),
    "version 2, its parent's": ("0::/pod/one\n", {"pod/memory.max": "2000", "pod/one/memory.max": "max"}, 2000),
    "version 1": ("7:cpu,cpuacct:/one\n6:memory:/one\n", {"memory/one/memory.limit_in_bytes": "3000\n"}, 3000),
    "none": ("0::/\n", {"memory.max": "max"}, math.inf),
}


@pytest.mark.parametrize(("own_cgroups", "files", "limit"), MEMORY.values(), ids=MEMORY)
def test_the_tightest_limit_of_memory_from_a_cgroup_up_to_the_root_counts(tmp_path, own_cgroups, files, limit):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert memory_limit(own_cgroups, tmp_path) == limit


@pytest.mark.parametrize(("limit", "expected"), [("max", 8000), ("9000", 8000), ("2000", 2000)])
def test_the_memory_is_that_of_the_machine_or_the_limit_whichever_is_less(tmp_path, monkeypatch, limit, expected):
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 2000}.__getitem__)
    assert memory_bytes() == expected


def test_the_engines_threads_are_the_cores_unless_the_operator_says_how_many(serve, tiny_bundle):
    bundle = tiny_bundle()
    for env, expected in (({}, num_cores()), ({"PLAUDIT_NUM_THREADS": "3"}, 3)):
        with serve(bundle, env=env) as service:
            assert httpx2.get(f"{service.url}/info").json()["num_threads"] == expected
            (starting,) = service.events("starting")
            assert starting["num_threads"] == expected
