"""Processes of a run on several GPUs, as they are started."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmtune.engine.ranks.join import Place
from vlmtune.engine.ranks.single import VISIBLE
from vlmtune.workflow import ranks


class Started:
    """Stands for a process that is started: what it would see."""

    seen: list

    def __init__(self, **given) -> None:
        self.kill = self.join = lambda: None

    def start(self) -> None:
        Started.seen.append(os.environ.get(VISIBLE))


@pytest.mark.parametrize("before", ["2,5", None])
def test_a_process_sees_its_gpu_alone_from_its_start(before, monkeypatch):
    """What it is told later may be too late: a library that it imports may have started CUDA."""
    monkeypatch.delenv(VISIBLE, raising=False)
    if before:
        monkeypatch.setenv(VISIBLE, before)
    Started.seen = []
    ends = SimpleNamespace(close=lambda: None)
    context = SimpleNamespace(Process=Started, Pipe=lambda duplex: (ends, ends))
    monkeypatch.setattr(ranks.multiprocessing, "get_context", lambda how: context)
    places = [Place(number, 2, gpu, "store") for number, gpu in enumerate(("2", "5"))]
    with ranks._started(places, ranks.Try(None, Path(), as_json=False, resume=False)):
        assert Started.seen == ["2", "5"] and os.environ.get(VISIBLE) == before
