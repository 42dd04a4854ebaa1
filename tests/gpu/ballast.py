"""A process that holds the rest of a card: what runs beside it has no more than it says. It imports torch alone."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

READY = "ready\n"
KERNEL_CODE_BYTES = 2**29
"""CUDA loads the code of kernels when they run first: it is not the allocator's, and not counted against the cap."""


@contextmanager
def beside_ballast(left_bytes: int) -> Iterator[int]:
    """Let another process take what the card has beyond `left_bytes` of this one; yield what is free then, in bytes."""
    free_bytes = left_bytes - torch.cuda.memory_reserved() + KERNEL_CODE_BYTES
    words = [sys.executable, __file__, str(free_bytes)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout.readline() != READY:
            raise RuntimeError("the ballast process took nothing")
        yield torch.cuda.mem_get_info()[0]
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
