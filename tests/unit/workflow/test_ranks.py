"""Processes of a run on several GPUs, as they are started, and what is made of their last words; all are made up."""

import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest

from vlmtune.engine.oom import OutOfMemory
from vlmtune.engine.ranks.join import Place
from vlmtune.engine.ranks.single import VISIBLE
from vlmtune.errors import VlmtuneError
from vlmtune.workflow import ranks
from vlmtune.workflow.ranks import Process, Word

LOST = Word(failure="Connection closed by peer")
BAD_ROW = Word(error=VlmtuneError("rows.jsonl:3: no such picture"))


@pytest.fixture
def said(monkeypatch):
    """A function that returns the outcome of processes with these last words; a number is how one was ended."""
    monkeypatch.setattr(ranks, "LAST_WORDS_S", 0.05)

    def run(*words: Word | int | None):
        processes = []
        for word in words:
            pipe, end = multiprocessing.Pipe(duplex=False)
            exitcode = word if isinstance(word, int) else None
            processes.append(Process(SimpleNamespace(exitcode=exitcode, join=lambda: None), pipe))
            if isinstance(word, Word):
                end.send(word)
            if word is not None:  # one that waits for its GPU says nothing, and lives
                end.close()
            kept.append(end)
        return ranks._outcome(processes, ranks._last_words(processes))

    kept = []
    yield run
    for end in kept:
        end.close()


def test_the_first_ones_report_is_that_of_all(said):
    assert said(Word("the first"), Word("the second")) == "the first"


@pytest.mark.parametrize("words", [(LOST, BAD_ROW), (BAD_ROW, None), (-9, BAD_ROW)])
def test_what_the_user_can_change_is_said_before_what_followed_from_it(said, words):
    with pytest.raises(VlmtuneError, match="no such picture"):
        said(*words)


def test_one_that_waits_for_ever_is_not_waited_for(said):
    began = time.monotonic()
    with pytest.raises(VlmtuneError, match="process 1 of 3 was ended by signal SIGKILL; the others were stopped"):
        said(None, -9, LOST)
    assert time.monotonic() - began < 2


def test_out_of_memory_on_any_gpu_is_that_of_the_run(said):
    error = OutOfMemory("out of GPU memory at rows.jsonl:1", "all of it", 2**30)
    outcome = said(LOST, Word(error))
    assert isinstance(outcome, OutOfMemory)
    assert (str(outcome), outcome.available_bytes) == (str(error), 2**30)


def test_a_stop_outside_of_the_steps_is_one(said):
    with pytest.raises(KeyboardInterrupt):
        said(Word(interrupted=True), LOST)


def test_a_bug_keeps_its_traceback(said):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        said(LOST, Word(failure="Traceback …\nZeroDivisionError"))


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
    context = SimpleNamespace(Process=Started, Pipe=lambda: (ends, ends))
    monkeypatch.setattr(ranks.multiprocessing, "get_context", lambda how: context)
    places = [Place(number, 2, gpu, "store") for number, gpu in enumerate(("2", "5"))]
    with ranks._started(places):
        assert Started.seen == ["2", "5"] and os.environ.get(VISIBLE) == before


def test_processes_that_read_images_begin_as_in_a_run_on_one_gpu(monkeypatch):
    monkeypatch.setattr(os, "setsid", lambda: None, raising=False)
    monkeypatch.setattr(ranks, "_end_with_parent", lambda: None)
    monkeypatch.setattr(ranks, "_said", lambda place, pipe: multiprocessing.get_start_method())
    usual = multiprocessing.get_start_method()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    multiprocessing.set_start_method("spawn", force=True)  # as it is in a process that was spawned
    try:
        ranks._work(Place(0, 2, None, "store"), theirs)
        assert ours.recv() == usual
    finally:
        multiprocessing.set_start_method(usual, force=True)
