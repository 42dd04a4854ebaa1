"""RMS norms in one kernel a direction, torch's own for CUDA, in place of the eight and sixteen that the library's make.

Of narrow rows, the heads of queries and keys, it gives each a block of its own and takes two to three times as long as
Triton, which computes them where it is.

The library rounds x / rms to the run's format before it multiplies by the weight; the kernel rounds once, at the end.
It is taken where the weight is frozen and of the format of x, and where a module computes this and nothing else, which
is tried: Gemma's norms, which multiply by 1 + weight, stay as they are.

Shapes: [..., H].
"""

import inspect
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.compat.torch import CUSTOM_OP, FUNCTIONAL_CALL, FUSED_RMS_NORM, FUSED_RMS_NORM_BACKWARD
from vlmtune.models.speed.gated import on_card
from vlmtune.models.speed.tried import alike
from vlmtune.plan.types import RunPlan

custom_op = CUSTOM_OP.get()
fused, fused_backward = FUSED_RMS_NORM.get(), FUSED_RMS_NORM_BACKWARD.get()
"""(x, shape, weight, eps) -> (y, 1 / rms in fp32); (gradient, x, shape, 1 / rms, weight, wanted) -> theirs."""
NARROW = 256
"""Numbers of a row up to which Triton is quicker (tests/gpu/measured/fused.json)."""
TRIED_ROWS = 3


def fuse_norms(model: nn.Module, plan: RunPlan) -> None:
    """Let the frozen RMS norms of a base model compute so, where the plan says it."""
    for module in model.modules() if plan.fused_norms else ():
        if _is_rms_norm(module) and not module.weight.requires_grad:
            by_triton = plan.fused_elementwise and len(module.weight) <= NARROW
            module.forward = partial(_forward, module, _eps_of(module), by_triton)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, by_triton: bool) -> Tensor:
        x = x.contiguous()
        y, scale = _norm(x, weight, eps, by_triton)
        ctx.save_for_backward(x, scale, weight)
        ctx.by_triton = by_triton
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        return _norm_backward(gradient.contiguous(), x, scale, weight, ctx.by_triton), None, None, None


def _norm(x: Tensor, weight: Tensor, eps: float, by_triton: bool) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) * weight, and 1 / rms(x) in fp32."""
    if by_triton or not x.is_cuda:
        return on_card(x).norm(x, weight, eps)
    return fused(x, weight.shape, weight, eps)


def _norm_backward(gradient: Tensor, x: Tensor, scale: Tensor, weight: Tensor, by_triton: bool) -> Tensor:
    if by_triton or not x.is_cuda:
        return on_card(x).norm_backward(gradient, x, scale, weight)
    wanted = [True, False]
    return fused_backward(gradient, x, weight.shape, scale, weight, wanted)[0]


@custom_op("vlmtune::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """ATen/native/cuda/layer_norm_kernel.cu, `_fused_rms_norm_cuda`: one kernel, which gives 1 / rms in fp32 too."""
    scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.float() * scale * weight.float()).to(x.dtype), scale


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


@custom_op("vlmtune::norm_backward", mutates_args=())
def norm_backward(gradient: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x."""
    g, normal = gradient.float() * weight.float(), x.float() * scale
    return (scale * (g - normal * (g * normal).mean(-1, keepdim=True))).to(x.dtype)


@norm_backward.register_fake
def _(gradient: Tensor, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def _forward(norm: nn.Module, eps: float, by_triton: bool, x: Tensor) -> Tensor:
    if x.dtype != norm.weight.dtype:
        return type(norm).forward(norm, x)
    return _Norm.apply(x, norm.weight, eps, by_triton)


def _is_rms_norm(module: nn.Module) -> bool:
    """Return whether a module is x / rms(x) * weight, with some eps."""
    if next(module.children(), None) is not None:  # before all below it is looked through, for each module anew
        return False
    takes = list(inspect.signature(type(module).forward).parameters.values())[1:]
    state = {name: tensor.ndim for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    if len(takes) != 1 or state != {"weight": 1} or not isinstance(_eps_of(module), float):
        return False
    width = len(module.weight)
    weight = torch.linspace(0.5, 1.5, width)
    x = torch.linspace(-2, 1, TRIED_ROWS * width).sin().view(TRIED_ROWS, width)
    return alike(
        lambda: FUNCTIONAL_CALL.get()(module, {"weight": weight}, (x,)),
        lambda: F.rms_norm(x, (width,), weight, _eps_of(module)),
    )


def _eps_of(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))
