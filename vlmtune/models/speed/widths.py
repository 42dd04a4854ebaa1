"""Frozen MLPs of an odd width compute with one that GPUs multiply fast: zeros fill it up.

Where the rows of a matrix are no multiple of 16 bytes, as in Qwen2.5-VL's tower (3,420 features), cuBLAS takes a kernel
that is two to three times as slow. Here a weight gets rows or columns of zeros for the time of its product: weights,
files and adapters stay as they are. No sum gets another term: a feature of zeros meets weights of zeros.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from vlmtune.models.packed import unpacked_weight
from vlmtune.plan.types import RunPlan

ALIGNED_BYTES = 16
HIDDEN = {"down_proj": ("gate_proj", "up_proj"), "fc2": ("fc1",), "linear_fc2": ("linear_fc1",)}
"""Linear layers of the library's MLPs by their names: what comes out of the hidden features, and what makes them.

Between them stand functions of single numbers alone, which every model's config names (transformers' `ACT2FN`).
"""


def align_widths(model: nn.Module, plan: RunPlan) -> None:
    """Let the MLPs of a base model compute so, where the plan says it; those with adapters count on their width."""
    for module in model.modules() if plan.align_widths else ():
        parts = {name: part for name, part in module.named_children() if any(True for _ in part.parameters())}
        for out, inputs in HIDDEN.items():
            if parts.keys() == {out, *inputs} and all(type(part) in (nn.Linear, Linear4bit) for part in parts.values()):
                _align([parts[name] for name in inputs], parts[out])


def _align(inputs: Sequence[nn.Linear], out: nn.Linear) -> None:
    short = -out.in_features % (ALIGNED_BYTES // _format_of(out).itemsize)
    if short and {linear.out_features for linear in inputs} == {out.in_features}:
        for linear in inputs:
            linear.forward = _Product(linear, rows=short)
        out.forward = _Product(out, columns=short)


def _format_of(linear: nn.Linear) -> torch.dtype:
    return linear.compute_dtype if isinstance(linear, Linear4bit) else linear.weight.dtype


class _Product:
    """What a layer makes of x, `rows` features of zeros behind it; x has `columns` of them behind its own."""

    def __init__(self, linear: nn.Linear, rows: int = 0, columns: int = 0) -> None:
        self.linear, self.rows, self.columns = linear, rows, columns
        self.dtype = _format_of(linear)

    def __call__(self, x: Tensor) -> Tensor:
        weight = F.pad(unpacked_weight(self.linear, self.dtype), (0, self.columns, 0, self.rows))
        return F.linear(x.to(self.dtype), weight, self._bias).to(x.dtype)

    @cached_property
    def _bias(self) -> Tensor | None:
        bias = self.linear.bias
        return None if bias is None else F.pad(bias.detach().to(self.dtype), (0, self.rows))
