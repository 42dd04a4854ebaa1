"""What CUDA operations take besides their outputs, by operation and GPU architecture.

No dispatch mode sees this memory. Every rule names its source; "trace" is a recorded allocation history of a real run
(torch 2.11, bitsandbytes 0.50, H100), compared with the simulated log operation by operation.
"""

from collections.abc import Callable
from functools import partial
from math import prod

import torch

from vlmtune.compat.bitsandbytes import GEMM_4BIT
from vlmtune.compat.torch import (
    CURRENT_GRAPH_TASK_ID,
    CUSTOM_OPERATION,
    FLASH_ATTENTION_BACKWARD,
    FOREACH_NORM,
    VARLEN_ATTENTION_BACKWARD,
)
from vlmtune.estimate.simulate.record import NO_WORKSPACES, Hidden, Workspaces, name_of
from vlmtune.estimate.simulate.reductions import partial_sums_bytes
from vlmtune.estimate.simulate.repeat import ON_STREAM_OF_GRAPHS
from vlmtune.units import KIB, MIB

current_graph_task_id = CURRENT_GRAPH_TASK_ID.get()
aten = torch.ops.aten
PRODUCT_4BIT = str(GEMM_4BIT.get().default)
FP32_BYTES = 4

CUBLASLT_BYTES = MIB
"""cuBLASLt's workspace, which a thread's first product with a bias makes; torch 2.11, H100, trace."""

FUSED_4BIT_MAX_ROWS = 4
"""bitsandbytes backends/cuda/ops.py: up to here every architecture reads 4-bit weights in place."""

GEMMS = {"aten.mm.default", "aten.addmm.default", "aten.bmm.default", "aten.baddbmm.default", PRODUCT_4BIT}

FOREACH_CHUNK = 65536

CHANNELS_AT_ONCE, MANY_PATCHES = 8, 1024
"""Of an image: 729 patches were seen to be copied, 1024 not."""

Rule = Callable[[tuple, dict], Workspaces]


def cublas_workspace_bytes(sm: tuple[int, int]) -> int:
    """Return what each thread's cuBLAS handle keeps. ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize."""
    return 32 * MIB if sm[0] in (9, 10, 12) else 8 * MIB + 128 * KIB


def prefers_cudnn_attention(sm: tuple[int, int]) -> bool:
    """Return whether attention goes to cuDNN first. ATen/native/transformers/cuda/sdp_utils.cpp: Hopper, Blackwell."""
    return sm[0] in (9, 10)


def hidden_of(
    sm: tuple[int, int], num_sms: int, cublas_bytes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> Hidden:
    """Return the rules of a GPU, for one run: a thread's first product makes a workspace, and its first bias another.

    Args:
        sm: compute capability.
        num_sms: its multiprocessors.
        cublas_bytes: the blocks that stay of the forward pass, the last of them with its first bias, and of the
            backward pass, as measured on the card; None for those of the architecture.
    """
    workspace_bytes = cublas_workspace_bytes(sm)
    forward_bytes, backward_bytes = cublas_bytes or ((workspace_bytes, CUBLASLT_BYTES), (workspace_bytes,))
    # The backward pass runs on a thread of its own, the recomputation within it too; each stream has its own besides.
    first = {False: forward_bytes[:1], True: backward_bytes}
    products = {(of_graphs, way): first[way] for of_graphs in (False, True) for way in first}
    with_bias = dict.fromkeys(products, forward_bytes[1:])
    rules = _rules(sm, num_sms)

    def hidden(operation: object, args: tuple, kwargs: dict) -> Workspaces:
        name = name_of(operation)
        rule = rules.get(name)
        spaces = rule(args, kwargs) if rule else NO_WORKSPACES
        if name not in GEMMS:
            return spaces
        where = ON_STREAM_OF_GRAPHS.get(), current_graph_task_id() != -1
        kept = products.pop(where, ())
        if _adds_bias(name, args, kwargs):
            kept += with_bias.pop(where, ())
        return Workspaces(spaces.before, spaces.after, kept) if kept else spaces

    return hidden


def _adds_bias(name: str, args: tuple, kwargs: dict) -> bool:
    """Return whether a product's bias is a vector, which cuBLASLt adds. ATen/native/cuda/Blas.cpp, addmm_out_cuda_impl.

    bitsandbytes unpacks a weight of 4 bits and gives it to `linear` with the bias, except for few rows.
    """
    if name == PRODUCT_4BIT:
        bias = kwargs.get("bias", args[6] if len(args) > 6 else None)
        return bias is not None and prod(args[0].shape[:-1]) > FUSED_4BIT_MAX_ROWS
    return name == "aten.addmm.default" and args[0].dim() == 1


def _rules(sm: tuple[int, int], num_sms: int) -> dict[str, Rule]:
    attention_backward = _cudnn_backward if prefers_cudnn_attention(sm) else _flash_backward
    return {
        PRODUCT_4BIT: _dequantised_weight,
        str(FLASH_ATTENTION_BACKWARD.get().default): attention_backward,
        str(CUSTOM_OPERATION.read(VARLEN_ATTENTION_BACKWARD.get())): _varlen_backward,
        "aten.masked_scatter.default": _masked_scatter,
        "aten.masked_scatter_.default": _masked_scatter,
        "aten.native_layer_norm.default": _copied(0),
        "aten.native_layer_norm_backward.default": _copied(1),
        "aten.convolution.default": _convolution,
        "aten.convolution_backward.default": _copied(0, 1, 2),
        "aten.sum.default": partial(_sum, sm, num_sms),
        "aten.sum.dim_IntList": partial(_sum, sm, num_sms),
        str(FOREACH_NORM.get()): _norms,
    }


def _dequantised_weight(args: tuple, kwargs: dict) -> Workspaces:
    """bitsandbytes backends/cuda/ops.py, `_dequant_linear_fallback`: constants in fp32 twice, then the whole weight.

    Between 5 and 1536 rows some architectures have a fused kernel for some shapes; it needs less than this.
    """
    inputs, packed, shape = args[:3]
    if inputs.numel() // inputs.shape[-1] <= FUSED_4BIT_MAX_ROWS:
        return NO_WORKSPACES
    weight_bytes = prod(shape) * inputs.element_size()
    absmax_8bit = kwargs.get("absmax_8bit", args[7] if len(args) > 7 else None)
    if absmax_8bit is None:
        return Workspaces(before=(weight_bytes,))
    constants_bytes = absmax_8bit.numel() * FP32_BYTES
    return Workspaces(before=(constants_bytes, constants_bytes, weight_bytes))


def _masked_scatter(args: tuple, kwargs: dict) -> Workspaces:
    """ATen/native/cuda/IndexKernel.cpp, masked_scatter: running count in int64 and the mask, of full size. Trace."""
    numbers = max(args[0].numel(), args[1].numel())
    return Workspaces(after=(numbers * torch.int64.itemsize, numbers))


def _cudnn_backward(args: tuple, kwargs: dict) -> Workspaces:
    """cuDNN 9 on Hopper, trace: dq in fp32, a row sum for each query, 256 bytes; dk and dv for each head of a group."""
    _, q, k = args[:3]
    sums_bytes = prod(q.shape[:3]) * FP32_BYTES
    grouped_bytes = 2 * q.numel() * q.element_size() if k.shape[1] != q.shape[1] else 0
    return Workspaces(after=(q.numel() * FP32_BYTES + grouped_bytes + sums_bytes + 256,))


def _flash_backward(args: tuple, kwargs: dict) -> Workspaces:
    """flash_attn/flash_api.cpp, mha_bwd: softmax_d and dq_accum in fp32, lengths rounded; grouped dk, dv in full."""
    _, q, k = args[:3]
    batch, heads, length, head = q.shape
    rounded_length = -(-length // 128) * 128
    rounded_head = -(-head // 32) * 32
    softmax_bytes = batch * heads * rounded_length * FP32_BYTES
    accum_bytes = batch * rounded_length * heads * rounded_head * FP32_BYTES
    if k.shape[1] == heads:
        return Workspaces(before=(softmax_bytes, accum_bytes))
    grouped_bytes = batch * k.shape[2] * heads * head * q.element_size()
    return Workspaces(before=(softmax_bytes, accum_bytes, grouped_bytes, grouped_bytes))


def _varlen_backward(args: tuple, kwargs: dict) -> Workspaces:
    """flash_attn/flash_api.cpp, mha_varlen_bwd: as above, for all tokens and 128 more for each row."""
    _, q, k, _, _, _, starts = args[:7]
    tokens, heads, head = q.shape
    rounded_tokens, rounded_head = tokens + 128 * (len(starts) - 1), -(-head // 32) * 32
    softmax_bytes = heads * rounded_tokens * FP32_BYTES
    accum_bytes = rounded_tokens * heads * rounded_head * FP32_BYTES
    if k.shape[1] == heads:
        return Workspaces(before=(softmax_bytes, accum_bytes))
    grouped_bytes = q.numel() * q.element_size()
    return Workspaces(before=(softmax_bytes, accum_bytes, grouped_bytes, grouped_bytes))


def _copied(*places: int) -> Rule:
    """Inputs that are not contiguous are copied first: layer_norm_kernel.cu, `layer_norm_cuda`; Convolution.cpp."""

    def rule(args: tuple, kwargs: dict) -> Workspaces:
        copied = [args[place] for place in places if not args[place].is_contiguous()]
        return Workspaces(before=tuple(tensor.numel() * tensor.element_size() for tensor in copied))

    return rule


def _convolution(args: tuple, kwargs: dict) -> Workspaces:
    """Patches of a tower, in 16 bits: cuDNN 9 takes all three with channels last, in eights. Trace, of 8 towers.

    Seen for images of 224 to 384 px in patches of 14; those of 448 and 896 px, with more patches, take nothing.
    """
    copied = _copied(0, 1)(args, kwargs)
    images, weight, _, stride = args[:4]
    if images.dim() != 4 or images.element_size() != 2 or list(weight.shape[2:]) != list(stride):
        return copied
    number, channels, *sides = images.shape
    patches = prod(side // step for side, step in zip(sides, stride, strict=True))
    if patches >= MANY_PATCHES:
        return copied
    padded = -(-channels // CHANNELS_AT_ONCE) * CHANNELS_AT_ONCE
    numbers = number * (padded * prod(sides) + len(weight) * patches) + padded * len(weight) * prod(stride)
    return Workspaces(copied.before, after=(numbers * images.element_size() + 16,))


def _sum(sm: tuple[int, int], num_sms: int, args: tuple, kwargs: dict) -> Workspaces:
    """ReduceOps.cpp, `make_reduction_from_ty`: numbers of another format are converted first, 16 bits to 32 apart."""
    tensor = args[0]
    if not tensor.is_floating_point():
        dtype = kwargs.get("dtype") or torch.int64
        return Workspaces(after=(tensor.numel() * dtype.itemsize,)) if dtype != tensor.dtype else NO_WORKSPACES
    dims = sorted(dim % tensor.dim() for dim in args[1] or ()) if len(args) > 1 else []
    if not dims or dims != list(range(len(dims))) or len(dims) == tensor.dim() or not tensor.is_contiguous():
        return NO_WORKSPACES
    num_rows = prod(tensor.shape[: len(dims)])
    return Workspaces(after=partial_sums_bytes(num_rows, tensor.numel() // num_rows, num_sms, sm))


def _norms(args: tuple, kwargs: dict) -> Workspaces:
    """ForeachReduceOp.cu, `foreach_tensor_norm_cuda`: a number for each chunk of the longest, for every tensor."""
    chunks = max(-(-tensor.numel() // FOREACH_CHUNK) for tensor in args[0])
    return Workspaces(before=(len(args[0]) * chunks * FP32_BYTES,))
