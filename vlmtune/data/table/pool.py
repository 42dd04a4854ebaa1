"""Work on the pieces of large data in processes of their own, before torch is there."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

MAX_PROCESSES = 8
"""Each takes some 70 MiB."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def each(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Yield the results in the order of the tasks; the first error is raised in its place.

    Processes are spawned, not forked: the parent may have threads, and a small process needs little memory. Where they
    cannot be started, or one is killed, the rest of the work is done here.
    """
    num_processes = max(1, min(len(tasks), num_cores(), MAX_PROCESSES))
    context = multiprocessing.get_context("spawn")
    num_done = 0
    try:
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin) as pool:
            for result in pool.map(work, tasks):
                yield result
                num_done += 1
    except BrokenProcessPool:
        yield from map(work, tasks[num_done:])


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """Leave Ctrl-C to the parent, and go when it goes: killed, it could not say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_go_with_parent, daemon=True).start()


def _go_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
