"""Work on the pieces of large data in processes of their own, before torch is there."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from vlmtune.errors import VlmtuneError

MAX_PROCESSES = 8
"""Each takes some 70 MiB."""
HANGS_AFTER_S = 600
"""A piece is read in seconds, on the slowest drive in less than this."""
OBJECTS_UNTIL_LOOK = 20_000
"""Made and not freed, until Python looks for those that hold each other."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def each(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Yield the results in the order of the tasks; the first error is raised in its place.

    Processes are spawned, not forked: the parent may have threads, and a small process needs little memory. Where they
    cannot be started, or one is killed, the rest of the work is done here.

    Raises:
        VlmtuneError: nothing came for `HANGS_AFTER_S`.
    """
    num_processes = max(1, min(len(tasks), num_cores(), MAX_PROCESSES))
    context = multiprocessing.get_context("spawn")
    num_done = 0
    try:
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin) as pool:
            try:
                for future in [pool.submit(work, task) for task in tasks]:
                    yield _in_time(future)
                    num_done += 1
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool:
        yield from map(work, tasks[num_done:])


def _in_time(future: "Future[Result]") -> Result:
    """Return its result; a process that hangs in a read answers to nothing, and is ended with all others."""
    try:
        return future.result(HANGS_AFTER_S)
    except TimeoutError:
        for child in multiprocessing.active_children():
            child.kill()
        raise VlmtuneError(
            f"the processes that read the data gave nothing for {HANGS_AFTER_S / 60:.0f} minutes",
            "a drive or a mount that does not answer: look at the data files and the pictures that they name",
        ) from None


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """Leave Ctrl-C to the parent, and go when it goes: killed, it could not say so.

    What is made of rows holds no circles, so that they are looked for less often: every 700 objects takes a tenth of
    the time.
    """
    gc.set_threshold(OBJECTS_UNTIL_LOOK)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_go_with_parent, daemon=True).start()


def _go_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
