"""The constants of a layer's 4-bit weights, unpacked together: three kernels a layer, not two more for each weight.

Double quantisation keeps the constants of a weight, one for 64 numbers, in 8 bits, with constants of their own, one for
256, and a mean. bitsandbytes unpacks them whenever it unpacks the weight. Here those of all linear layers of a layer
are copied behind each other and unpacked at once, when the first of them is needed: the same operations on the same
numbers. A layer that recomputes finds them in its backward pass again.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_blockwise
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from vlmtune.compat import bitsandbytes as bnb
from vlmtune.compat.torch import CURRENT_GRAPH_TASK_ID, FOREACH_COPY
from vlmtune.compat.transformers import GRADIENT_CHECKPOINTING_LAYER
from vlmtune.models.packed import NESTED_BLOCK, JoinedConstants, unpacked_weight
from vlmtune.plan.types import RunPlan

QuantState = bnb.QUANT_STATE.get()
current_graph_task_id = CURRENT_GRAPH_TASK_ID.get()
foreach_copy_ = FOREACH_COPY.get()
LEFT_TO_BITSANDBYTES_ROWS = 1536
"""Products of up to so many rows may read packed weights in place, by card and shape: bitsandbytes 0.50,
backends/cuda/ops.py, `_gemm_4bit_use_custom_cuda`. Above, and in backward passes, weights are always unpacked."""


def join_constants(model: nn.Module, plan: RunPlan) -> None:
    """Let the layers of a base model unpack theirs so, where the plan says it."""
    if not plan.joined_constants:
        return
    at_work = _AtWork()
    model.register_forward_pre_hook(at_work.leave)
    for layer, linears in _by_layer(model):
        joined = _LayerConstants(linears, at_work)
        layer.register_forward_hook(at_work.leave)
        for linear in linears:
            linear.joined_constants = joined
            if "forward" not in vars(linear):
                linear.forward = partial(_forward, linear)


def _by_layer(model: nn.Module) -> Iterator[tuple[nn.Module, list[Linear4bit]]]:
    """Yield the layers of language model and tower, and those of their 4-bit weights that have one code."""
    owners: dict[Linear4bit, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, GRADIENT_CHECKPOINTING_LAYER.get()):
            owners |= {linear: layer for linear in layer.modules() if _is_doubly_packed(linear)}
    for layer in dict.fromkeys(owners.values()):
        own = [linear for linear, owner in owners.items() if owner is layer]
        code = bnb.state_of(own[0].weight).state2.code
        yield layer, [linear for linear in own if _is_same(bnb.state_of(linear.weight).state2.code, code)]


def _is_doubly_packed(module: nn.Module) -> bool:
    state = bnb.state_of(module.weight) if isinstance(module, Linear4bit) else None
    return state is not None and bnb.QUANT_STATE_IS_NESTED.read(state) and state.state2.blocksize == NESTED_BLOCK


def _is_same(code: Tensor, other: Tensor) -> bool:
    """Return whether 8 bits stand for the same numbers; without storage they do."""
    return code.is_meta or torch.equal(code, other)


class _AtWork:
    """The unpacked constants of the layer at work; those of no other layer are kept."""

    def __init__(self) -> None:
        self.layer: _LayerConstants | None = None
        self.constants: dict[nn.Module, Tensor] = {}

    def enter(self, layer: "_LayerConstants") -> dict[nn.Module, Tensor]:
        """Return the constants of a layer, by its linear layers."""
        if self.layer is not layer:
            self.layer, self.constants = None, {}
            self.layer, self.constants = layer, layer.unpacked()
        return self.constants

    def leave(self, *_: object) -> None:
        """Forget them, so that none lie beside the logits; what is recomputed waits for its backward pass."""
        if current_graph_task_id() == -1:
            self.layer, self.constants = None, {}


class _LayerConstants(JoinedConstants):
    """Those of the linear layers of one layer."""

    def __init__(self, linears: Sequence[Linear4bit], at_work: _AtWork) -> None:
        """Join the constants of the constants, and the means."""
        self._at_work, self._home = at_work, linears[0]
        self._states = {linear: bnb.state_of(linear.weight) for linear in linears}
        states = self._states.values()
        blocks = [-(-state.absmax.numel() // NESTED_BLOCK) for state in states]
        self._starts = [NESTED_BLOCK * sum(blocks[:number]) for number in range(len(blocks))]
        means = [state.offset.expand(size) for state, size in zip(states, blocks, strict=True)]
        # Buffers, so that they go where the model goes and are counted with it; no file has them.
        nested = torch.cat([state.state2.absmax for state in states])
        self._home.register_buffer("nested_absmax", nested, persistent=False)
        self._home.register_buffer("nested_means", torch.cat(means).view(-1, 1), persistent=False)

    def state(self, linear: nn.Module):
        """Return the state of a linear layer's weight with its constants in fp32; another weight's as it is."""
        state = bnb.state_of(linear.weight)
        if state is not self._states[linear]:
            return state  # PEFT has merged an adapter into it
        return QuantState(
            absmax=self._at_work.enter(self)[linear],
            shape=state.shape,
            code=state.code,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            dtype=state.dtype,
        )

    def unpacked(self) -> dict[nn.Module, Tensor]:
        """Return the constants of each weight in fp32; all lie in one tensor, each from a whole block on."""
        nested, states = self._home.nested_absmax, list(self._states.values())
        packed = torch.empty(len(nested) * NESTED_BLOCK, dtype=torch.uint8, device=nested.device)
        foreach_copy_(self._pieces(packed), [state.absmax for state in states])
        code = states[0].state2.code
        state = QuantState(absmax=nested, code=code, blocksize=NESTED_BLOCK, dtype=torch.float32)
        constants = dequantize_blockwise(packed, state)
        constants.view(-1, NESTED_BLOCK).add_(self._home.nested_means)
        return dict(zip(self._states, self._pieces(constants), strict=True))

    def _pieces(self, whole: Tensor) -> list[Tensor]:
        sizes = [state.absmax.numel() for state in self._states.values()]
        return [whole[start : start + size] for start, size in zip(self._starts, sizes, strict=True)]


def _forward(linear: Linear4bit, x: Tensor) -> Tensor:
    """Run in place of bitsandbytes' forward, which still does what autograd sees, and what it need not unpack for."""
    is_recorded = torch.is_grad_enabled() and x.requires_grad
    many = x.numel() // x.shape[-1] > LEFT_TO_BITSANDBYTES_ROWS
    if not many or is_recorded or x.dtype != bnb.state_of(linear.weight).dtype:
        return type(linear).forward(linear, x)
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    return F.linear(x, unpacked_weight(linear, x.dtype), bias)
