"""What is measured on a card at which moment, and when it is said that the estimate was wrong."""

import io

import pytest
import torch
from rich.console import Console

from vlmtune.engine.memory import MemoryWatch
from vlmtune.engine.monitor import LiveView
from vlmtune.runs.memory import Memory
from vlmtune.units import GIB

ESTIMATED = Memory(
    10 * GIB, 9 * GIB, {"weights and adapters": 5 * GIB, "optimizer and workspaces": GIB, "step": 3 * GIB}
)


class Card:
    """A made-up card: what is allocated now, and both peaks."""

    now_gib = 5.0
    allocated_gib = 9.0
    reserved_gib = 10.0


@pytest.fixture
def card(monkeypatch):
    made = Card()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: int(made.now_gib * GIB))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(made.allocated_gib * GIB))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: int(made.reserved_gib * GIB))
    return made


@pytest.fixture
def view():
    return LiveView("run", Console(file=io.StringIO(), width=200))


def said(view) -> str:
    return view._console.file.getvalue()


def run(watch, steps):
    for _ in range(steps):
        watch.on_step_end(None, None, None)


def test_the_parts_are_taken_after_loading_and_after_the_first_step(card, view):
    watch = MemoryWatch(view, None)
    assert watch.measured() is None
    card.now_gib = 5.5
    run(watch, 1)
    card.now_gib = 7.0
    run(watch, 2)
    parts = {"weights and adapters": 5 * GIB, "optimizer and workspaces": GIB // 2, "step": 7 * GIB // 2}
    assert watch.measured() == Memory(10 * GIB, 9 * GIB, parts)
    watch.on_train_end(None, None, None)
    assert watch.difference() is None and said(view) == ""


@pytest.mark.parametrize(("reserved_gib", "is_said"), [(9.6, False), (10.4, False), (10.6, True), (9.4, True)])
def test_peaks_that_part_are_said_at_the_end(card, view, reserved_gib, is_said):
    watch = MemoryWatch(view, ESTIMATED)
    card.reserved_gib = reserved_gib
    run(watch, 3)
    watch.on_train_end(None, None, None)
    assert bool(said(view)) is bool(watch.difference()) is is_said


def test_a_peak_above_the_estimate_is_said_at_once_and_only_once(card, view):
    watch = MemoryWatch(view, ESTIMATED)
    card.reserved_gib = 11.0
    run(watch, 3)
    line = "warning: the measured memory peak, 11.00 GiB, is 10% above the estimate of 10.00 GiB\n"
    assert said(view) == line
    watch.on_train_end(None, None, None)
    assert said(view) == line


def test_a_peak_below_the_estimate_is_said_when_no_step_can_raise_it(card, view):
    watch = MemoryWatch(view, ESTIMATED)
    card.reserved_gib = 9.0
    run(watch, 3)
    assert said(view) == ""
    watch.on_train_end(None, None, None)
    assert said(view) == "warning: the measured memory peak, 9.00 GiB, is 10% below the estimate of 10.00 GiB\n"


def test_one_step_is_too_few_to_call_an_estimate_too_high(card, view):
    watch = MemoryWatch(view, ESTIMATED)
    card.reserved_gib = 9.0
    run(watch, 1)
    watch.on_train_end(None, None, None)
    assert said(view) == "" and watch.difference() is None
