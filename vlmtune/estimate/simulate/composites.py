"""Dropout, softmax and RMS norms as CUDA computes them: on meta tensors torch puts them together from smaller ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.compat import torch as borrowed
from vlmtune.models.speed import norms

half_softmax = borrowed.SOFTMAX.get()


@contextmanager
def composites_of(device: str) -> Iterator[None]:
    """Make them behave as on `device` (`cuda` or `cpu`) for tensors without storage; a CPU does as meta does."""
    if device == "cpu":
        yield
        return
    dropout, softmax = _dropout(F.dropout), _softmax(F.softmax)
    rms_norm = patch.object(norms, "fused", _rms_norm(norms.fused))
    with borrowed.DROPOUT.replaced(dropout), borrowed.FUNCTIONAL_SOFTMAX.replaced(softmax), rms_norm:
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


@borrowed.CUSTOM_OP.get()("vlmtune::rms_norm", mutates_args=())
def rms_norm_on_card(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """ATen/native/cuda/layer_norm_kernel.cu, `_fused_rms_norm_cuda`: one kernel, which gives 1 / rms in fp32 too."""
    return borrowed.FUSED_RMS_NORM.get()(x, weight.shape, weight, eps)


@rms_norm_on_card.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


def _rms_norm(real):
    def fused(x: Tensor, shape: torch.Size, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return rms_norm_on_card(x, weight, eps) if x.is_meta else real(x, shape, weight, eps)

    return fused
