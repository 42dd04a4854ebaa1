"""The processes that read batches beside the steps: what they may take of shared memory, and which signals they leave.

Their batches come through files in /dev/shm. One that does not fit there ends the process, or the run waits for ever.
"""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.plan.types import RunPlan
from vlmtune.signals import stopping_signals

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2
"""Batches that each data worker has ready (torch, DataLoader's prefetch_factor)."""
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


def leave_signals_to_parent(loader: "DataLoader") -> "DataLoader":
    """Let the loader's processes go on when a scheduler or a terminal signals all: the step needs their batches."""
    loader.worker_init_fn = partial(_begin, loader.worker_init_fn)
    return loader


def _begin(also: Callable[[int], None] | None, worker: int) -> None:
    for number in stopping_signals():
        signal.signal(number, signal.SIG_IGN)
    if also:
        also(worker)
