"""Main memory as the kernel's files tell it, with and without control groups."""

from pathlib import Path

import pytest

from vlmtune.hardware.main_memory import (
    MainMemory,
    available_to_this_process,
    own_bytes,
    pinned_block_bytes,
    read_main_memory,
)
from vlmtune.units import GIB

MEMINFO = f"MemTotal: {32 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable: {24 * 2**20} kB\n"
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def stat(prefix: str = "", **sizes: int) -> str:
    return "".join(f"{prefix}{name} {size}\n" for name, size in {"anon": 5, **sizes}.items())


def test_a_machine_without_limits(tmp_path):
    assert read_main_memory(machine(tmp_path, {})) == MainMemory(32 * GIB, 24 * GIB)


def test_a_kernel_without_an_estimate_of_what_is_available(tmp_path):
    root = machine(tmp_path, {"proc/meminfo": f"MemTotal: {32 * 2**20} kB\nMemFree: {2**20} kB\n"})
    assert read_main_memory(root) == MainMemory(32 * GIB, GIB)


def test_a_system_that_does_not_tell(tmp_path):
    assert read_main_memory(tmp_path) is None and own_bytes(tmp_path) == 0


@pytest.mark.parametrize(
    ("own", "folder", "limit", "usage", "prefix"),
    [
        ("0::/\n", "sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("0::/pod/app\n", "sys/fs/cgroup/pod/app", "memory.max", "memory.current", ""),
        ("0::/pod/app\n", "sys/fs/cgroup/pod", "memory.max", "memory.current", ""),
        ("3:cpu:/x\n7:memory:/\n", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        # A container of version 1 names the path that its group has outside, and mounts the group itself.
        (
            "7:memory:/docker/1f\n",
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        ),
    ],
)
def test_a_container_has_what_its_limit_leaves(tmp_path, own, folder, limit, usage, prefix):
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": own,
            f"{folder}/{limit}": f"{8 * GIB}\n",
            f"{folder}/{usage}": f"{5 * GIB}\n",
            f"{folder}/memory.stat": stat(prefix, inactive_file=GIB, active_file=2 * GIB, shmem=GIB),
        },
    )
    assert read_main_memory(root) == MainMemory(8 * GIB, 6 * GIB, is_limited=True)


def test_a_limit_leaves_no_more_than_the_machine_has(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{30 * GIB}\n"}
    root = machine(tmp_path, files | {"sys/fs/cgroup/memory.current": "0\n"})
    assert read_main_memory(root) == MainMemory(30 * GIB, 24 * GIB, is_limited=True)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {"proc/self/cgroup": "7:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{UNLIMITED_V1}\n"},
    ],
)
def test_a_group_without_a_limit_limits_nothing(tmp_path, files):
    assert read_main_memory(machine(tmp_path, files)) == MainMemory(32 * GIB, 24 * GIB)


def test_what_a_process_holds_already_is_its_own_to_use(tmp_path):
    status = "Name:\tpython\nVmRSS:\t 2097152 kB\nRssAnon:\t 1048576 kB\n"
    assert available_to_this_process(machine(tmp_path, {"proc/self/status": status})) == 26 * GIB
    assert available_to_this_process(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("num_bytes", "expected"), [(1, 1), (4096, 4096), (4097, 8192), (3 * GIB, 4 * GIB)])
def test_pinned_blocks_are_powers_of_two(num_bytes, expected):
    assert pinned_block_bytes(num_bytes) == expected


def test_this_machine():
    assert own_bytes() > 10 * 2**20
    memory = read_main_memory()
    assert 0 < memory.available_bytes < memory.total_bytes
