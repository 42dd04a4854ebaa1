"""Frozen 4-bit layers that the GPUs of a run hold together: each keeps a share of every layer's bytes.

A layer comes to its place in one of two buffers as streamed ones do (models/streaming.py), but from all GPUs at once:
an all-gather of its packed bytes and constants. Adapters, tower, embeddings and head are whole on every GPU.

All processes must gather the same layers in the same order, whatever their rows make them compute: a row without an
image may end its backward pass earlier, and a process may have no row at all. So each pass has one order of gathers,
which a process goes through as far as it must, and at the end of the pass to its end.

PyTorch's `fully_shard` is not used. It takes a model that each GPU has held whole, and sharding is for those that none
can hold; on torch 2.11 it shards no bytes, and 16-bit storage damages them; it refuses models without storage, by which
memory is estimated; and it takes new memory for each gather, on several streams. Here two buffers are refilled.
"""

from collections import deque

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from vlmtune.compat.torch import CURRENT_GRAPH_TASK_ID
from vlmtune.errors import VlmtuneError
from vlmtune.levers.gpus.shard import KEY
from vlmtune.levers.streaming import ON_CARD
from vlmtune.models.layers.peers import Peers
from vlmtune.models.streaming import ALIGNED_BYTES, LayerStream, stream_of

LOOKED_AT_BYTES = 2**14
"""Of a weight and of its constants, while the model loads (models/verify.py)."""
WORD_BYTES = torch.int64.itemsize


class ShardedLayers(LayerStream):
    """The shares that one process has of a model's layers, and the two buffers to which whole ones come."""

    def __init__(self, layers: list[list[Linear4bit]], device: torch.device, double_quant: bool, peers: Peers) -> None:
        """Take buffers and shares."""
        self.peers = peers
        self.shares: list[Tensor] = []
        self._sums = [0] * len(layers)
        """Of each layer's bytes, by which the first gathers are checked."""
        self._heads: dict[tuple[int, int], Tensor] = {}
        """The first bytes of what begins at a place of a layer, until the others are there."""
        self._left: deque[int] = deque()
        """Layers that are still to be gathered in this pass."""
        self._is_turned = False
        """Whether the backward pass has begun."""
        super().__init__(layers, device, double_quant)

    def _laid_out(self, layer: int, linears: list[Linear4bit], double_quant: bool) -> int:
        unit = ALIGNED_BYTES * self.peers.size
        return -(-super()._laid_out(layer, linears, double_quant) // unit) * unit

    def _take_memory(self, device: torch.device) -> None:
        sizes = [num_bytes // self.peers.size for num_bytes in self.layer_bytes]
        self.shares = [torch.zeros(num_bytes, dtype=torch.uint8, device=device) for num_bytes in sizes]

    @property
    def resident(self) -> list[Tensor]:
        """Buffers and shares."""
        return [*self.buffers, *self.shares]

    def _keep(self, layer: int, start: int, numbers: Tensor) -> None:
        """Keep what of these bytes belongs to this process's share."""
        share, size = self.shares[layer], len(numbers)
        place = self.buffers[layer % ON_CARD][start : start - (-size // ALIGNED_BYTES) * ALIGNED_BYTES]
        place[:size].copy_(numbers)
        place[size:].zero_()
        begin = self.peers.number * len(share)
        first, last = max(start, begin), min(start + size, begin + len(share))
        if first < last:
            share[first - begin : last - begin].copy_(numbers[first - start : last - start])
        self._sums[layer] += _sum(place, start)
        self._heads[layer, start] = numbers[:LOOKED_AT_BYTES].cpu()

    def read(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a parameter with its own numbers in it; until the layers are there, with its first ones."""
        if not self._heads:
            return super().read(parameter)
        for linear, place in self.places.items():
            if linear.weight is parameter:
                for start in (place.packed, place.absmax):
                    head = self._heads[place.layer, start]
                    self.buffers[place.layer % ON_CARD][start : start + len(head)].copy_(head)
        return parameter

    def start(self) -> None:
        """Gather the first two layers, and the others whenever they are needed from now on.

        To be called by all processes, as is all that follows.

        Raises:
            VlmtuneError: a layer is not what this process has loaded.
        """
        self._heads.clear()
        for layer, share in enumerate(self.shares if not self.buffers[0].is_meta else ()):
            self._fill(layer % ON_CARD, share)
            if _sum(self.buffers[layer % ON_CARD][: self.layer_bytes[layer]], 0) != self._sums[layer] % 2**64:
                raise VlmtuneError(
                    f"{KEY}: layer {layer} of the language model is not what was loaded here once the GPUs' shares of "
                    "it are put together",
                    f"all machines must have the same files of the model; if they do, {KEY}: never, and please report "
                    "the output of vlmtune doctor",
                )
        super().start()

    def _before_forward(self, layer: int, module: nn.Module, args: tuple) -> None:
        # A layer that is computed again belongs to the backward pass.
        if layer == 0 and not _in_backward() and (self.current != 0 or self._is_turned):
            self._begin(has_backward=module.training)  # lean adapters compute it without autograd
        super()._before_forward(layer, module, args)

    def _begin(self, *, has_backward: bool) -> None:
        """Begin a pass; each begins and ends with the first layers in the buffers."""
        self.settle()
        num_layers = len(self.layer_bytes)
        back = range(num_layers - ON_CARD - 1, -1, -1)
        if not has_backward:
            back = range(min(ON_CARD, max(0, num_layers - ON_CARD)))
        self._left.extend([*range(ON_CARD, num_layers), *back])
        self._is_turned = False

    def settle(self) -> None:
        """End a pass: gather what this process did not need."""
        while self._left:
            self.fetch(self._left.popleft())
        self.current = None

    def pass_by(self, *, has_backward: bool) -> None:
        """Take part in a pass for which this process has no row."""
        self._begin(has_backward=has_backward)
        self.settle()

    def need(self, layer: int) -> None:
        self._is_turned |= _in_backward()
        if layer == self.current:
            return
        self.current = layer
        while self.here[layer % ON_CARD] != layer:
            if not self._left:  # it is read outside of the passes
                self._begin(has_backward=False)
            self.fetch(self._left.popleft())
        self.wait_for(layer % ON_CARD)
        if self._left and self._left[0] % ON_CARD != layer % ON_CARD:
            self.fetch(self._left.popleft())

    def _source(self, layer: int) -> Tensor | None:
        share = self.shares[layer]
        return None if share.is_meta else share

    def _fill(self, slot: int, source: Tensor) -> None:
        self.peers.gather(self.buffers[slot][: len(source) * self.peers.size], source)


def _in_backward() -> bool:
    return CURRENT_GRAPH_TASK_ID.get()() != -1


def _sum(numbers: Tensor, start: int) -> int:
    """Return a sum over bytes that begin at a place, whole blocks, each weighed by its place; it wraps."""
    sums = numbers.view(torch.int64).view(-1, ALIGNED_BYTES // WORD_BYTES).sum(1)
    places = torch.arange(len(sums), device=sums.device) + (start // ALIGNED_BYTES + 1)
    return int((sums * places).sum()) % 2**64


def shards_of(model: nn.Module) -> ShardedLayers | None:
    """Return what shares a base model's layers between GPUs, None where they are not shared."""
    stream = stream_of(model)
    return stream if isinstance(stream, ShardedLayers) else None


def end_pass(model: nn.Module) -> None:
    """End a pass of a base model, before the processes tell each other anything else on their GPUs."""
    if shards := shards_of(model):
        shards.settle()


def pass_by(model: nn.Module) -> None:
    """Take part in a pass for which this process has no row."""
    if shards := shards_of(model):
        shards.pass_by(has_backward=model.training)
