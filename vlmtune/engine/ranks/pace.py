"""Processes that train together wait for each other: how long, and those that share layers at every pass."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vlmtune.engine.ranks import group
from vlmtune.models.build import base_of
from vlmtune.models.layers.shards import end_pass, pass_by, shards_of
from vlmtune.plan.types import RunPlan


def keep_pace(model: nn.Module, plan: RunPlan, own_passes: int) -> None:
    """Take part in the passes of a step that others have more of than this process; only packs differ in number."""
    if plan.sharded and plan.pack_tokens:
        for _ in range(max(group.gathered(own_passes)) - own_passes):
            pass_by(model)


@contextmanager
def answering_in_step(model: nn.Module) -> Iterator[None]:
    """Let a model whose layers are shared answer: processes that have written their answers pass by until all have.

    Answers end at other lengths on each. So all tell each other before every pass whether they have one.
    """
    base = base_of(model)
    if shards_of(base) is None:
        yield
        return

    def begin(*_) -> None:
        end_pass(base)
        group.total([1.0])

    hook = base.register_forward_pre_hook(begin)
    try:
        yield
    finally:
        hook.remove()
    end_pass(base)
    while any(group.total([0.0])):
        pass_by(base)


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
