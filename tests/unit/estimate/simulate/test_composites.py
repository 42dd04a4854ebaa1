"""Dropout and softmax of tensors without storage take what CUDA's kernels take."""

import torch
import torch.nn.functional as F
from torch import nn

from vlmtune.estimate.simulate.composites import composites_of
from vlmtune.estimate.simulate.record import Recorder


def allocated(run) -> list[int]:
    """Return the bytes of each allocation."""
    with Recorder() as recorder:
        kept = run()
    assert kept is not None
    return [num_bytes for handle, num_bytes in recorder.log.events if handle > 0]


def meta(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(8, 1000, dtype=dtype, device="meta", requires_grad=True)


def test_the_mask_of_dropout_has_a_byte_a_number_and_comes_first():
    numbers = meta(torch.float32)
    with composites_of("cuda"):
        assert allocated(lambda: nn.Dropout(0.1)(numbers)) == [8000, 32_000]
        assert allocated(lambda: nn.Dropout(0.1).eval()(numbers)) == []
        assert allocated(lambda: nn.Dropout(0.0)(numbers)) == []
    with composites_of("cpu"):
        assert allocated(lambda: nn.Dropout(0.1)(numbers)) == [32_000, 32_000]


def test_the_backward_pass_of_dropout_keeps_the_mask_alone():
    numbers = meta(torch.float32)
    with composites_of("cuda"):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
        ):
            F.dropout(numbers, 0.1).sum().backward()
    assert [tensor.dtype for tensor in saved] == [torch.bool]


def test_softmax_from_fp16_to_fp32_makes_no_copy():
    with composites_of("cuda"):
        assert allocated(lambda: F.softmax(meta(torch.float16), dim=-1, dtype=torch.float32)) == [16_000, 32_000]
        assert allocated(lambda: F.softmax(meta(torch.bfloat16), dim=-1, dtype=torch.float32))[1:] == [32_000, 32_000]
    with composites_of("cpu"):
        assert allocated(lambda: F.softmax(meta(torch.float16), dim=-1, dtype=torch.float32))[1:] == [32_000, 32_000]
