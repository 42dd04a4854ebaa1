"""Histories of allocations are packed and read, and the allocator's model makes of them what the card made."""

import tarfile
from pathlib import Path

import pytest
from gpu import history
from gpu.compare import MEASURED
from gpu.history import History, Mark, archive, packed, read

from vlmtune.estimate.allocator.caching import AllocatorSettings, CachingAllocator

HISTORIES = sorted(MEASURED.glob("*.history.xz"))


def entry(action: str, address: int, size: int, time_us: int, *frames: dict) -> dict:
    return {"action": action, "addr": address, "size": size, "time_us": time_us, "frames": list(frames)}


def test_a_trace_is_read_as_it_was_packed():
    frame = {"filename": "/somewhere/deep/module.py", "line": 3, "name": "forward"}
    trace = [
        entry("segment_alloc", 4096, 2**21, 1),
        entry("alloc", 4096, 700, 2, frame),
        entry("alloc", 5120, 9, 3, frame),
        entry("free_requested", 4096, 700, 4),
        entry("free_completed", 4096, 700, 4),
        entry("free_completed", 1, 8, 5),
        entry("alloc", 4096, 600, 6),
    ]
    marks = [Mark("train", 3, 1, 2, 3, 4), Mark("step done", 9, 5, 6, 7, 8)]
    found = read(packed(trace, marks))
    assert (found.letters, found.values) == ("saaffa", [2**21, 700, 9, 2, 0, 600])
    assert found.addresses == {"0": 4096}
    assert [(mark["name"], mark["event"], mark["peak_reserved_bytes"]) for mark in found.marks] == [
        ("train", 2, 4),
        ("step done", 6, 8),
    ]
    assert (found.frames, found.stacks) == (["deep/module.py:3 forward"], [[0]])
    assert found.stack_of == {"1": 0, "2": 0}


def test_an_archive_is_followed_by_another_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "ARCHIVE_BYTES", 35_000)
    for name in ("first", "second", "third"):
        archive(tmp_path, name, b"x" * 9500)
    names = {path.name: tarfile.open(path).getnames() for path in sorted(tmp_path.glob("*.tar"))}
    assert names == {"histories-1.tar": ["first.json.xz", "second.json.xz"], "histories-2.tar": ["third.json.xz"]}


def replayed(found: History) -> CachingAllocator:
    """Play the allocations and frees of a run over native segments."""
    allocator, blocks = CachingAllocator(AllocatorSettings()), []
    start = next(mark["event"] for mark in found.marks if mark["name"] == "train")
    for index, (letter, value) in enumerate(zip(found.letters, found.values, strict=True)):
        if index == start:
            allocator.reset_peak()
        if letter == "a":
            blocks.append(allocator.allocate(value))
        elif letter == "f":
            allocator.free(blocks[-value])
        elif letter == "r" and found.letters[index - 1] != "r":
            allocator.empty_cache()
    return allocator


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.name.partition(".history")[0])
def test_the_peaks_of_a_recorded_run_come_out(path: Path):
    found = read(path.read_bytes())
    allocator, shown = replayed(found), found.marks[-1]
    assert allocator.peak_allocated_bytes == shown["peak_allocated_bytes"]
    assert allocator.peak_reserved_bytes == shown["peak_reserved_bytes"]


def test_there_are_recorded_runs():
    assert len(HISTORIES) >= 3
