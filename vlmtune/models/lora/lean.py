"""A linear layer with its adapter as one operation of autograd: few kernels, and two tensors of [rows, out] a call.

PEFT computes adapters in fp32, their weights' format: the input is copied to fp32, the product scaled, copied back and
added, a kernel and a tensor of [rows, out] each. Here y = x W^T + s (x A^T) B^T is added up in the product's own
memory, in the format of x, and the weights, which stay in fp32, are copied to that format: all of one layer in one
operation, when the layer is entered, and their gradients back likewise. Adapters stay PEFT's modules.

Linear layers that read one input, as queries, keys and values do, are a group: x A^T of all is one product, and so are
the gradients of all A; the gradient of x is added up in one tensor.

Shapes: N rows, I and O features in and out, R rank.
"""

import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from vlmtune.compat.peft import LORA_LINEAR, LORA_LINEAR_4BIT
from vlmtune.compat.torch import CURRENT_GRAPH_TASK_ID
from vlmtune.compat.transformers import GRADIENT_CHECKPOINTING_LAYER
from vlmtune.models.lora.weights import Group, InFormat, LayerAdapters, joined, name_of, scale_of
from vlmtune.models.packed import unpacked_weight
from vlmtune.models.streaming import stream_of

current_graph_task_id = CURRENT_GRAPH_TASK_ID.get()
BASES = {LORA_LINEAR.get(): nn.Linear, LORA_LINEAR_4BIT.get(): Linear4bit}
"""PEFT's classes whose forward is known here, by the linear layers that they are put on."""
READ_ALIKE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers, by their names in the library's models, that mostly read one input: whether they do is seen."""


class Copies:
    """The adapters of the layer at work in the format of its products; those of no other layer are kept."""

    def __init__(self) -> None:
        self._of: tuple | None = None
        self._tensors: tuple[Tensor, ...] = ()
        self._begun: _Begun | None = None

    def of(self, layer: LayerAdapters, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return those of a layer, in its order."""
        wanted = (layer, dtype, torch.is_grad_enabled())
        if self._of != wanted:
            self.drop()
            self._of, self._tensors = wanted, InFormat.apply(layer, dtype, *layer.weights)
        return self._tensors

    def taken(self, layer: LayerAdapters, group: Group, number: int, x: Tensor) -> tuple["_Call", Tensor, Tensor]:
        """Return one product's call, h and B; the first of a group that reads an x begins those of all."""
        if self._begun is None or not self._begun.has(group, number, x):
            self._begun = None
            self._begun = _Begun(layer, group, x, self.of(layer, x.dtype))
        call, (h_NR, b_OR) = self._begun.call, self._begun.left.pop(number)
        if not self._begun.left:
            self._begun = None
        return call, h_NR, b_OR

    def drop(self, *_: object) -> None:
        """Forget them: the weights may change before they are asked for again."""
        self._of, self._tensors, self._begun = None, (), None


class _Begun:
    """h of a group, and its B, until each linear layer has taken its own."""

    def __init__(self, layer: LayerAdapters, group: Group, x: Tensor, weights: tuple[Tensor, ...]) -> None:
        self.call, self._x, self._pass = _Call(group, layer.scale, _Sums()), weakref.ref(x), current_graph_task_id()
        h_NR = _Down.apply(self.call, x, *weights[group.a], *weights[group.b])
        self.left = dict(enumerate(zip(h_NR, weights[group.b], strict=True)))

    def has(self, group: Group, number: int, x: Tensor) -> bool:
        """Return whether a linear layer's own is there, of this x; recomputing layers get the same x again."""
        return (
            self.call.group is group
            and self._x() is x
            and self._pass == current_graph_task_id()
            and number in self.left
        )


@dataclass
class _Sums:
    """What a backward pass adds up for the products of one input."""

    opened: tuple[Tensor, ...] | None = None
    """What was kept: x, h, all A and all B. It can be asked for once a pass."""
    of_h: Tensor | None = None
    of_x: Tensor | None = None


@dataclass
class _Call:
    """The products of one input; h and the copies of the weights are kept elsewhere: they may be computed again."""

    group: Group
    scale: float
    sums: _Sums
    kept: Any = None

    def opened(self) -> tuple[Tensor, ...]:
        """Return x, h, all A and all B."""
        if self.sums.opened is None:
            self.sums.opened = self.kept.saved_tensors
            self.sums.of_h = torch.empty_like(self.sums.opened[1])
        return self.sums.opened


class _Down(torch.autograd.Function):
    """h = x A^T, of all A of a group in one; keeps all that the backward pass needs.

    It is kept before the linear layers are computed: a layer that recomputes ends when all that was kept is there
    again, so that its last product, by which no gradient is computed, is not made twice.
    """

    @staticmethod
    def forward(ctx, call: _Call, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        size = len(weights) // 2
        h_NR = _flat(x) @ joined(weights[:size]).T
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_NR, *weights)
        # Not the call itself: it holds this, and a circle would hold tensors.
        ctx.sums, ctx.scale, call.kept = call.sums, call.scale, ctx
        return h_NR.chunk(size, 1)

    @staticmethod
    def backward(ctx, *of_h: Tensor | None) -> tuple[Tensor | None, ...]:
        """Finish what the products have begun; those that no loss depends on have given nothing."""
        sums, there = ctx.sums, [number for number, gradient in enumerate(of_h) if gradient is not None]
        of_weights: list[Tensor | None] = [None] * 2 * len(of_h)
        if not there:
            return None, None, *of_weights
        x, _, *weights = sums.opened
        of_h_NR = sums.of_h if len(there) == len(of_h) else torch.cat([of_h[number] for number in there], 1)
        for number, of_a in zip(there, (of_h_NR.T @ _flat(x)).chunk(len(there)), strict=True):
            of_weights[number] = of_a
        of_x = sums.of_x
        if of_x is not None:
            a_RI = joined([weights[number] for number in there])
            of_x = of_x.addmm_(of_h_NR, a_RI, alpha=ctx.scale).view(x.shape)
        sums.opened = sums.of_h = sums.of_x = None
        return None, of_x, *of_weights


class _Product(torch.autograd.Function):
    """x [..., I] of a linear layer, with the adapter's part of it; the layer itself is frozen."""

    @staticmethod
    def forward(ctx, call: _Call, number: int, x: Tensor, h_NR: Tensor, b_OR: Tensor) -> Tensor:
        ctx.call, ctx.number = call, number
        y_NO = call.group.linears[number](_flat(x)).addmm_(h_NR, b_OR.T, alpha=call.scale)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of A and B lack the scale, which they get in fp32 (`_InFormat`); that of x is `_Down`'s to give."""
        call, number, gradient_NO = ctx.call, ctx.number, _flat(gradient)
        _, h_NR, *weights = call.opened()
        size, sums = len(weights) // 2, call.sums
        of_h_NR = torch.mm(gradient_NO, weights[size + number], out=sums.of_h.chunk(size, 1)[number])
        of_b = gradient_NO.T @ h_NR.chunk(size, 1)[number]
        if call.kept.needs_input_grad[1]:
            weight = unpacked_weight(call.group.linears[number], gradient.dtype)
            sums.of_x = gradient_NO @ weight if sums.of_x is None else sums.of_x.addmm_(gradient_NO, weight)
        return None, None, None, of_h_NR, of_b


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def make_lean(model: nn.Module) -> None:
    """Let the adapters of a base model compute so; those of another kind stay as they are."""
    copies = Copies()
    model.register_forward_pre_hook(copies.drop)
    stream = stream_of(model)
    for groups in _by_layer(model):
        layer = LayerAdapters(groups)
        for modules, group in zip(groups, layer.groups, strict=True):
            for number, module in enumerate(modules):
                module.forward = partial(_forward, module, copies, layer, group, number)
                if stream is not None:
                    stream.follow(module.get_base_layer(), module)


def _forward(  # noqa: PLR0913
    module: nn.Module, copies: Copies, layer: LayerAdapters, group: Group, number: int, x: Tensor, *args, **kwargs
) -> Tensor:
    """Run in place of PEFT's forward, which still does what only it can."""
    if args or kwargs or module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return type(module).forward(module, x, *args, **kwargs)
    call, h_NR, b_OR = copies.taken(layer, group, number, x)
    return _Product.apply(call, number, x, h_NR, b_OR)


def _by_layer(model: nn.Module) -> list[list[list[nn.Module]]]:
    """Return the modules that can be lean, those of one layer and of one scale together, in groups of one input."""
    owners: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, GRADIENT_CHECKPOINTING_LAYER.get()):
            owners |= dict.fromkeys(layer.modules(), layer)
    layers: dict[tuple, dict[tuple, list[nn.Module]]] = {}
    for path, module in model.named_modules():
        if _can_be_lean(module):
            parent, _, name = path.rpartition(".")
            kind = next((names for names in READ_ALIKE if name in names), name)
            groups = layers.setdefault((owners.get(module, module), scale_of(module)), {})
            groups.setdefault((parent, kind, module.in_features, module.r[name_of(module)]), []).append(module)
    return [list(groups.values()) for groups in layers.values()]


def _can_be_lean(module: nn.Module) -> bool:
    """Return whether a module is a plain adapter without dropout on a linear layer."""
    if type(module) not in BASES or type(module.get_base_layer()) is not BASES[type(module)]:
        return False
    name, *others = module.active_adapters
    plain = not others and not module.lora_variant and not module.lora_bias[name] and not module.fan_in_fan_out
    return plain and isinstance(module.lora_dropout[name], nn.Identity)
