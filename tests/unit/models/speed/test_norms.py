"""RMS norms by one kernel: outputs and gradients of the library's code within rounding, only where they are such.

The kernels stand in here by the same computation on a CPU; what is called is counted.
"""

from dataclasses import replace

import pytest
import torch
from tiny.rows import built, made_by
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioCumulativeGroupNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vlmtune.contract import peak_bytes
from vlmtune.engine.step import forward_loss
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.simulate.simulation import Run, record_steps, simulate
from vlmtune.models.build import build_model
from vlmtune.models.speed import norms

WIDTH = 48


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """Which operations were called."""
    names: list[str] = []

    def counted(name: str):
        real = getattr(norms, name)

        def call(*args):
            names.append(name)
            return real(*args)

        return call

    for name in ("_norm", "_norm_backward"):
        monkeypatch.setattr(norms, name, counted(name))
    return names


class Gated(nn.Module):
    """A norm that takes more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class Doubled(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


KINDS = [
    (lambda: LlamaRMSNorm(WIDTH), True),
    (lambda: LlamaRMSNorm(WIDTH, eps=1e-3), True),
    (lambda: nn.RMSNorm(WIDTH, eps=1e-6), True),
    (lambda: nn.RMSNorm(WIDTH), False),
    (lambda: Gemma3RMSNorm(WIDTH), False),
    (lambda: nn.LayerNorm(WIDTH, bias=False), False),
    (lambda: Doubled(WIDTH), False),
    (Gated, False),
    (lambda: Gemma3nAudioCumulativeGroupNorm(WIDTH, (2,)), False),
    (lambda: nn.Linear(WIDTH, WIDTH, bias=False), False),
]


@pytest.mark.parametrize(("make", "fits"), KINDS)
def test_only_what_computes_this_is_taken(make, fits, models):
    model = nn.Sequential(make()).requires_grad_(False)
    norms.fuse_norms(model, replace(models("llava").plan, fused_norms=True))
    assert ("forward" in vars(model[0])) == fits


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-7)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_a_norm_and_its_gradient_within_rounding(dtype, rounding, turned, models, called):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(WIDTH).to(dtype)
    nn.init.normal_(norm.weight)
    model, found = nn.Sequential(norm).requires_grad_(False), []
    plan = models("llava").plan
    x = torch.randn(WIDTH if turned else 5, 5 if turned else WIDTH).to(dtype)
    x = (x.T if turned else x).requires_grad_()
    for fused in (False, True):
        norms.fuse_norms(model, replace(plan, fused_norms=fused))
        x.grad, y = None, model(x)
        (y * torch.linspace(-1, 1, WIDTH, dtype=dtype)).sum().backward()
        found.append((y.detach().double(), x.grad.double()))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= rounding * other.norm()
    assert called == ["_norm", "_norm_backward"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_a_model_learns_the_same(name, models, tmp_path, called):
    tiny, found = models(name), []
    for fused in (False, True):
        plan = replace(tiny.plan, fused_norms=fused)
        model = built(plan)
        loss = forward_loss(model, tiny.batch(tmp_path), plan)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 2**-15 * other.norm()
    assert bool(called) == (name == "qwen2_5_vl")


def test_the_simulation_takes_what_the_step_takes(models, tmp_path, called):
    tiny = models("qwen2_5_vl")
    plan, run = replace(tiny.plan, fused_norms=True), Run([[tiny.batch(tmp_path)]], load=None)
    logs = [record_steps(build_model(plan).train(), plan, run), simulate(plan, run)]
    ours = [made_by(log, "vlmtune.norm") for log in logs]
    assert ours[0] == ours[1] and len(ours[0]) >= 2 * (2 * 2 + 1) * 2
    assert peak_bytes(logs[1]) == pytest.approx(peak_bytes(logs[0]), rel=0.005)


def test_off_a_card_a_norm_takes_its_output_and_a_scale_a_row_and_its_backward_pass_the_gradient():
    x = torch.empty(8, 1000, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(1000, dtype=torch.bfloat16, device="meta")
    with Recorder() as recorder:
        y, scale = norms.norm(x, weight, 1e-6)
        gradient = norms.norm_backward(y, x, scale, weight)
    assert [num_bytes for handle, num_bytes in recorder.log.events if handle > 0] == [16_000, 8 * 4, 16_000]
    assert gradient.shape == x.shape
