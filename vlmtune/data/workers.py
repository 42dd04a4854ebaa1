"""The processes that read batches beside the steps: their shared memory, their signals, and what is said when one dies.

Their batches come through files in /dev/shm. One that does not fit there ends the process, or the run waits for ever.
"""

import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING

from vlmtune.compat.trainer import END_PROCESSES, PERSISTENT_PROCESSES
from vlmtune.errors import VlmtuneError
from vlmtune.hardware.machine import SHARED_MEMORY
from vlmtune.plan.types import RunPlan
from vlmtune.signals import stopping_signals

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

PREFETCHED = 2
"""Batches that each data worker has ready (torch, DataLoader's prefetch_factor)."""
HANGS_AFTER_S = 600
"""A process that reads gives a batch in seconds; on the slowest drive in less than this."""
DIED = re.compile(r"DataLoader (?:timed out|worker \(pid(?:\(s\))? (?P<process>\d+).*?\) (?P<how>.+?)(?:\. |\n|$))")
"""What torch says of workers: `is killed by signal: Killed`, `exited unexpectedly`, with an exit code or without."""
LAST_WORD_S = 1.0
GO_ON = "start again with --resume auto"
FETCHED_STEPS = 2
"""Steps whose batches exist at a time: Trainer fetches those of the next one before it lets go of the last."""


def workers_for_training(plan: RunPlan, row: "dict[str, Tensor]", note: Callable[[str], None]) -> int:
    """Return how many data workers a run gets, `row` being the tensors of its largest one."""
    # On their way to a card, batches are copied into pinned memory as soon as they are there.
    rows, batches = (plan.rows_per_step, 1) if plan.pack_tokens else (plan.batch_size, plan.gradient_accumulation_steps)
    held = 0 if plan.device == "cuda" else FETCHED_STEPS * batches
    return fitting_workers(plan.num_workers, rows * num_bytes(row), note, held)


def fitting_workers(wanted: int, batch_bytes: int, note: Callable[[str], None], num_held: int = 0) -> int:
    """Return as many of the wanted data workers as shared memory has room for beside `num_held` batches.

    A container has 64 MB of it unless it is told otherwise: a few photos.
    """
    if not wanted or not SHARED_MEMORY.is_dir():
        return wanted
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    fitting = max(0, (free_bytes // max(batch_bytes, 1) - num_held) // PREFETCHED)
    if fitting >= wanted:
        return wanted
    note(
        f"{SHARED_MEMORY} has {free_bytes / 1e6:.0f} MB free, and a batch takes up to {batch_bytes / 1e6:.0f}: "
        f"hardware.num_workers is {fitting} here, not {wanted} (a container is given more by --shm-size=2g)"
    )
    return fitting


def num_bytes(tensors: "dict[str, Tensor]") -> int:
    """Return what tensors take."""
    return sum(tensor.nbytes for tensor in tensors.values())


class Readers:
    """The processes that read for this one: which row each is at, so that an error can name it, and their end."""

    def __init__(self) -> None:
        self.loaders: list[tuple[DataLoader, ctypes.Array, Callable[[int], str]]] = []
        """Each data loader, two numbers a process, its own and that of its row, and what rows are called."""

    def watch(self, loader: "DataLoader", where: Callable[[int], str]) -> "DataLoader":
        """Let the loader's processes go on when a scheduler or a terminal signals all, and not wait for ever for them.

        The step needs their batches. `where` says what a row of the loader's data set is called; reading one, the data
        set calls its `on_read`.
        """
        if loader.num_workers:
            at = RawArray("q", 2 * loader.num_workers)
            loader.timeout = HANGS_AFTER_S
            loader.worker_init_fn = partial(_begin, loader.worker_init_fn, at)
            self.loaders.append((loader, at, where))
        return loader

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Leave no process behind, and name the row where one of them died or hangs.

        Raises:
            VlmtuneError: that.
        """
        try:
            with self._watched(), self._watched():  # torch raises wherever this process is at: also in the inner one
                yield
                self._end()
        finally:
            self.loaders.clear()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            lost = self._lost(_last_word(error)) if self.loaders else None
            self._kill()
            if lost:
                raise lost from None
            raise

    def _lost(self, error: BaseException) -> VlmtuneError | None:
        """Return the user's error for torch's about its workers, None for any other."""
        said = (str(one) for one in (error.__cause__, error) if isinstance(one, RuntimeError))  # the cause says more
        found = next(filter(None, map(DIED.match, said)), None)
        if found is None:
            return None
        process, how = found["process"], found["how"]
        rows = ", ".join(self._rows(process and int(process))) or "rows that are not known"
        if how is None:
            return VlmtuneError(
                f"the processes that read images gave nothing for {HANGS_AFTER_S / 60:.0f} minutes, at {rows}",
                "a drive that does not answer, or a picture that is never decoded: look at it, or leave its row out",
            )
        why = f"process {process} that reads images {how.strip(' .')}, at {rows}"
        if "Killed" in how:
            return VlmtuneError(
                f"{why}: the system ends processes so where main memory runs out",
                f"fewer hardware.num_workers or a smaller data.image_size take less; {GO_ON}",
            )
        return VlmtuneError(why, f"a picture there ends its decoder: leave that row out; {GO_ON}")

    def _rows(self, process: int | None) -> list[str]:
        """Return what the rows are called that a process, or any, is at."""
        pairs = [(at[slot], at[slot + 1], where) for _, at, where in self.loaders for slot in range(0, len(at), 2)]
        return [where(row - 1) for one, row, where in pairs if row and process in (one, None)]

    def _end(self) -> None:
        """End the processes when all is read: in the middle of an epoch they are about to read what nobody asks for."""
        for loader, *_ in self.loaders:
            if (processes := PERSISTENT_PROCESSES.read(loader)) is not None:
                END_PROCESSES(processes)
        self._kill()

    def _kill(self) -> None:
        """End the processes: one that hangs answers to no signal, and is waited for as this process ends."""
        ours = {at[slot] for _, at, _ in self.loaders for slot in range(0, len(at), 2)}
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
        for child in multiprocessing.active_children():
            if child.pid in ours:
                child.kill()
                child.join()
        if before:
            signal.signal(signal.SIGCHLD, before)


def _last_word(error: BaseException) -> BaseException:
    """Return torch's error about a worker where it is about to come: its broken connection is seen first."""
    if isinstance(error, Exception) and not isinstance(error, VlmtuneError):
        try:
            time.sleep(LAST_WORD_S)
        except RuntimeError as late:
            return late
    return error


READERS = Readers()
"""Of this process."""


def _begin(also: Callable[[int], None] | None, at: ctypes.Array, worker: int) -> None:
    """Make a data worker one that leaves signals to its parent and writes down what it reads."""
    from torch.utils.data import get_worker_info

    def on_read(row: int) -> None:
        at[2 * worker + 1] = row + 1

    for number in stopping_signals():
        signal.signal(number, signal.SIG_IGN)
    at[2 * worker] = os.getpid()
    get_worker_info().dataset.on_read = on_read
    if also:
        also(worker)
