"""Autocast on tensors without storage does what torch's own does on a CPU, by the lists of the installed torch."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlmtune.compat import torch as borrowed
from vlmtune.estimate.simulate import autocast
from vlmtune.estimate.simulate.autocast import autocast_of
from vlmtune.estimate.simulate.record import Recorder

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
NO_MODEL_HAS = {"_cudnn_rnn", "linalg_matrix_sqrth"}
LISTS = {
    "AT_FORALL_LOWER_PRECISION_FP": autocast.IN_16_BITS,
    "AT_FORALL_FP32": autocast.IN_FP32,
    "AT_FORALL_FP32_SET_OPT_DTYPE": autocast.TO_FP32,
    "AT_FORALL_PROMOTE": autocast.WIDEST,
}


def listed(name: str) -> set[str]:
    """Return the operations of one of the header's lists."""
    text = HEADER.read_text(encoding="utf-8")
    body = re.search(rf"#define {name}\(_\)((?:.*\\\n)*.*)", text).group(1)
    operations = {".".join(found.replace(" ", "").split(",")) for found in re.findall(r"_\(([^()]+)\)", body)}
    return {operation for operation in operations if not with_names(operation)}


def with_names(operation: str) -> bool:
    """Return whether it takes names of dimensions, which no model gives them."""
    return "imname" in operation or ".names" in operation


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_are_those_of_torch(name):
    ours, theirs = set(LISTS[name]), listed(name)
    assert len(theirs) >= 10 and theirs <= ours
    later = {operation for operation in ours - theirs if borrowed.HAS_KERNEL(f"aten::{operation}", "AutocastCUDA")}
    assert not later


def test_every_operation_that_autocast_changes_is_listed():
    ours = {*autocast.NORMS, *(operation for operations in LISTS.values() for operation in operations)}
    ours |= {"binary_cross_entropy", "cudnn_convolution", "cudnn_convolution_transpose", *NO_MODEL_HAS}
    names = {name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    changed = {name for name in names if borrowed.HAS_KERNEL(f"aten::{name}", "AutocastCUDA")}
    assert len(changed) > 90 and {name for name in changed if not with_names(name)} <= ours


OPERATIONS = {
    "linear": lambda x, w: F.linear(x, w),
    "conv by words": lambda x, w: F.conv1d(x[None], w[:, :, None], padding="valid"),
    "einsum": lambda x, w: torch.einsum("ab,cb->ac", x, w),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[None, None], w[None, None], w[None, None]),
    "loss": lambda x, w: F.l1_loss(x.bfloat16(), w.bfloat16()),
    "left alone": lambda x, w: F.silu(x) + w,
}


def recorded(run, device: str) -> list[tuple[str, int]]:
    """Return what forward and backward of an operation allocate under autocast: operations and bytes."""
    x, w = (torch.zeros(64, 64, device=device, requires_grad=True) for _ in range(2))
    with Recorder() as recorder:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(x, w)
        out.float().sum().backward()
    log = recorder.log
    return [(log.tags[handle][1], num_bytes) for handle, num_bytes in log.events if handle > 0]


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "attention"])
def test_casts_are_those_of_torch_on_a_cpu(name):
    with autocast_of("cpu"):
        found = recorded(OPERATIONS[name], "meta")
    assert found == recorded(OPERATIONS[name], "cpu")


def test_without_it_meta_tensors_are_not_cast():
    assert recorded(OPERATIONS["linear"], "meta") != recorded(OPERATIONS["linear"], "cpu")


def test_cuda_normalises_and_sums_in_fp32():
    x = torch.zeros(4, 64, device="meta", dtype=torch.bfloat16)
    with autocast_of("cuda"), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.layer_norm(x, [64]).dtype == torch.float32
        assert x.sum().dtype == x.softmax(-1).dtype == x.norm().dtype == torch.float32
        assert x.sum(dtype=torch.bfloat16).dtype == torch.bfloat16
        assert torch.addcmul(x, x.float(), x).dtype == torch.float32
        assert F.linear(x.float(), x.float()).dtype == torch.bfloat16
        assert F.linear(x.double(), x.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert F.linear(x.float(), x.float()).dtype == torch.float32
    assert x.sum().dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("privateuseone")


def test_casts_of_weights_are_kept_until_the_outermost_autocast_ends():
    weight, numbers = (torch.zeros(64, 64, device="meta", requires_grad=learns) for learns in (True, False))
    with autocast_of("cuda"), Recorder() as recorder:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                F.linear(numbers, weight)
            F.linear(numbers, weight)
            assert casts(recorder) == (3, 1)
        assert casts(recorder) == (3, 0)


def casts(recorder: Recorder) -> tuple[int, int]:
    """Return how many casts were made, and how many are left."""
    made = {handle for handle, (_, operation, _) in recorder.log.tags.items() if operation == "aten._to_copy.default"}
    return len(made), len(made) - sum(-handle in made for handle, _ in recorder.log.events)
