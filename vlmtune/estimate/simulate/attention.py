"""Attention as each device's kernels compute it: on meta tensors torch takes a path that no device takes."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.compat import torch as borrowed
from vlmtune.compat.borrowed import Name
from vlmtune.estimate.simulate.autocast import in_16_bits

flash_attention = borrowed.FLASH_ATTENTION.get()
flash_attention_for_cpu = borrowed.FLASH_ATTENTION_FOR_CPU.get()
efficient_attention = borrowed.EFFICIENT_ATTENTION.get()
MASK_ALIGNMENT = 8
"""The memory-efficient CUDA kernel wants mask rows that start at multiples of 16 bytes."""


@contextmanager
def attention_of(device: str):
    """Make scaled_dot_product_attention behave as on `device` (`cuda` or `cpu`) for tensors without storage."""
    real = F.scaled_dot_product_attention
    simulated = {"cpu": _cpu, "cuda": _cuda}[device]

    def dispatch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args, **kwargs) -> Tensor:
        if query.device.type != "meta":
            return real(query, key, value, attn_mask, *args, **kwargs)
        values = in_16_bits(query, key, value, attn_mask)
        out = simulated(*values, *args, **kwargs)
        while values:  # dropped from the first to the last, as in torch's own call
            values.pop(0)
        return out

    with borrowed.SCALED_DOT_PRODUCT_ATTENTION.replaced(dispatch):
        yield


def _cpu(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> Tensor:
    """One kernel for all; it takes grouped heads as they are."""
    mask = _float_mask(attn_mask, q)
    return flash_attention_for_cpu(q, k, v, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]


def _cuda(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> Tensor:
    """Without a mask in 16 bits: flash. Otherwise: memory-efficient, which knows no grouped heads."""
    if attn_mask is None and q.dtype in (torch.float16, torch.bfloat16):
        head = q.shape[-1]
        short = -head % 8
        if short:
            q, k, v = (F.pad(t, (0, short)) for t in (q, k, v))
            scale = head**-0.5 if scale is None else scale
        out = flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :head]
    if enable_gqa:
        k, v = _repeated(q, k), _repeated(q, v)
    mask = _float_mask(attn_mask, q)
    if mask is not None:
        short = -mask.shape[-1] % MASK_ALIGNMENT
        if short:
            mask = F.pad(mask, (0, short))[..., : mask.shape[-1]]
        mask = mask.expand(*q.shape[:3], k.shape[2])
    needs_grad = any(t.requires_grad for t in (q, k, v))
    return efficient_attention(q, k, v, mask, needs_grad, dropout_p, is_causal, scale=scale)[0]


def _repeated(q: Tensor, grouped: Tensor) -> Tensor:
    times = q.shape[1] // grouped.shape[1]
    return grouped.repeat_interleave(times, 1) if times > 1 else grouped


def _float_mask(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A boolean mask becomes 0 and -inf in the query's format, as torch's own kernels' entry does it."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.zeros((), dtype=q.dtype, device=q.device), float("-inf"))


def _flops_of_attention(query: Tensor, key: Tensor, *args, **kwargs) -> int:
    """Scores and their product with the values. torch 2.11's own formula refuses grouped heads."""
    return 4 * query.numel() * key.shape[2]


def _flops_of_attention_backward(grad: Tensor, query: Tensor, key: Tensor, *args, **kwargs) -> int:
    """The scores again, and a product for each of query, key, value and score gradients."""
    return 10 * query.numel() * key.shape[2]


def _flops_of_rows(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *args, **kwargs) -> int:
    """Scores of each row with itself alone, [T, H, D], and their product with the values."""
    return 4 * (query.numel() // len(query)) * int(starts.diff().square().sum())


def _flops_of_rows_backward(grad: Tensor, query: Tensor, key: Tensor, *args, **kwargs) -> int:
    """As of attention under each other; after query, key come value, output, its sums, and where rows begin."""
    return 10 * (query.numel() // len(query)) * int(args[3].diff().square().sum())


def _packet(name: Name) -> object:
    return borrowed.OVERLOAD_PACKET.read(borrowed.CUSTOM_OPERATION.read(name.get()))


FLOPS_OF_ATTENTION = {
    **{name.get(): _flops_of_attention for name in borrowed.ATTENTION},
    **{name.get(): _flops_of_attention_backward for name in borrowed.ATTENTION_BACKWARD},
    _packet(borrowed.VARLEN_ATTENTION): _flops_of_rows,
    _packet(borrowed.VARLEN_ATTENTION_BACKWARD): _flops_of_rows_backward,
}
"""Operation → its floating-point operations, by its arguments."""
