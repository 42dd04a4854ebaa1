"""Dropout and softmax as CUDA computes them: on meta tensors torch puts them together from smaller ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.compat import torch as borrowed

half_softmax = borrowed.SOFTMAX.get()


@contextmanager
def composites_of(device: str) -> Iterator[None]:
    """Make them behave as on `device` (`cuda` or `cpu`) for tensors without storage; a CPU does as meta does."""
    if device == "cpu":
        yield
        return
    dropout, softmax = _dropout(F.dropout), _softmax(F.softmax)
    with borrowed.DROPOUT.replaced(dropout), borrowed.FUNCTIONAL_SOFTMAX.replaced(softmax):
        yield


def _dropout(real):
    """ATen/native/Dropout.cpp: one kernel, whose mask has a byte a number; else it has the numbers' own format."""

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        fused = input.is_meta and training and not inplace and 0 < p < 1
        return torch.native_dropout(input, p, True)[0] if fused else real(input, p, training, inplace)

    return dropout


def _softmax(real):
    """ATen/native/SoftMax.cpp: fp16 in, fp32 out in one kernel; else the input is copied to fp32 first."""

    def softmax(
        input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
    ) -> Tensor:
        if input.is_meta and input.dtype == torch.float16 and dtype == torch.float32 and dim is not None:
            return half_softmax(input, dim, True)
        return real(input, dim, _stacklevel, dtype)

    return softmax
