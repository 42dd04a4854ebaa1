"""Processes that train together wait for each other: how long, and those that share layers at every pass."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vlmtune.engine.ranks import group
from vlmtune.models.layers.shards import pass_by
from vlmtune.plan.types import RunPlan


def keep_pace(model: nn.Module, plan: RunPlan, own_passes: int) -> None:
    """Take part in the passes of a step that others have more of than this process; only packs differ in number."""
    if plan.sharded and plan.pack_tokens:
        for _ in range(max(group.gathered(own_passes)) - own_passes):
            pass_by(model)


class Waiting:
    """How long this process waits for the others in the sums; on a GPU by its own clock, which nothing waits for."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self._marks: list[tuple] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note how long this takes."""
        began = self._mark()
        yield
        self._marks.append((began, self._mark()))

    def _mark(self) -> torch.cuda.Event | float:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float:
        """Return the seconds since this was last asked."""
        marks, self._marks = self._marks, []
        if not self.on_gpu:
            return sum(end - began for began, end in marks)
        torch.cuda.synchronize()
        return sum(began.elapsed_time(end) for began, end in marks) / 1000
