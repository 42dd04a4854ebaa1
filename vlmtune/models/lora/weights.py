"""The weights of adapters as lean products read them: in the format of the products, a layer's in one piece of memory.

Shapes: I and O features in and out, R rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlmtune.compat import torch as borrowed

foreach_copy_ = borrowed.FOREACH_COPY.get()
foreach_add_ = borrowed.FOREACH_ADD.get()
address = borrowed.STORAGE_ADDRESS.read


class Group:
    """Linear layers that read one input, and where their A and B stand among the weights of their layer."""

    def __init__(self, modules: list[nn.Module], start: int) -> None:
        self.linears = [module.get_base_layer() for module in modules]
        self.a = slice(start, start + len(modules))
        self.b = slice(self.a.stop, self.a.stop + len(modules))


class LayerAdapters:
    """The adapters of one layer of a model, which have one scale."""

    def __init__(self, groups: list[list[nn.Module]]) -> None:
        self.scale = scale_of(groups[0][0])
        self.groups: list[Group] = []
        self.weights: list[Tensor] = []
        for modules in groups:
            self.groups.append(Group(modules, len(self.weights)))
            self.weights += [module.lora_A[name_of(module)].weight for module in modules]
            self.weights += [module.lora_B[name_of(module)].weight for module in modules]

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


class InFormat(torch.autograd.Function):
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


def joined(weights: Sequence[Tensor]) -> Tensor:
    """Return all A of a group under each other [R of all, I]; where they are copies, they lie so."""
    first, end = weights[0], weights[0].storage_offset()
    for weight in weights:
        if address(weight.untyped_storage()) != address(first.untyped_storage()) or weight.storage_offset() != end:
            return torch.cat(list(weights))
        end += weight.numel()
    return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), first.stride())


def name_of(module: nn.Module) -> str:
    """Return the name of a module's adapter."""
    return module.active_adapters[0]


def scale_of(module: nn.Module) -> float:
    """Return what a module's adapter acts with."""
    return module.scaling[name_of(module)]
