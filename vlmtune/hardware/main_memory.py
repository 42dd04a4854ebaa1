"""Main memory of this machine, or what the container that this process runs in may take of it. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from vlmtune.units import GIB

KIB = 1024
RECLAIMABLE = ("inactive_file", "active_file")
"""Pages of files: counted to the group that read them, given back as soon as they are needed."""


@dataclass(frozen=True)
class MainMemory:
    """What programs may take. Swap is not counted: a training run that swaps stands still."""

    total_bytes: int
    available_bytes: int
    """What new programs may take: free, or held by copies of files that can be read again."""
    is_limited: bool = False
    """Whether a control group, such as a container's, allows less than the machine has."""

    @property
    def in_words(self) -> str:
        """What is available of it."""
        limit = " (the container's limit)" if self.is_limited else ""
        return f"{self.available_bytes / GIB:.1f} of {self.total_bytes / GIB:.1f} GiB{limit}"


@dataclass(frozen=True)
class _Group:
    """The names that one version of control groups has for its files."""

    folder: str
    limit: str
    usage: str
    prefix: str
    """Of the lines in memory.stat that count the group's children too."""


V2 = _Group("sys/fs/cgroup", "memory.max", "memory.current", "")
V1 = _Group("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def read_main_memory(root: Path = Path("/")) -> MainMemory | None:
    """Return main memory as this process may use it; None where the system does not tell.

    Sources: Linux's Documentation/filesystems/proc.rst (MemAvailable), admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst. Every group from the process's own up to the root limits it.
    """
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()}
    machine = MainMemory(kib["MemTotal"] * KIB, kib.get("MemAvailable", kib["MemFree"]) * KIB)
    for total_bytes, available_bytes in _limits(root):
        if total_bytes < machine.total_bytes:
            available_bytes = min(available_bytes, machine.available_bytes)
            machine = MainMemory(total_bytes, available_bytes, is_limited=True)
        elif available_bytes < machine.available_bytes:
            machine = MainMemory(machine.total_bytes, available_bytes, machine.is_limited)
    return machine


def own_bytes(root: Path = Path("/")) -> int:
    """Return what this process holds of main memory already; 0 where the system does not tell."""
    try:
        text = (root / "proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * KIB for line in text.splitlines() if line.startswith("VmRSS:")), 0)


def available_to_this_process(root: Path = Path("/")) -> int | None:
    """Return what this process may hold in all, what it holds already included; None where nobody tells."""
    memory = read_main_memory(root)
    return None if memory is None else min(memory.total_bytes, memory.available_bytes + own_bytes(root))


def pinned_block_bytes(num_bytes: int) -> int:
    """Return what PyTorch pins for a tensor: the next power of two (ATen/core/CachingHostAllocator.h)."""
    return 1 << max(0, num_bytes - 1).bit_length()


def _limits(root: Path) -> list[tuple[int, int]]:
    """Return limit and what is left of it, in bytes, for each group around this process that has a limit."""
    found = []
    for version, path in _groups(root):
        folder = root / version.folder
        inside = folder / path.strip("/")
        for group in (inside, *inside.parents):
            limit = _number(group / version.limit)
            if limit is not None:
                used = (_number(group / version.usage) or 0) - _reclaimable(group / "memory.stat", version.prefix)
                found.append((limit, max(0, limit - used)))
            if group == folder:
                break
    return found


def _groups(root: Path) -> list[tuple[_Group, str]]:
    """Return the version and the path of each control group of this process that counts memory."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found.append((V2, path))
        elif "memory" in controllers.split(","):
            found.append((V1, path))
    return found


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no such file, or it says `max`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(path: Path, prefix: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split() for line in lines)
    return sum(int(counts.get(f"{prefix}{name}", 0)) for name in RECLAIMABLE)
