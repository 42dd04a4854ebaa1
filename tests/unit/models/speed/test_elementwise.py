"""Gated MLPs and rotary positions by one operation each: the library's outputs and gradients within rounding.

On a CPU an operation of torch's stands for each kernel, and is recorded whole; the kernels are held to it by Triton's
interpreter.
"""

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tiny.rows import built, made_by
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3TextConfig
from transformers.models.gemma4.modeling_gemma4 import apply_rotary_pos_emb as turned_by_gemma_4
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, apply_rotary_pos_emb
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from vlmtune.contract import peak_bytes
from vlmtune.engine.step import forward_loss
from vlmtune.estimate.simulate.simulation import Run, record_steps, simulate
from vlmtune.models.build import build_model
from vlmtune.models.speed import gated, rotary

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
FUSED = ("gated", "gated_backward", "turned")


class Halved(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Squared(LlamaMLP):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.act_fn = nn.ReLU()


def llama(**values) -> LlamaConfig:
    return LlamaConfig(**SIZES, **values)


MLPS = [
    (lambda: LlamaMLP(llama()), gated.SILU),
    (lambda: Gemma3MLP(Gemma3TextConfig(**SIZES)), gated.GELU_TANH),
    (lambda: LlamaMLP(llama(hidden_act="gelu")), None),
    (lambda: Halved(llama()), None),
    (lambda: Squared(llama()), None),
    (lambda: nn.Linear(4, 4), None),
]


@pytest.mark.parametrize(("make", "kind"), MLPS)
def test_only_mlps_that_compute_this_are_taken(make, kind, models):
    model = nn.Sequential(make()).requires_grad_(False)
    gated.fuse_gates(model, replace(models("llava").plan, fused_elementwise=True))
    assert [part.args[1] for part in [vars(model[0]).get("forward")] if part] == ([] if kind is None else [kind])


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-7)], ids=str)
@pytest.mark.parametrize("make", [make for make, kind in MLPS if kind is not None])
def test_an_mlp_and_its_gradient_within_rounding(make, dtype, rounding, models):
    torch.manual_seed(0)
    model = nn.Sequential(make()).to(dtype).requires_grad_(False)
    x, found = torch.randn(5, 16).to(dtype).requires_grad_(), []
    for fused in (False, True):
        gated.fuse_gates(model, replace(models("llava").plan, fused_elementwise=fused))
        x.grad, y = None, model(x)
        (y * torch.linspace(-1, 1, 16, dtype=dtype)).sum().backward()
        found.append((y.detach().double(), x.grad.double()))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= rounding * other.norm()


@pytest.mark.parametrize(
    ("library", "shape", "angles"),
    [
        (apply_rotary_pos_emb, (1, 2, 5, 8), (1, 5, 8)),
        (apply_rotary_pos_emb, (3, 2, 5, 8), (1, 5, 8)),
        (apply_rotary_pos_emb, (3, 2, 5, 8), (3, 5, 8)),
        (apply_rotary_pos_emb_vision, (5, 2, 8), (5, 8)),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-7)], ids=str)
def test_positions_and_their_gradients_within_rounding(library, shape, angles, dense, dtype, rounding):
    torch.manual_seed(0)
    cos, sin = torch.randn(2, *angles).to(dtype)
    q, k = (torch.randn(*shape, 1 if dense else 2).to(dtype)[..., 0].requires_grad_() for _ in range(2))
    results = []
    for turn in (library, rotary.TURNED[library.__name__]):
        given = () if turn is library else (library,)
        outs = turn(*given, q, k, cos, sin)
        gradients = torch.autograd.grad(outs, (q, k), [torch.linspace(-1, 2, q.numel()).view(shape).to(dtype)] * 2)
        results.append([tensor.double() for tensor in (*outs, *gradients)])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape and (one - other).norm() <= rounding * other.norm()


def test_formats_that_are_to_be_joined_are_the_librarys():
    q, angle = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16), torch.randn(1, 5, 8)
    out, _ = rotary.TURNED[rotary.IN_TEXT](apply_rotary_pos_emb, q, q, angle.cos(), angle.sin())
    assert out.dtype == torch.float32


def not_turned(q, k, cos, sin, unsqueeze_dim=1):
    return q * cos, k * cos


def of_other_shapes(q, k, cos, sin, unsqueeze_dim=1):
    return q.view(-1, 7), k


@pytest.mark.parametrize("library", [not_turned, of_other_shapes, turned_by_gemma_4])
def test_a_function_that_computes_something_else_stays(library):
    assert rotary._computes_this(rotary.IN_TEXT, apply_rotary_pos_emb)
    assert not rotary._computes_this(rotary.IN_TEXT, library)


NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "qwen", "gemma3")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_the_same(name, models, tmp_path):
    tiny, found = models(name), []
    for fused in (False, True):
        plan = replace(tiny.plan, fused_elementwise=fused)
        model = built(plan)
        loss = forward_loss(model, tiny.batch(tmp_path), plan)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 2**-15 * other.norm()
    forwards = [vars(module)["forward"].func for module in model.modules() if "forward" in vars(module)]
    assert gated._forward in forwards
    assert rotary._of_text in [getattr(one.__globals__.get(rotary.IN_TEXT), "func", None) for one in forwards]


def test_the_simulation_takes_what_the_step_takes(models, tmp_path):
    tiny = models("qwen3_vl")
    plan, run = replace(tiny.plan, fused_elementwise=True), Run([[tiny.batch(tmp_path)]], load=None)
    logs = [record_steps(build_model(plan).train(), plan, run), simulate(plan, run)]
    ours = [made_by(log, "vlmtune.") for log in logs]
    assert ours[0] == ours[1]
    assert Counter(name.split(".")[1] for name, _ in ours[0]).keys() == set(FUSED)
    assert peak_bytes(logs[1]) == pytest.approx(peak_bytes(logs[0]), rel=0.005)


@pytest.fixture
def kernels(monkeypatch) -> ModuleType:
    """The kernels, computed by Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = find_spec("vlmtune.models.speed.kernels")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NEAR = [(torch.float32, 2**-20), (torch.bfloat16, 2**-7)]


def near(one: Tensor, other: Tensor, rounding: float) -> bool:
    return one.shape == other.shape and (one.double() - other.double()).norm() <= rounding * other.double().norm()


@pytest.mark.parametrize("kind", gated.ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "rounding"), NEAR)
def test_kernels_of_gates_compute_what_stands_for_them(kind, dtype, rounding, kernels):
    torch.manual_seed(0)
    gate, up, gradient = torch.randn(3, 5, 333).to(dtype)
    assert near(kernels.gated(gate, up, kind), gated.gated(gate, up, kind), rounding)
    pairs = zip(
        kernels.gated_backward(gradient, gate, up, kind), gated.gated_backward(gradient, gate, up, kind), strict=True
    )
    assert all(near(*pair, rounding) for pair in pairs)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("angles", [1, 2])
@pytest.mark.parametrize(("dtype", "rounding"), NEAR)
def test_the_kernel_of_positions_computes_what_stands_for_it(dtype, rounding, angles, back, kernels):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 48).to(dtype).transpose(1, 2)[..., :24]
    cos, sin = torch.randn(2, angles, 5, 24).to(dtype)
    assert near(kernels.turned(x, cos, sin, back), rotary.turned(x, cos, sin, back), rounding)


@pytest.mark.parametrize(("dtype", "rounding"), NEAR)
def test_the_kernels_of_narrow_norms_compute_the_norm_and_its_gradient(dtype, rounding, kernels):
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 5, 4, 48).to(dtype)
    weight, exact = torch.randn(48).to(dtype), x.double().requires_grad_()
    y, scale = kernels.norm(x, weight, 1e-6)
    expected = F.rms_norm(exact, (48,), weight.double(), 1e-6)
    expected.backward(gradient.double())
    assert near(y, expected, rounding) and scale.shape == (5, 4, 1)
    assert near(kernels.norm_backward(gradient, x, scale, weight), exact.grad, rounding)
