"""Kernels of a simulated step: what each computes and moves, without a card, so that one simulation serves all."""

from collections import Counter
from typing import NamedTuple


class Kernel(NamedTuple):
    """What one launch does; equal ones are counted."""

    kind: str
    """One of `rates.KINDS`; `product`; `attention`, and `masked attention`, which wide heads have too, or either with
    ` backward` behind it, and `varlen attention` (varlen.py); `bus` and `copy`, which the driver does."""
    bytes: int
    """Read and written."""
    numbers: int = 0
    """That are made, one after the other."""
    format: str = ""
    """The number format that products are computed in."""
    flops: int = 0
    """Of products and attention."""
    sizes: tuple[int, ...] = ()
    """Of products: how many, M, N, K. Of attention: heads of all rows, queries, keys, head size; of varlen attention:
    pieces, blocks, scores of a block, head size. Of `bicubic`: blocks of threads."""
    old: bool = False
    """Whether products are computed by kernels written for the tensor cores of Ampere, which run everywhere."""


Kernels = Counter[Kernel]


class Launched(NamedTuple):
    """What a batch launched in forward and backward, by what its number follows."""

    images: Kernels
    """Of the tower and its projector: as many images."""
    tokens: Kernels
    """Of all else."""
    recorded: Kernels
    """What CUDA graphs have launched, and the processor has not: to it a graph is one launch, a kernel of `tokens`."""
