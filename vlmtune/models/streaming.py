"""Frozen 4-bit layers that lie in main memory and come to the card when they are needed, two at a time.

A streamed layer has its place in one of two buffers on the card, by turns, and always comes back to that place.
bitsandbytes keeps a view of a packed weight for the backward pass: so the view shows the layer's own bytes again,
whether the layer recomputes or keeps its activations. What is packed never changes, so nothing travels back.

While one layer is computed, the next one (in the backward pass the one before) is copied on a stream of its own into
the buffer that the last one has left. At the turn from forward to backward, and at that to the next forward pass, the
two layers in question are still there: with N streamed layers, N - 2 travel in each pass. They are spread evenly, so
that as much as possible is computed while each of them travels.

PyTorch has the like for one process, FSDP2 with CPUOffloadPolicy, but there the copies run on the stream that computes
(torch 2.15, `_fsdp_param_group.py`, unshard with a world of one): nothing overlaps. Hence code of our own.
"""

import mmap
import weakref
from dataclasses import dataclass
from functools import partial

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.compat.torch import CURRENT_GRAPH_TASK_ID
from vlmtune.errors import VlmtuneError
from vlmtune.levers.streaming import KEY, ON_CARD
from vlmtune.units import GIB

BLOCK_NUMBERS = 64
"""Numbers that share a constant: what bitsandbytes takes unless told otherwise."""
ALIGNED_BYTES = 512
"""Where a weight may begin in a buffer: as PyTorch's allocator places tensors."""


@dataclass(frozen=True)
class _Place:
    """Where a linear layer's bytes begin among those of its decoder layer."""

    layer: int
    """Number among the streamed layers, in their order in the model."""
    packed: int
    absmax: int


class LayerStream:
    """The streamed layers of one model: their bytes in main memory and the two buffers on the card."""

    def __init__(self, layers: list[list[Linear4bit]], device: torch.device, double_quant: bool) -> None:
        """Take the buffers; on the meta device without main memory.

        Raises:
            VlmtuneError: main memory cannot be pinned.
        """
        self.places: dict[nn.Module, _Place] = {}
        self.layer_bytes = [self._laid_out(number, linears, double_quant) for number, linears in enumerate(layers)]
        self.buffers = [
            torch.empty(max(self.layer_bytes[slot::ON_CARD], default=0), dtype=torch.uint8, device=device)
            for slot in range(ON_CARD)
        ]
        self.on_host: list[Tensor] = []
        self.copied_bytes = 0
        """What has come to the card since the start."""
        self.here: list[int | None] = [None] * ON_CARD
        """The layer in each buffer, or on its way there."""
        self.current: int | None = None
        """The layer that is computed."""
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)
            self._arrived = [torch.cuda.Event() for _ in range(ON_CARD)]  # of the last copy into each buffer
        self._take_memory(device)

    def _take_memory(self, device: torch.device) -> None:
        """Take what the layers' bytes are kept in."""
        if device.type != "meta":
            self.on_host = [_host_memory(num_bytes) for num_bytes in self.layer_bytes]
        if self._side is not None:
            pinned: list[Tensor] = []
            weakref.finalize(self, _let_go, self._side, pinned).atexit = False
            _pin(self.on_host, pinned)

    @property
    def resident(self) -> list[Tensor]:
        """What is on the card for as long as the model is."""
        return self.buffers

    def _laid_out(self, layer: int, linears: list[Linear4bit], double_quant: bool) -> int:
        """Give each linear layer its place and return the bytes of all."""
        end = 0
        for linear in linears:
            numbers = linear.in_features * linear.out_features
            constant_bytes = 1 if double_quant else torch.float32.itemsize
            absmax = end + _aligned((numbers + 1) // 2)
            self.places[linear] = _Place(layer, end, absmax)
            end = absmax + _aligned(-(-numbers // BLOCK_NUMBERS) * constant_bytes)
        return end

    def adopt(self, linear: nn.Module) -> None:
        """Take a packed weight and its constants off the card, and let the layer see its place in the buffer."""
        place, state = self.places[linear], state_of(linear.weight)
        if tuple(state.shape) != (linear.out_features, linear.in_features):
            return  # a damaged file, which is refused when all of it is loaded
        linear.weight.data = self._moved(linear.weight.data, place.layer, place.packed)
        state.absmax = self._moved(state.absmax, place.layer, place.absmax)

    def _moved(self, tensor: Tensor, layer: int, start: int) -> Tensor:
        end = start + tensor.nbytes
        if not tensor.is_meta:
            self._keep(layer, start, tensor.view(-1).view(torch.uint8))
        return self.buffers[layer % ON_CARD][start:end].view(tensor.dtype).view(tensor.shape)

    def _keep(self, layer: int, start: int, numbers: Tensor) -> None:
        """Keep bytes of a layer that begin at this place."""
        self.on_host[layer][start : start + len(numbers)].copy_(numbers)

    def start(self) -> None:
        """Bring the first two layers to the card and the others whenever they are needed from now on."""
        for linear, place in self.places.items():
            # Hooks of the linear layers, not of the decoder layer: that is computed again without its own being called.
            linear.register_forward_pre_hook(partial(self._before_forward, place.layer))
            linear.register_forward_hook(partial(self._before_backward, place.layer))
        self.current = None
        for layer in range(min(ON_CARD, len(self.layer_bytes))):
            self.fetch(layer)
        self.copied_bytes = 0

    def _before_forward(self, layer: int, module: nn.Module, args: tuple) -> None:
        self.need(layer)

    def _before_backward(self, layer: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: self.need(layer))

    def follow(self, linear: nn.Module, module: nn.Module) -> None:
        """Let a layer be brought for both passes of a module that computes its linear layer out of autograd's sight.

        Within, no gradients are recorded: whether a backward pass will come can be told before alone.
        """
        if linear in self.places:
            layer = self.places[linear].layer
            module.register_forward_pre_hook(partial(self._before_forward, layer))
            module.register_forward_hook(partial(self._before_backward, layer))

    def read(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return a parameter with its own numbers in it, for whoever looks at weights outside of the passes."""
        for linear, place in self.places.items():
            if linear.weight is parameter:
                self.need(place.layer)
        return parameter

    def need(self, layer: int) -> None:
        """Let what is computed from now on find a layer in its place, and send for the one that is needed next."""
        if layer == self.current:
            return
        self.current = layer
        self.fetch(layer)
        self.wait_for(layer % ON_CARD)
        following = self._following(layer)
        if following is not None and following % ON_CARD != layer % ON_CARD:
            self.fetch(following)

    def _following(self, layer: int) -> int | None:
        """Return the layer that is needed next; None at the turns, where it is on the card already."""
        in_backward = CURRENT_GRAPH_TASK_ID.get()() != -1
        following, num_layers = layer + (-1 if in_backward else 1), len(self.layer_bytes)
        if 0 <= following < num_layers:
            return following
        # Without gradients the next pass is a forward pass as well.
        return None if in_backward or torch.is_grad_enabled() else 0

    def fetch(self, layer: int) -> None:
        """Send for a layer that is not there."""
        slot = layer % ON_CARD
        if self.here[slot] != layer:
            self.here[slot] = layer
            self.copied_bytes += self.layer_bytes[layer]
            if (source := self._source(layer)) is not None:
                self._send(source, slot)

    def _source(self, layer: int) -> Tensor | None:
        """Return what a layer's bytes come from; None without storage."""
        return self.on_host[layer] if self.on_host else None

    def _send(self, source: Tensor, slot: int) -> None:
        """Copy a layer into a buffer; on a card beside what is computed, once what reads the buffer by now is done."""
        if self._side is None:
            self._fill(slot, source)
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._fill(slot, source)
            self._arrived[slot].record()

    def _fill(self, slot: int, source: Tensor) -> None:
        self.buffers[slot][: source.nbytes].copy_(source, non_blocking=True)

    def wait_for(self, slot: int) -> None:
        """Let what is computed from now on begin when the last copy into a buffer is done."""
        if self._side is not None:
            torch.cuda.current_stream().wait_event(self._arrived[slot])


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


def _host_memory(num_bytes: int) -> Tensor:
    """Return main memory of this size, which processes that read images share.

    Private memory that is pinned would be copied for each of them when they are forked.
    """
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def _pin(buffers: list[Tensor], pinned: list[Tensor]) -> None:
    """Pin main memory where it is, and note what is: PyTorch's own pinned memory comes in powers of two.

    Raises:
        VlmtuneError: the system does not allow it.
    """
    runtime = torch.cuda.cudart()
    for buffer in buffers:
        if int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)):
            wanted = sum(one.nbytes for one in buffers) / GIB
            raise VlmtuneError(
                f"{KEY}: {wanted:.2f} GiB of main memory are to be pinned for the streamed layers, "
                "and the system does not allow it",
                "close other programs, stream fewer layers, or raise the system's limit of locked memory",
            )
        pinned.append(buffer)


def _let_go(side: torch.cuda.Stream, pinned: list[Tensor]) -> None:
    """Wait for the last copy, whose target may soon be another's memory, and end what was pinned."""
    side.synchronize()
    for buffer in pinned:
        torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())


def stream_of(model: nn.Module) -> LayerStream | None:
    """Return what streams a base model's layers, None where none are streamed."""
    return getattr(model, "layer_stream", None)


def read_parameter(model: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of a base model with its own numbers in it: a streamed one is brought to the card."""
    stream = stream_of(model)
    return stream.read(parameter) if stream else parameter
