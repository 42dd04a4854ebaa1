"""Gated MLPs: act(gate) * up in one kernel a direction, in place of two and three, and two tensors less are kept.

The library rounds act(gate) to the run's format before it multiplies; the kernel rounds once, at the end. It is taken
where a module computes down(act(gate(x)) * up(x)) and nothing else, which is tried, with an activation that is known.
"""

import inspect
from collections.abc import Callable
from functools import partial
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.compat.torch import CUSTOM_OP
from vlmtune.models.speed.tried import alike
from vlmtune.plan.types import RunPlan

custom_op = CUSTOM_OP.get()
SILU, GELU_TANH = 0, 1
"""Numbers that the kernels know activations by."""
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {SILU: F.silu, GELU_TANH: partial(F.gelu, approximate="tanh")}
GELU_SCALE, GELU_CUBE = (2 / pi) ** 0.5, 0.044715
TRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "gate_proj": lambda x: 3 * x,
    "up_proj": lambda x: 2 - x,
    "down_proj": lambda x: x + 1,
}
"""What stands for an MLP's linear layers when it is tried."""


def fuse_gates(model: nn.Module, plan: RunPlan) -> None:
    """Let the gated MLPs of a base model compute so, where the plan says it."""
    for module in model.modules() if plan.fused_elementwise else ():
        kind = _activation_of(module)
        if kind is not None:
            module.forward = partial(_forward, module, kind)


def _forward(mlp: nn.Module, kind: int, x: Tensor) -> Tensor:
    return mlp.down_proj(_Gated.apply(mlp.gate_proj(x), mlp.up_proj(x), kind))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return on_card(gate).gated(gate, up, kind)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        return *on_card(gate).gated_backward(gradient.contiguous(), gate, up, ctx.kind), None


def on_card(tensor: Tensor) -> Any:
    """Return who computes: the kernels, or operations that stand for them elsewhere and are recorded whole."""
    if not tensor.is_cuda:
        return torch.ops.vlmtune
    from vlmtune.models.speed import kernels

    return kernels


@custom_op("vlmtune::gated", mutates_args=())
def gated(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """Return act(gate) * up."""
    return (ACTIVATIONS[kind](gate.float()) * up.float()).to(gate.dtype)


@gated.register_fake
def _(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    return torch.empty_like(gate)


@custom_op("vlmtune::gated_backward", mutates_args=())
def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up."""
    g, d = gate.float(), gradient.float()
    return (d * up.float() * _slope(g, kind)).to(gate.dtype), (d * ACTIVATIONS[kind](g)).to(up.dtype)


def _slope(g: Tensor, kind: int) -> Tensor:
    if kind == SILU:
        return g.sigmoid() * (1 + g * (1 - g.sigmoid()))
    half = (2 * GELU_SCALE * (g + GELU_CUBE * g**3)).sigmoid()
    return half + 2 * g * half * (1 - half) * GELU_SCALE * (1 + 3 * GELU_CUBE * g**2)


@gated_backward.register_fake
def _(gradient: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


def _activation_of(module: nn.Module) -> int | None:
    """Return the activation of an MLP that computes this; None for other modules."""
    takes = list(inspect.signature(type(module).forward).parameters)[1:]
    names = {name for name, _ in module.named_children()}
    if len(takes) != 1 or names != {*TRIED, "act_fn"} or any(True for _ in module.act_fn.parameters()):
        return None
    x = torch.linspace(-2, 2, 64)
    gate, up, down = (TRIED[name] for name in TRIED)

    def computes(activation: Callable[[Tensor], Tensor]) -> bool:
        return alike(lambda: type(module).forward(_with_others(module), x), lambda: down(activation(gate(x)) * up(x)))

    return next((kind for kind, activation in ACTIVATIONS.items() if computes(activation)), None)


def _with_others(module: nn.Module) -> nn.Module:
    """Return a module with what is tried in place of its own linear layers."""

    def read(_: nn.Module, name: str) -> Any:
        return TRIED[name] if name in TRIED else getattr(module, name)

    return object.__new__(type("Tried", (type(module),), {"__getattribute__": read}))
