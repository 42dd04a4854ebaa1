"""Products of matrices, and packed weights that are unpacked for them: the kernels that they launch."""

from math import prod

import torch
from torch import Tensor

from vlmtune.estimate.timing.kernels import Kernel

ALIGNED_BYTES = 16
"""What tensor cores load at once: rows that start elsewhere take older, slower kernels."""
FUSED_4BIT_MAX_ROWS = 64
"""bitsandbytes backends/cuda/ops.py, `_gemm_4bit_use_custom_cuda`: about up to here weights are read in place."""


def product(left: Tensor, right: Tensor) -> Kernel:
    """Return the product of two matrices, or of as many pairs."""
    many = prod(left.shape[:-2])
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    aligned = n * left.element_size() % ALIGNED_BYTES == 0 and _is_aligned(left) and _is_aligned(right)
    num_bytes = many * (m * k + k * n + m * n) * left.element_size()
    return product_of((many, m, n, k), left.dtype, num_bytes, not aligned)


def product_of(sizes: tuple[int, int, int, int], dtype: torch.dtype, num_bytes: int, old: bool) -> Kernel:
    """Return so many products of [M, K] and [K, N]; `sizes` are how many, M, N, K."""
    many, m, n, _ = sizes
    return Kernel("product", num_bytes, many * m * n, format_of(dtype), 2 * prod(sizes), sizes, old)


def format_of(dtype: torch.dtype) -> str:
    """`torch.bfloat16` → `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _is_aligned(factor: Tensor) -> bool:
    """Return whether all rows of a matrix, or all columns, start where tensor cores can load."""
    stride = max(factor.stride()[-2:])
    return stride == 1 or stride * factor.element_size() % ALIGNED_BYTES == 0


def product_4bit(args: tuple, out: Tensor) -> list[Kernel]:
    """Return constants, their offset, the weight, and its product; few rows read the weight as it is."""
    rows, packed, (n, k) = args[0], args[1], args[2]
    m = rows.numel() // rows.shape[-1]
    aligned = all(size * rows.element_size() % ALIGNED_BYTES == 0 for size in (n, k))
    if m <= FUSED_4BIT_MAX_ROWS:
        return [product_of((1, m, n, k), rows.dtype, packed.nbytes + rows.nbytes + out.nbytes, not aligned)]
    moved = rows.nbytes + n * k * rows.element_size() + out.nbytes
    return [*unpacking_of(n * k, rows.element_size()), product_of((1, m, n, k), rows.dtype, moved, not aligned)]


def unpacking_of(numbers: int, item_bytes: int) -> list[Kernel]:
    """Return what makes a packed weight whole: its constants, which are packed too, their offset, and the weight."""
    constants = numbers // 64
    return [
        Kernel("unpack", 5 * constants, constants),
        Kernel("strided", 8 * constants, constants),
        Kernel("unpack", numbers // 2 + 4 * constants + numbers * item_bytes, numbers),
    ]
