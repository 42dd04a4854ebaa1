"""Attention of a pack's rows in one call: FlashAttention 2's kernels, which give every row whole blocks of its own.

A piece of a row, 128 queries or, on the way back, 128 keys, is one block of threads' own. It goes through the other
ones a block at a time; those that the causal mask cuts take twice as long. Sizes of blocks and of heads:
flash_fwd_launch_template.h and flash_bwd_launch_template.h, and the kernels' names in a profile.
"""

from math import ceil

from torch import Tensor

from vlmtune.estimate.timing.kernels import Kernel
from vlmtune.estimate.timing.products import format_of
from vlmtune.estimate.timing.rates import FP32_BYTES

FORWARD, BACKWARD = "varlen attention", "varlen attention backward"
PIECE = 128
KEYS_OF_NARROW, KEYS, QUERIES = 128, 64, 64
"""Of a block: keys for heads of up to 64 numbers, for wider ones, and queries on the way back."""
WIDTHS = (32, 64, 96, 128, 192, 256)
"""That kernels are there for: a head takes the next one."""


def varlen(query: Tensor, key: Tensor, starts: Tensor, is_causal: bool, num_bytes: int) -> list[Kernel]:
    """Return what a call launches.

    Args:
        query: [T, H, D].
        starts: where rows begin, and the last one's end.
        num_bytes: read and written.
    """
    width = _width(query)
    block = KEYS_OF_NARROW if width <= KEYS_OF_NARROW // 2 else KEYS
    pieces, blocks = _counted(starts, block, is_causal, is_backward=False)
    return [_kernel(FORWARD, query, (pieces, blocks, PIECE * block, width), num_bytes, 4)]


def varlen_backward(query: Tensor, key: Tensor, starts: Tensor, is_causal: bool, num_bytes: int) -> list[Kernel]:
    """Return what its backward pass launches: two passes over sums in fp32 as well, and two where heads are shared."""
    pieces, blocks = _counted(starts, QUERIES, is_causal, is_backward=True)
    numbers, item_bytes = query.numel(), query.element_size()
    kernels = [
        Kernel("pass", numbers * (2 * item_bytes + FP32_BYTES), numbers),
        _kernel(BACKWARD, query, (pieces, blocks, PIECE * QUERIES, _width(query)), num_bytes, 10),
        Kernel("pass", numbers * (FP32_BYTES + item_bytes), numbers),
    ]
    if key.shape[1] < query.shape[1]:
        kernels += [Kernel("pass", (numbers + key.numel()) * item_bytes, numbers)] * 2
    return kernels


def _width(query: Tensor) -> int:
    size = query.shape[-1]
    return next((width for width in WIDTHS if width >= size), size)


def _kernel(kind: str, query: Tensor, sizes: tuple[int, int, int, int], num_bytes: int, flops: int) -> Kernel:
    pieces, blocks, scores, width = sizes
    heads = query.shape[1]
    sizes = (pieces * heads, blocks * heads, scores, width)
    return Kernel(kind, num_bytes, 0, format_of(query.dtype), flops * blocks * heads * scores * width, sizes, old=True)


def _counted(starts: Tensor, block: int, is_causal: bool, is_backward: bool) -> tuple[int, int]:
    """Return pieces and blocks of all rows, blocks that are cut counted twice."""
    lengths, times = starts.diff().unique(return_counts=True)
    pieces = blocks = 0
    for length, number in zip(lengths.tolist(), times.tolist(), strict=True):
        count, every = ceil(length / PIECE), ceil(length / block)
        pieces += number * count
        if not is_causal:
            blocks += number * count * every
            continue
        for piece in range(count):
            before = piece * PIECE // block
            there = min((piece + 1) * PIECE // block, every)
            blocks += number * ((every - before if is_backward else there) + there - before)
    return pieces, blocks
