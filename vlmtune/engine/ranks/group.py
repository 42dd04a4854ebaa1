"""What the processes of a run tell each other; alone, a process hears itself.

Small things go over the CPU (gloo): it sees at once that a process is gone, where NCCL would wait for it.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from vlmtune.models.layers.peers import Peers

FIRST_NUMBERS = 2**20
"""As many as make NCCL take what larger sums and gathers take."""


@dataclass
class Communication:
    """What the sums over all processes take of this one's GPU."""

    taken_bytes: int = 0
    """Outside of PyTorch's allocator; measured at the first of each kind."""


COMMUNICATION = Communication()


class LostPeer(Exception):
    """Another process of the run has ended; what ended it is its own to say."""


def size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Return which of them this one is, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this process writes, shows and decides for all."""
    return number() == 0


def total(values: list[float]) -> list[float]:
    """Return the sums of all processes' numbers."""
    if size() == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64)
    with _peers_there():
        dist.all_reduce(summed)
    return summed.tolist()


def add_up(flat: Tensor) -> None:
    """Replace a tensor by the sum of all processes'."""
    with _peers_there():
        dist.all_reduce(flat)


def gather(whole: Tensor, own: Tensor) -> None:
    """Fill a tensor with every process's share of it, the first one's first."""
    with _peers_there():
        dist.all_gather_into_tensor(whole, own)


def peers() -> Peers:
    """Return the processes that share a model's layers; what the first gather takes of this GPU is noted.

    To be called by all.
    """
    if torch.cuda.is_available():
        own, whole = (torch.zeros(number, device="cuda") for number in (FIRST_NUMBERS, size() * FIRST_NUMBERS))
        COMMUNICATION.taken_bytes += taken_by(lambda: gather(whole, own))
    return Peers(number(), size(), gather)


def taken_by(first: Callable[[], None]) -> int:
    """Return what is taken of this GPU outside of PyTorch's allocator when this is done for the first time."""
    torch.cuda.synchronize()
    free_bytes, _ = torch.cuda.mem_get_info()
    first()
    torch.cuda.synchronize()
    return free_bytes - torch.cuda.mem_get_info()[0]


def told_by_first(value: Any) -> Any:
    """Return the first process's value."""
    if size() == 1:
        return value
    box = [value]
    with _peers_there():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Return every process's value, the first one's first."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    with _peers_there():
        dist.all_gather_object(found, value)
    return found


def place_on_machine() -> tuple[int, int]:
    """Return which of the processes of this machine this one is, and how many they are."""
    hosts = gathered(socket.gethostname())
    here = [process for process, host in enumerate(hosts) if host == hosts[number()]]
    return here.index(number()), len(here)


@contextmanager
def first_alone(needed: bool = True) -> Iterator[None]:
    """Let the first process do this before the others do: it keeps on disk what they then find."""
    if needed and not is_first():
        told_by_first(None)
    yield
    if needed and is_first():
        told_by_first(None)


@contextmanager
def _peers_there() -> Iterator[None]:
    """Make of the libraries' errors about a connection one that says what it means."""
    try:
        yield
    except RuntimeError as error:
        raise LostPeer(str(error)) from error
