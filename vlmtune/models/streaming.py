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
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmtune.compat import transformers as borrowed
from vlmtune.compat.bitsandbytes import state_of
from vlmtune.compat.torch import CURRENT_GRAPH_TASK_ID
from vlmtune.errors import VlmtuneError
from vlmtune.families.base import Family
from vlmtune.levers.streaming import KEY, ON_CARD
from vlmtune.plan.types import RunPlan
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
            torch.empty(max(self.layer_bytes[slot::ON_CARD]), dtype=torch.uint8, device=device)
            for slot in range(ON_CARD)
        ]
        self.on_host: list[Tensor] = []
        if device.type != "meta":
            self.on_host = [_host_memory(num_bytes) for num_bytes in self.layer_bytes]
        self.copied_bytes = 0
        """What has come to the card since the start."""
        self._here: list[int | None] = [None] * ON_CARD
        self._current: int | None = None
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)
            self._arrived = [torch.cuda.Event() for _ in range(ON_CARD)]  # of the last copy into each buffer
            pinned: list[Tensor] = []
            weakref.finalize(self, _let_go, self._side, pinned).atexit = False
            _pin(self.on_host, pinned)

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
        if self.on_host:
            self.on_host[layer][start:end].copy_(tensor.view(-1).view(torch.uint8))
        return self.buffers[layer % ON_CARD][start:end].view(tensor.dtype).view(tensor.shape)

    def start(self) -> None:
        """Bring the first two layers to the card and the others whenever they are needed from now on."""
        for linear, place in self.places.items():
            # Hooks of the linear layers, not of the decoder layer: that is computed again without its own being called.
            linear.register_forward_pre_hook(partial(self._before_forward, place.layer))
            linear.register_forward_hook(partial(self._before_backward, place.layer))
        self._current = None
        for layer in range(ON_CARD):
            self._fetch(layer)
        self.copied_bytes = 0

    def _before_forward(self, layer: int, module: nn.Module, args: tuple) -> None:
        self._need(layer)

    def _before_backward(self, layer: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: self._need(layer))

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
                self._need(place.layer)
        return parameter

    def _need(self, layer: int) -> None:
        """Let what is computed from now on find a layer in its place, and send for the one that is needed next."""
        if layer == self._current:
            return
        self._current = layer
        self._fetch(layer)
        self._await(layer % ON_CARD)
        following = self._following(layer)
        if following is not None and following % ON_CARD != layer % ON_CARD:
            self._fetch(following)

    def _following(self, layer: int) -> int | None:
        """Return the layer that is needed next; None at the turns, where it is on the card already."""
        in_backward = CURRENT_GRAPH_TASK_ID.get()() != -1
        following, num_layers = layer + (-1 if in_backward else 1), len(self.layer_bytes)
        if 0 <= following < num_layers:
            return following
        # Without gradients the next pass is a forward pass as well.
        return None if in_backward or torch.is_grad_enabled() else 0

    def _fetch(self, layer: int) -> None:
        slot = layer % ON_CARD
        if self._here[slot] != layer:
            self._here[slot] = layer
            self.copied_bytes += self.layer_bytes[layer]
            if self.on_host:
                self._send(self.on_host[layer], slot)

    def _send(self, source: Tensor, slot: int) -> None:
        """Copy a layer into a buffer; on a card beside what is computed, once what reads the buffer by now is done."""
        target = self.buffers[slot][: source.nbytes]
        if self._side is None:
            target.copy_(source)
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            self._arrived[slot].record()

    def _await(self, slot: int) -> None:
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


def prepare_stream(model: PreTrainedModel, plan: RunPlan, family: Family, device: str) -> LayerStream | None:
    """Give a model whose 4-bit layers have no numbers yet what will stream them; None where the plan streams none."""
    if plan.streamed_layers:
        layers = spread(plan.streamed_layers, _layers_with_packed_weights(model, family))
        model.layer_stream = LayerStream(layers, torch.device(device), plan.double_quant)
    return stream_of(model)


def spread(number: int, layers: list) -> list:
    """Return so many of the layers, as evenly spread as can be."""
    return [layers[(2 * index + 1) * len(layers) // (2 * number)] for index in range(number)]


def _layers_with_packed_weights(model: PreTrainedModel, family: Family) -> list[list[Linear4bit]]:
    """Return the linear layers in 4 bits of each decoder layer that has any."""
    kind = borrowed.GRADIENT_CHECKPOINTING_LAYER.get()
    decoder_layers = [layer for layer in model.get_submodule(family.text).modules() if isinstance(layer, kind)]
    found = [[part for part in layer.modules() if isinstance(part, Linear4bit)] for layer in decoder_layers]
    return [linears for linears in found if linears]


def weightless(model: PreTrainedModel, plan: RunPlan, family: Family) -> PreTrainedModel:
    """Return a model without storage that streams its layers as a loaded one does."""
    if stream := prepare_stream(model, plan, family, "meta"):
        for linear in stream.places:
            stream.adopt(linear)
    start(model)
    return model


def start(model: PreTrainedModel) -> None:
    """Let a model whose weights are all there begin to stream, if it is to."""
    if stream := stream_of(model):
        stream.start()


@contextmanager
def while_loading(plan: RunPlan, family: Family, quantized: bool) -> Iterator[None]:
    """Let transformers load a model whose streamed layers leave the card as soon as each weight is packed."""
    if not plan.streamed_layers or not quantized:
        yield
        return
    real = borrowed.SET_PARAM_FOR_MODULE.get()

    def before_loading(model: PreTrainedModel, expanded_device_map: dict, hf_quantizer: object) -> None:
        # In place of one block on the card as large as the whole model, which is what streaming avoids.
        prepare_stream(model, plan, family, plan.device)

    def set_parameter(model: PreTrainedModel, target_name: str, *args: object) -> None:
        real(model, target_name, *args)
        path, _, name = target_name.rpartition(".")
        stream = stream_of(model)
        if name == "weight" and model.get_submodule(path) in stream.places:
            stream.adopt(model.get_submodule(path))

    with (
        patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"),  # else packed files come to the card all at once
        borrowed.CACHING_ALLOCATOR_WARMUP.replaced(before_loading),
        borrowed.SET_PARAM_FOR_MODULE.replaced(set_parameter),
    ):
        yield
