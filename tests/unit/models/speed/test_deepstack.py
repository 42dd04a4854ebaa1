"""Features for the first layers are added as the library adds them, to the bit, and its own code is not asked."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vlmtune.models.speed.deepstack import add_deep_features

B, T, H = 2, 9, 6


class Other(nn.Module):
    def _deepstack_process(self, hidden, features):
        return hidden + features


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_gradients_are_the_librarys(dtype):
    torch.manual_seed(0)
    mask = torch.rand(B, T) < 0.5
    hidden = torch.randn(B, T, H, dtype=dtype, requires_grad=True)
    features = torch.randn(int(mask.sum()), H, dtype=torch.float32, requires_grad=True)
    ours = nn.Module()
    ours._deepstack_process = Qwen3VLTextModel._deepstack_process.__get__(SimpleNamespace())
    add_deep_features(ours)
    found = []
    for add in (ours._deepstack_process, Qwen3VLTextModel._deepstack_process.__get__(SimpleNamespace())):
        summed = add(hidden, mask, features)
        found.append([summed, *torch.autograd.grad(summed.float().square().sum(), (hidden, features))])
    assert not torch.equal(found[0][0], hidden)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_models_that_add_otherwise_are_left_alone():
    other = Other()
    add_deep_features(other)
    assert vars(other).get("_deepstack_process") is None


def test_qwen3_vl_is_met(models):
    from vlmtune.models.build import build_model

    met = [module for module in build_model(models("qwen3_vl").plan).modules() if "_deepstack_process" in vars(module)]
    assert [type(module).__name__ for module in met] == ["Qwen3VLTextModel"]
