"""A process that holds the rest of a card: what runs beside it has no more than it says. It imports torch alone."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

READY = "ready\n"
READY_WITHIN_S = 60.0
KERNEL_CODE_BYTES = 2**29
"""CUDA loads the code of kernels when they run first: it is not the allocator's, and not counted against the cap."""


@contextmanager
def beside_ballast(left_bytes: int) -> Iterator[int]:
    """Let another process take what the card has beyond `left_bytes` of this one; yield what is free then, in bytes."""
    free_bytes = left_bytes - torch.cuda.memory_reserved() + KERNEL_CODE_BYTES
    with holding([sys.executable, __file__, str(free_bytes)]):
        yield torch.cuda.mem_get_info()[0]


@contextmanager
def ballast_on(gpu: str, left_bytes: int) -> Iterator[None]:
    """Let another process hold all but so much of a GPU, which CUDA_VISIBLE_DEVICES names so."""
    with holding([sys.executable, __file__, str(left_bytes)], gpu):
        yield


@contextmanager
def holding(words: list[str], gpu: str | None = None) -> Iterator[None]:
    """Run a command beside this one, once it has said that it is ready.

    Raises:
        RuntimeError: it has ended, or is not ready in time.
    """
    env = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            is_heard, _, _ = select.select([process.stdout], [], [], READY_WITHIN_S)
            if not is_heard or process.stdout.readline() != READY:
                why = "has ended" if is_heard else f"was not ready within {READY_WITHIN_S:g} s"
                raise RuntimeError(f"the process that holds GPU {gpu or 0} {why}")
            yield
        finally:
            process.kill()  # workers of the data loader hold its standard input open too


def take_all_but(free_bytes: int) -> None:
    """Hold all of the card but this much, until standard input ends."""
    torch.zeros(1, device="cuda")
    held = torch.empty(torch.cuda.mem_get_info()[0] - free_bytes, dtype=torch.uint8, device="cuda")
    print(READY, end="", flush=True)
    sys.stdin.read()
    del held


if __name__ == "__main__":
    take_all_but(int(sys.argv[1]))
