"""Puts the language model's 4-bit layers where the plan wants them, while the model loads: not all on this card.

They lie in main memory (models/streaming.py), or the GPUs share them (models/layers/shards.py).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from unittest.mock import patch

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers import PreTrainedModel

from vlmtune.compat import transformers as borrowed
from vlmtune.families.base import Family
from vlmtune.models.layers.peers import Peers
from vlmtune.models.layers.shards import ShardedLayers
from vlmtune.models.streaming import LayerStream, stream_of
from vlmtune.plan.types import RunPlan

PEERS: ContextVar[Peers | None] = ContextVar("peers", default=None)
"""Who shares the layers of models that are loaded; nobody where a tuned model is asked, whatever its plan says."""


@contextmanager
def shared_with(peers: Peers | None) -> Iterator[None]:
    """Let models that are loaded meanwhile share their layers with other processes, which load the same."""
    before = PEERS.set(peers)
    try:
        yield
    finally:
        PEERS.reset(before)


def prepare(model: PreTrainedModel, plan: RunPlan, family: Family, device: str, peers: Peers | None) -> None:
    """Give a model whose 4-bit layers have no numbers yet what will hold them, where this card does not."""
    on, layers = torch.device(device), _layers_with_packed_weights(model, family)
    if peers:
        model.layer_stream = ShardedLayers(layers, on, plan.double_quant, peers)
    elif plan.streamed_layers:
        model.layer_stream = LayerStream(spread(plan.streamed_layers, layers), on, plan.double_quant)


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
    """Return a model without storage whose layers lie where those of a loaded one do."""
    prepare(model, plan, family, "meta", Peers(0, plan.num_gpus, _gather_nothing) if plan.sharded else None)
    if stream := stream_of(model):
        for linear in stream.places:
            stream.adopt(linear)
    start(model)
    return model


def _gather_nothing(whole: Tensor, own: Tensor) -> None:
    """Stand for the other processes where nothing has storage."""


def start(model: PreTrainedModel) -> None:
    """Let layers come to the card whenever they are needed from now on, of a model whose weights are all there."""
    if stream := stream_of(model):
        stream.start()


@contextmanager
def while_loading(plan: RunPlan, family: Family, quantized: bool) -> Iterator[None]:
    """Let transformers load a model of whose layers each weight goes to its place as soon as it is packed."""
    peers = PEERS.get()
    if not (plan.streamed_layers or peers) or not quantized:
        yield
        return
    real = borrowed.SET_PARAM_FOR_MODULE.get()

    def before_loading(model: PreTrainedModel, expanded_device_map: dict, hf_quantizer: object) -> None:
        # In place of one block on the card as large as the whole model, which this avoids.
        prepare(model, plan, family, plan.device, peers)

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
