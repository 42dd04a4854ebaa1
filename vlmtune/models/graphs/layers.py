"""Decoder layers as CUDA graphs: all that one launches in the forward pass is one launch, and so in the backward pass.

A graph repeats the same kernels at the same addresses. So a layer reads its input, positions and mask from buffers that
all layers share, and leaves what it computes in one, from where it is copied; packs are filled up to a few lengths
(data/batches/packs.py), each of which has graphs of its own. What is recorded is the layer as it runs without graphs,
recomputation included: the same kernels in the same order. A run's first batch, its largest, runs without graphs, which
makes what libraries make at first use; from then on each length is recorded when it is met.

All graphs share one pool of memory, which is no one else's: one layer's work is there, of the longest packs. Gradients
of adapters are added up within the graphs, so their memory stays from step to step.

Layers that keep their activations run without graphs beside the others.

Shapes: T tokens of a pack, R rows in it, H hidden size.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmtune.compat.torch import FOREACH_COPY, FOREACH_ZERO, GRADIENT_EDGE
from vlmtune.compat.transformers import CHECKPOINTING_FUNCTION, LAYER_CHECKPOINTING
from vlmtune.families.base import Family
from vlmtune.levers.recompute import layers_of
from vlmtune.models.graphs.buffers import Bounds, Buffers, Given, Shape, given_of
from vlmtune.models.graphs.recording import Card, Cuda, Repeated, Replay
from vlmtune.models.streaming import stream_of

foreach_copy_, foreach_zero_ = FOREACH_COPY.get(), FOREACH_ZERO.get()
gradient_edge_of = GRADIENT_EDGE.get()
Library = Callable[..., Any]
"""transformers' checkpointing: (layer with its keywords, hidden states) -> hidden states."""


class LayerGraphs:
    """The graphs of a model's layers: their card, and the buffers that they share."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.anchor = torch.empty(0, requires_grad=True)
        """By it autograd knows of layers whose input needs no gradient."""
        self.bounds = Bounds()
        self.most_numbers = 0
        """Of hidden states of the first batch."""
        self.of_shape: dict[Shape, Buffers] = {}
        self._memory: tuple[Tensor, Tensor] | None = None

    def buffers(self, shape: Shape, x: Tensor, given: Given) -> Buffers:
        """Return those of a shape; hidden states of all shapes lie in the same memory."""
        if shape not in self.of_shape:
            if not self.of_shape:
                self.card.begin()
            if self._memory is None or self._memory[0].numel() < x.numel() or self._memory[0].dtype != x.dtype:
                numbers = max(self.most_numbers, x.numel())
                self._memory = x.new_empty(numbers), x.new_empty(numbers)
            own = (memory[: x.numel()].view(x.shape) for memory in self._memory)
            self.of_shape[shape] = Buffers(shape, *own, given)
        return self.of_shape[shape]

    def forget(self, *_: object) -> None:
        """Let go of what the last batch has left."""
        for buffers in self.of_shape.values():
            buffers.forget()


@dataclass
class _Graphs:
    """Those of one layer and shape."""

    buffers: Buffers | None = None
    forward: Replay | None = None
    backward: Replay | None = None
    recorded: tuple[Tensor, Any] | None = None
    """The input of what was recorded, and where its backward pass begins."""


class _Layer:
    """A layer that runs by graphs."""

    def __init__(self, shared: LayerGraphs, layer: nn.Module, library: Library, bring: Callable[[], None]) -> None:
        """`bring` lets weights that travel be there for what is launched next."""
        self.shared, self.library, self.bring = shared, library, bring
        self.weights = [one for one in layer.parameters() if one.requires_grad]
        self.gradients: list[Tensor] = []
        self.graphs: dict[tuple[Shape, bool], _Graphs] = defaultdict(_Graphs)
        self.has_run = False

    def __call__(self, function: partial, *args: Tensor) -> Any:
        """Run in place of transformers' checkpointing: (layer with its keywords, hidden states) -> hidden states."""
        given = given_of(function.keywords) if len(args) == 1 and torch.is_grad_enabled() else None
        if given is None:
            return self.library(function, *args)
        [x] = args
        shape = self.shared.bounds.shape_of(x, given)
        if not self.has_run:
            y = self.library(function, x)
            self.has_run, self.shared.most_numbers = isinstance(y, Tensor), x.numel()  # others return more than that
            return y
        graphs = self.graphs[shape, x.requires_grad]
        graphs.buffers = graphs.buffers or self.shared.buffers(shape, x, given)
        return _Graphed.apply(_Pass(self, graphs, graphs.buffers, function, given), x, self.shared.anchor)

    def give_gradients(self) -> None:
        """Let the weights have the gradients that graphs add to: zeros in a step that begins."""
        if not self.gradients:
            self.gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.weights]
        pairs = [(own, one.grad) for own, one in zip(self.gradients, self.weights, strict=True) if one.grad is not own]
        if fresh := [own for own, gradient in pairs if gradient is None]:
            foreach_zero_(fresh)
        if others := [(own, gradient) for own, gradient in pairs if gradient is not None]:
            foreach_copy_([own for own, _ in others], [gradient for _, gradient in others])
        for own, one in zip(self.gradients, self.weights, strict=True):
            one.grad = own


@dataclass
class _Pass:
    """One pass of a layer, forth and back."""

    layer: _Layer
    graphs: _Graphs
    buffers: Buffers
    function: partial
    given: Given

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of hidden states [1, T, H]."""
        self.buffers.fill(x, self.given)
        self.layer.bring()
        if self.graphs.forward is None:
            self.graphs.forward = self.layer.shared.card.recorded(partial(self._forward, x.requires_grad))
        self.graphs.forward()
        return self.buffers.y.clone()

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor | None:
        """Return the gradient of x; those of the weights are added to theirs."""
        self.buffers.fill(x, self.given)
        self.buffers.y.copy_(gradient)
        self.layer.give_gradients()
        self.layer.bring()
        if self.graphs.backward is None:
            self.graphs.backward = self.layer.shared.card.recorded(self._backward)
        self.graphs.backward()
        return self.buffers.y.clone() if x.requires_grad else None

    def _forward(self, learns: bool) -> None:
        function = partial(
            self.function.func, *self.function.args, **(self.function.keywords | self.buffers.keywords())
        )
        x = self.buffers.x.data.requires_grad_(learns)  # not `detach`: autograd is not to see that others write there
        with torch.enable_grad():
            y = self.layer.library(function, x)
        self.buffers.y.copy_(y.detach())
        self.graphs.recorded = x, gradient_edge_of(y)

    def _backward(self) -> None:
        x, edge = self.graphs.recorded
        self.graphs.recorded = None
        torch.autograd.backward([edge], [self.buffers.y])
        if x.requires_grad:
            self.buffers.y.copy_(x.grad)


class _Graphed(torch.autograd.Function):
    """One pass as autograd sees it."""

    @staticmethod
    def forward(ctx, one: _Pass, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.one = one
        ctx.save_for_backward(x)
        return one.forward(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        [x] = ctx.saved_tensors
        return None, ctx.one.backward(x, gradient), None


def graph_layers(model: nn.Module, family: Family) -> None:
    """Let the layers of a base model that recompute run by graphs."""
    layers = [layer for layer in layers_of(model, family) if LAYER_CHECKPOINTING.read(layer)]
    if not layers:  # a model that is asked, and does not learn
        return
    device = next(layers[0].parameters()).device
    shared = model.layer_graphs = LayerGraphs(Cuda() if device.type == "cuda" else Repeated())
    model.register_forward_pre_hook(shared.forget)
    for layer in layers:
        library = CHECKPOINTING_FUNCTION.read(layer)
        CHECKPOINTING_FUNCTION.write(layer, _Layer(shared, layer, library, _bringing(model, layer)))


def _bringing(model: nn.Module, layer: nn.Module) -> Callable[[], None]:
    """Return what brings a layer's weights to their place on the card, before what reads them is recorded or repeated.

    What the stream does by itself, when a linear layer runs, is nothing then.
    """
    stream = stream_of(model)
    places = [stream.places[module].layer for module in layer.modules() if module in stream.places] if stream else []
    return partial(stream.need, places[0]) if places else _nothing


def _nothing() -> None:
    pass


def graphs_of(model: nn.Module) -> LayerGraphs | None:
    """Return the graphs of a base model's layers; None where they run without."""
    return getattr(model, "layer_graphs", None)
