"""Estimates are kept by everything that decides them, and made anew when anything of it changes."""

import dataclasses

import pytest

from vlmtune.estimate import cache
from vlmtune.estimate.report import MemoryReport, PeakAt, Phase, Share

REPORT = MemoryReport(
    model="m",
    preset=None,
    gpu="8gb",
    fits=True,
    peak_reserved_bytes=3,
    peak_allocated_bytes=2,
    device_total_bytes=4,
    budget_bytes=5,
    breakdown=(Share("weights", 2), Share("CUDA context", 2)),
    parts={"step": 2},
    peak_at=PeakAt("step 2", "aten.mm.default", "lm_head"),
    phases=(Phase("load", 1, 1), Phase("step 1", 2, 1)),
    worst_row="a:1",
    tokens={"text": 1, "image": 0, "total": 1},
    flops_per_row=1.5,
    fast=False,
    seconds=0.1,
    versions={"torch": "2"},
)


class Maker:
    """Makes the report and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> MemoryReport:
        self.calls += 1
        return REPORT


def test_the_second_time_it_is_read_and_equal():
    make = Maker()
    assert cache.cached(["plan"], make) == cache.cached(["plan"], make) == REPORT
    assert make.calls == 1


def test_another_plan_card_or_version_is_another_estimate(monkeypatch):
    make = Maker()
    cache.cached(["plan"], make)
    cache.cached(["other plan"], make)
    monkeypatch.setattr(cache, "library_versions", lambda: {"torch": "3"})
    cache.cached(["plan"], make)
    monkeypatch.setattr(cache, "_code", lambda: "changed")
    cache.cached(["plan"], make)
    assert make.calls == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"model": "m"}'])
def test_a_damaged_file_is_made_anew(damage):
    make = Maker()
    cache.cached(["plan"], make)
    (file,) = (cache.cache_folder() / "estimates").glob("*.json")
    file.write_text(damage)
    assert cache.cached(["plan"], make) == REPORT
    assert cache.cached(["plan"], make) == REPORT and make.calls == 2


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    make = Maker()
    assert cache.cached(["plan"], make) == cache.cached(["plan"], make) == REPORT
    assert make.calls == 2


def test_the_oldest_estimates_go_first(monkeypatch):
    monkeypatch.setattr(cache, "KEPT", 2)
    for number in range(4):
        cache.cached([number], lambda number=number: dataclasses.replace(REPORT, preset=str(number)))
    assert len(list((cache.cache_folder() / "estimates").glob("*.json"))) == 2
    make = Maker()
    cache.cached([3], make)
    assert make.calls == 0
