"""Work on what a stranger wrote, in a process of its own that the system ends when it takes too much."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.units import GIB, KIB

LIMIT_S = 30
"""Of computing: the largest tokenizer takes three."""
LIMIT_BYTES = 2 * GIB
"""Beside what the process has already."""


@contextmanager
def limited() -> Iterator[Executor]:
    """Yield what runs functions one after another behind limits; what they keep is there for those that follow.

    On Linux: a copy of this process costs 50 ms there. Elsewhere one that is started anew would import torch, which
    takes seconds, and memory cannot be limited: functions run in this process.
    """
    if sys.platform != "linux":
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    with ProcessPoolExecutor(1, get_context("fork"), initializer=_limit) as pool:
        yield pool


def problem_of(work: Future) -> str | None:
    """Return in words what has ended a piece of work; None where it came to its end.

    Raises:
        VlmtuneError: the work did, to be shown as it is.
    """
    error = work.exception()
    if isinstance(error, VlmtuneError):
        raise error
    if isinstance(error, BrokenProcessPool | MemoryError):
        return f"it takes more than {LIMIT_S} s or {LIMIT_BYTES // GIB} GiB of memory, or crashes its library"
    if isinstance(error, OSError | ValueError):
        return _first_line(error)
    return f"{type(error).__name__}: {_first_line(error)}" if error else None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _limit() -> None:
    """Bound this process, and let nothing be seen of how it ends."""
    import faulthandler
    import resource

    faulthandler.disable()
    for kind, limit in (
        (resource.RLIMIT_DATA, _data_bytes() + LIMIT_BYTES),
        (resource.RLIMIT_CPU, LIMIT_S),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the parent are not in this process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _data_bytes() -> int:
    """Return what this process has by the system's own count."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmData:")[2].split()[0]) * KIB
