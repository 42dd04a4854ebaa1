"""The output head in 8 bits: whole numbers and one scale a row, unpacked a part at a time wherever it is used.

bitsandbytes' own layer in 8 bits rounds the hidden states too, and unpacks the whole weight in the backward pass, which
at the peak takes twice what the head has saved.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmtune.families.base import Family
from vlmtune.models import embeddings
from vlmtune.plan.types import RunPlan

LARGEST = 127
PART_BYTES = 32 * 2**20
"""Of the weight that is unpacked at a time: small beside the logits of a chunk, large for a matrix product."""


class Head8bit(nn.Module):
    """A frozen linear layer with rows of whole numbers from -127 to 127, each with its scale."""

    def __init__(self, weight_VH: Tensor, scale_V1: Tensor, bias_V: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_VH.shape
        self.weight = nn.Parameter(weight_VH, requires_grad=False)
        self.register_buffer("scale", scale_V1, persistent=False)
        self.bias = bias_V if bias_V is None else nn.Parameter(bias_V, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of hidden states [..., H], in their format."""
        logits_NV = _Product.apply(hidden.reshape(-1, self.in_features), self.weight, self.scale)
        if self.bias is not None:
            logits_NV = logits_NV + self.bias
        return logits_NV.view(*hidden.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """hidden [N, H] times the transposed weight; only the hidden states have a gradient."""

    @staticmethod
    def forward(ctx, hidden_NH: Tensor, weight_VH: Tensor, scale_V1: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VH, scale_V1)
        logits_NV = hidden_NH.new_empty(len(hidden_NH), len(weight_VH))
        for rows, part in _parts(weight_VH, scale_V1, hidden_NH.dtype):
            logits_NV[:, rows] = hidden_NH @ part.T
        return logits_NV

    @staticmethod
    def backward(ctx, gradient_NV: Tensor) -> tuple[Tensor, None, None]:
        weight_VH, scale_V1 = ctx.saved_tensors
        # Summed in fp32, as one product over the whole vocabulary would be; each part is rounded before.
        sum_NH = gradient_NV.new_zeros(len(gradient_NV), weight_VH.shape[1], dtype=torch.float32)
        for rows, part in _parts(weight_VH, scale_V1, gradient_NV.dtype):
            sum_NH += gradient_NV[:, rows] @ part
        return sum_NH.to(gradient_NV.dtype), None, None


def _parts(weight_VH: Tensor, scale_V1: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows and their weights in `dtype`; 16 bits hold whole numbers up to 256, so each is rounded once."""
    num_rows = max(1, PART_BYTES // (weight_VH.shape[1] * dtype.itemsize))
    for start in range(0, len(weight_VH), num_rows):
        rows = slice(start, start + num_rows)
        yield rows, weight_VH[rows].to(dtype).mul_(scale_V1[rows])


def rounded(weight_VH: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight's rows in 8 bits and their scales; the largest number of each row is kept.

    A part at a time: the whole of it in fp32 is twice the head in 16 bits.
    """
    weight8_VH = torch.empty_like(weight_VH, dtype=torch.int8)
    scale_V1 = torch.empty_like(weight_VH[:, :1], dtype=torch.float32)
    num_rows = max(1, PART_BYTES // (weight_VH.shape[1] * 4))
    for start in range(0, len(weight_VH), num_rows):
        rows = slice(start, start + num_rows)
        part = weight_VH[rows].float()
        scale_V1[rows] = part.abs().amax(1, keepdim=True) / LARGEST
        divisor = scale_V1[rows].clamp(min=torch.finfo(torch.float32).tiny)  # a row of zeros has scale 0
        weight8_VH[rows] = (part / divisor).round_().to(torch.int8)
    return weight8_VH, scale_V1


def pack_head(model: PreTrainedModel, plan: RunPlan, family: Family) -> None:
    """Put the head in 8 bits in the place of the one in 16, which is in main memory, where the plan wants one."""
    if not plan.head_8bit:
        return
    head = model.get_output_embeddings()
    device = head.weight.device if head.weight.is_meta else plan.device
    weight, scale = (tensor.to(device) for tensor in rounded(head.weight.detach()))
    bias = head.bias if head.bias is None else head.bias.detach().to(device)
    model.set_submodule(family.head, Head8bit(weight, scale, bias))


def waits_outside(plan: RunPlan) -> bool:
    """Return whether the head is loaded to main memory, and the rest to a card."""
    return plan.head_8bit and plan.device != "cpu"


def is_split(plan: RunPlan) -> bool:
    """Return whether a part of the model is loaded to main memory, and the rest to a card."""
    return embeddings.is_split(plan) or waits_outside(plan)


def device_map(plan: RunPlan, family: Family, described: PreTrainedModel) -> dict[str, str]:
    """Return where loading puts what: a head that is to be packed never comes to the card in 16 bits."""
    return embeddings.device_map(plan, lambda plan: described) | ({family.head: "cpu"} if waits_outside(plan) else {})
