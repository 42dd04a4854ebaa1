"""Rotary positions: queries or keys turn by the angles of their tokens in one kernel a direction, in place of five.

The library rounds each product in text, and computes in fp32 in towers; the kernel computes in fp32 and rounds once.
Attention modules call a function of their file: where it is one of those known here, which is tried, the module's
forward gets another in its place; the library's own stays what everybody else finds.

Shapes: B rows, T tokens, H heads, D numbers of a head; angles of all rows, or of one for all of them.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from vlmtune.compat.modeling import APPLY_ROTARY_POS_EMB, APPLY_ROTARY_POS_EMB_VISION
from vlmtune.compat.torch import CUSTOM_OP
from vlmtune.models.speed.gated import on_card
from vlmtune.models.speed.tried import alike
from vlmtune.plan.types import RunPlan

custom_op = CUSTOM_OP.get()
Library = Callable[..., tuple[Tensor, Tensor]]


def fuse_rotary(model: nn.Module, plan: RunPlan) -> None:
    """Let the attention of a base model turn queries and keys so, where the plan says it."""
    for module in model.modules() if plan.fused_elementwise else ():
        forward = type(module).forward
        ours = _turned_by(forward) if isinstance(forward, FunctionType) else {}
        if ours:
            module.forward = partial(_finding(forward, ours), module)


@cache
def _turned_by(forward: FunctionType) -> dict[str, Library]:
    """Return what a forward is to find in place of the functions of its file that it calls."""
    called = {name: forward.__globals__.get(name) for name in forward.__code__.co_names if name in TURNED}
    return {
        name: partial(TURNED[name], library)
        for name, library in called.items()
        if isinstance(library, FunctionType) and _computes_this(name, library)
    }


def _finding(forward: FunctionType, names: dict[str, Any]) -> FunctionType:
    """Return a function with the same code that finds other things under these names."""
    found = FunctionType(
        forward.__code__, {**forward.__globals__, **names}, forward.__name__, forward.__defaults__, forward.__closure__
    )
    found.__kwdefaults__ = forward.__kwdefaults__
    return found


def _of_text(
    library: Library, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Turn [B, H, T, D] by [B or 1, T, D]; of other shapes, and where formats are to be joined, the library does."""
    fits = unsqueeze_dim == 1 and q.dim() == 4 and q.dtype == k.dtype == cos.dtype
    if not fits or cos.shape[-2:] != q.shape[-2:] or cos.shape[:-2] not in ((1,), q.shape[:1]):
        return library(q, k, cos, sin, unsqueeze_dim)
    q_BHTD, k_BHTD = (_Turned.apply(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))
    return q_BHTD, k_BHTD


def _of_tower(library: Library, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Turn [T, H, D] by [T, D]; of other shapes the library does."""
    if q.dim() != 3 or cos.shape != (q.shape[0], q.shape[2]):
        return library(q, k, cos, sin)
    q_THD, k_THD = (_Turned.apply(x[None], cos, sin).squeeze(0) for x in (q, k))
    return q_THD, k_THD


IN_TEXT, IN_TOWER = (name.path.rpartition(".")[2] for name in (APPLY_ROTARY_POS_EMB, APPLY_ROTARY_POS_EMB_VISION))
TURNED: dict[str, Library] = {IN_TEXT: _of_text, IN_TOWER: _of_tower}
"""What stands for the library's functions, by their names."""
TAKES = {IN_TEXT: ["q", "k", "cos", "sin", "unsqueeze_dim"], IN_TOWER: ["q", "k", "cos", "sin"]}
"""Other functions go by these names too: Gemma 4's turns queries alone."""


def _computes_this(name: str, library: Library) -> bool:
    """Return whether a function of the library is what is known here by its name."""
    if list(inspect.signature(library).parameters) != TAKES[name]:
        return False
    size = (5, 2, 8) if name == IN_TOWER else (1, 2, 5, 8)
    q = torch.linspace(-2, 1, 80).sin().view(size)
    angle = torch.linspace(0, 3, 40).view(5, 8)
    cos, sin = (one if len(size) == 3 else one[None] for one in (angle.cos(), angle.sin()))
    return alike(lambda: library(q, q + 1, cos, sin), lambda: TURNED[name](library, q, q + 1, cos, sin))


class _Turned(torch.autograd.Function):
    """x [B, T, H, D] turned by cos and sin [..., D]."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return on_card(x).turned(_dense(x), cos, sin, False)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return on_card(gradient).turned(_dense(gradient), *ctx.saved_tensors, True), None, None


def _dense(x: Tensor) -> Tensor:
    """Return x, the numbers of its heads behind each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


@custom_op("vlmtune::turned", mutates_args=())
def turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Return x [B, T, H, D] turned forth, or gradients turned back."""
    tokens, size = x.shape[1], x.shape[-1]
    c1, c2, s1, s2 = (half for one in (cos, sin) for half in one.float().view(-1, tokens, 1, size).chunk(2, -1))
    x1, x2 = x.float().chunk(2, -1)
    halves = (x1 * c1 + x2 * s2, x2 * c2 - x1 * s1) if back else (x1 * c1 - x2 * s1, x2 * c2 + x1 * s2)
    return torch.cat(halves, -1).to(x.dtype)


@turned.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return x.new_empty(x.shape)
