"""A linear layer with its adapter as one operation of autograd: few kernels, and two tensors of [rows, out] a call.

PEFT computes adapters in fp32, their weights' format: the input is copied to fp32, the product scaled, copied back and
added, a kernel and a tensor of [rows, out] each. Here y = x W^T + s (x A^T) B^T is added up in the product's own
memory, in the format of x, and the weights, which stay in fp32, are copied to that format: all of one layer in one
operation, when the layer is entered, and their gradients back likewise. Adapters stay PEFT's modules.

Shapes: N rows, I and O features in and out, R rank.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from vlmtune.compat import torch as borrowed
from vlmtune.compat.peft import LORA_LINEAR, LORA_LINEAR_4BIT
from vlmtune.compat.transformers import GRADIENT_CHECKPOINTING_LAYER
from vlmtune.models.packed import unpacked_weight
from vlmtune.models.streaming import stream_of

foreach_copy_ = borrowed.FOREACH_COPY.get()
foreach_add_ = borrowed.FOREACH_ADD.get()
BASES = {LORA_LINEAR.get(): nn.Linear, LORA_LINEAR_4BIT.get(): Linear4bit}
"""PEFT's classes whose forward is known here, by the linear layers that they are put on."""


class Copies:
    """The adapters of the layer at work in the format of its products; those of no other layer are kept."""

    def __init__(self) -> None:
        self._of: tuple | None = None
        self._tensors: tuple[Tensor, ...] = ()

    def of(self, layer: "LayerAdapters", dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return those of a layer: A and B of each of its linear layers."""
        wanted = (layer, dtype, torch.is_grad_enabled())
        if self._of != wanted:
            self.drop()
            self._of, self._tensors = wanted, _InFormat.apply(layer, dtype, *layer.weights)
        return self._tensors

    def drop(self, *_: object) -> None:
        """Forget them: the weights may change before they are asked for again."""
        self._of, self._tensors = None, ()


class LayerAdapters:
    """The adapters of one layer of a model, which have one scale."""

    def __init__(self, modules: list[nn.Module], copies: Copies) -> None:
        self.copies = copies
        self.weights = [part[name_of(module)].weight for module in modules for part in (module.lora_A, module.lora_B)]
        self.scale = scale_of(modules[0])

    def added(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients that autograd is to note; those of weights that have one by now are added to it here.

        Autograd would add each by a kernel of its own.
        """
        known = [
            (weight.grad, gradient)
            for weight, gradient in zip(self.weights, gradients, strict=True)
            if weight.grad is not None and gradient is not None
        ]
        if known:
            foreach_add_([grad for grad, _ in known], [gradient for _, gradient in known])
        return [
            gradient if weight.grad is None else None for weight, gradient in zip(self.weights, gradients, strict=True)
        ]


class _InFormat(torch.autograd.Function):
    """The weights of a layer's adapters in another format, and gradients back to theirs, scaled."""

    @staticmethod
    def forward(ctx, layer: LayerAdapters, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.layer = layer
        ctx.set_materialize_grads(False)  # what no loss depends on has none, and no zeros
        if weights[0].dtype == dtype:
            return tuple(weight.view_as(weight) for weight in weights)
        return tuple(_copied(list(weights), dtype))

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        if not there:
            return (None,) * (2 + len(gradients))
        copied = iter(_copied(there, ctx.layer.weights[0].dtype, ctx.layer.scale))
        whole = [None if gradient is None else next(copied) for gradient in gradients]
        return None, None, *ctx.layer.added(whole)


def _copied(tensors: list[Tensor], dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Return copies in another format, scaled; they lie in one piece of memory."""
    flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors), dtype=dtype)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    copies = [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
    foreach_copy_(copies, tensors)
    if scale != 1.0:
        flat.mul_(scale)
    return copies


@dataclass
class _Call:
    """One product: of which layer, and what is kept of it."""

    linear: nn.Module
    scale: float
    kept: Any = None


class _Down(torch.autograd.Function):
    """h = x A^T; keeps all that the backward pass of the whole product needs, which `_Product` computes.

    It is kept before the linear layer is computed: a layer that recomputes ends when all that was kept is there again,
    so that its last product, by which no gradient is computed, is not made twice.
    """

    @staticmethod
    def forward(ctx, call: _Call, x: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        h_NR = x.reshape(-1, x.shape[-1]) @ a_RI.T
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_NR, a_RI, b_OR)
        call.kept = ctx
        return h_NR

    @staticmethod
    def backward(ctx, nothing: None) -> tuple[None, ...]:
        return (None,) * 4


class _Product(torch.autograd.Function):
    """x [..., I] of a linear layer, with the adapter's part of it; the layer itself is frozen."""

    @staticmethod
    def forward(ctx, call: _Call, h_NR: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        ctx.call = call
        y_NO = call.linear(x.reshape(-1, x.shape[-1])).addmm_(h_NR, b_OR.T, alpha=call.scale)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of A and B lack the scale, which they get in fp32 (`_InFormat`)."""
        x, h_NR, a_RI, b_OR = ctx.call.kept.saved_tensors
        gradient_NO, x_NI = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        gradient_NR = gradient_NO @ b_OR
        of_a, of_b = gradient_NR.T @ x_NI, gradient_NO.T @ h_NR
        of_x = None
        if ctx.needs_input_grad[2]:
            of_x_NI = gradient_NO @ unpacked_weight(ctx.call.linear, gradient.dtype)
            of_x = of_x_NI.addmm_(gradient_NR, a_RI, alpha=ctx.call.scale).view(x.shape)
        return None, None, of_x, of_a, of_b


def make_lean(model: nn.Module) -> None:
    """Let the adapters of a base model compute so; those of another kind stay as they are."""
    copies = Copies()
    model.register_forward_pre_hook(copies.drop)
    stream = stream_of(model)
    for modules in _by_layer(model):
        layer = LayerAdapters(modules, copies)
        for number, module in enumerate(modules):
            module.forward = partial(_forward, module, layer, number)
            if stream is not None:
                stream.follow(module.get_base_layer(), module)


def _forward(module: nn.Module, layer: LayerAdapters, number: int, x: Tensor, *args, **kwargs) -> Tensor:
    """Run in place of PEFT's forward, which still does what only it can."""
    if args or kwargs or module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return type(module).forward(module, x, *args, **kwargs)
    a, b = layer.copies.of(layer, x.dtype)[2 * number : 2 * number + 2]
    call = _Call(module.get_base_layer(), layer.scale)
    return _Product.apply(call, _Down.apply(call, x, a, b), x, a, b)


def _by_layer(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules that can be lean, those of one layer and of one scale together."""
    owners: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, GRADIENT_CHECKPOINTING_LAYER.get()):
            owners |= dict.fromkeys(layer.modules(), layer)
    groups: dict[tuple, list[nn.Module]] = {}
    for module in model.modules():
        if _can_be_lean(module):
            groups.setdefault((owners.get(module, module), scale_of(module)), []).append(module)
    return list(groups.values())


def _can_be_lean(module: nn.Module) -> bool:
    """Return whether a module is a plain adapter without dropout on a linear layer."""
    if type(module) not in BASES or type(module.get_base_layer()) is not BASES[type(module)]:
        return False
    name, *others = module.active_adapters
    plain = not others and not module.lora_variant and not module.lora_bias[name] and not module.fan_in_fan_out
    return plain and isinstance(module.lora_dropout[name], nn.Identity)


def name_of(module: nn.Module) -> str:
    """Return the name of a module's adapter."""
    return module.active_adapters[0]


def scale_of(module: nn.Module) -> float:
    """Return what a module's adapter acts with."""
    return module.scaling[name_of(module)]
