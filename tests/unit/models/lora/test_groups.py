"""Linear layers that read one input share their adapters' products; whatever a model asks for, gradients are PEFT's."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmtune.estimate.simulate.record import Recorder
from vlmtune.models.lora.lean import make_lean

WIDTH, RANK, ROWS = 32, 4, 6


class Reader(GradientCheckpointingLayer):
    """Three linear layers of one width, and what is done with them."""

    def __init__(self, reads: Callable) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(self, x)


def all_of_one(layer: Reader, x: Tensor) -> Tensor:
    return layer.q_proj(x) * layer.k_proj(x) + layer.v_proj(x)


def backwards(layer: Reader, x: Tensor) -> Tensor:
    return layer.v_proj(x) + layer.k_proj(x) * layer.q_proj(x)


def of_two(layer: Reader, x: Tensor) -> Tensor:
    other = x.tanh()
    return layer.q_proj(x) * layer.k_proj(other) + layer.v_proj(other)


def in_turn(layer: Reader, x: Tensor) -> Tensor:
    other = x.tanh()
    return layer.q_proj(x) + layer.k_proj(other) * layer.v_proj(x)


def one_twice(layer: Reader, x: Tensor) -> Tensor:
    return layer.q_proj(x) + layer.q_proj(x).sin() * layer.k_proj(x)


def one_for_nothing(layer: Reader, x: Tensor) -> Tensor:
    layer.k_proj(x)
    return layer.q_proj(x) + layer.v_proj(x)


def two_not_asked(layer: Reader, x: Tensor) -> Tensor:
    return layer.k_proj(x)


def adapted(reads: Callable, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Reader(reads).to(dtype)).requires_grad_(False)
    model = get_peft_model(model, LoraConfig(r=RANK, target_modules=["q_proj", "k_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def learned(model: nn.Module, grad: bool, passes: int = 2) -> list[Tensor | None]:
    """Output and gradients; of the input too where it has one."""
    torch.manual_seed(1)
    x = torch.randn(2, ROWS, WIDTH, requires_grad=grad)
    for _ in range(passes):
        y = model(x)
        (y * torch.linspace(-1, 1, WIDTH)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


READS = [all_of_one, backwards, of_two, in_turn, one_twice, one_for_nothing, two_not_asked]


@pytest.mark.parametrize("grad", [True, False], ids=["inside", "first"])
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("reads", READS, ids=lambda reads: reads.__name__)
def test_whoever_reads_what_the_gradients_are_peft_s(reads, recomputes, grad):
    model = adapted(reads)
    layer = model.get_base_model()[0].train()
    layer.gradient_checkpointing = recomputes
    layer._gradient_checkpointing_func = lambda function, *args: torch.utils.checkpoint.checkpoint(
        function, *args, use_reentrant=False
    )
    plain = copy.deepcopy(model)
    plain.get_base_model()[0].gradient_checkpointing = False
    make_lean(model.get_base_model())
    for one, other in zip(learned(model, grad), learned(plain, grad), strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def names_of(model: nn.Module, x: Tensor) -> list[str]:
    """The matrix products of a pass, in both directions."""
    with Recorder() as recorder:
        model(x).sum().backward()
    return [name for _, name, _ in recorder.log.tags.values() if ".mm" in name or ".addmm" in name]


def test_a_group_has_one_product_of_its_own_in_each_direction():
    model = adapted(all_of_one, torch.bfloat16)
    make_lean(model.get_base_model())
    products = names_of(model, torch.randn(2, ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True))
    # Each made a tensor: h; three linear layers; then of B three, of the input one, of all A one.
    assert len(products) == 1 + 3 + 3 + 1 + 1


@pytest.mark.parametrize(("grad", "learns"), [(False, False), (True, True), (True, False)])
def test_nothing_is_held_when_a_pass_is_over(grad, learns):
    model = adapted(all_of_one)
    make_lean(model.get_base_model())
    gc.collect()
    gc.disable()
    try:
        with torch.set_grad_enabled(grad):
            x = torch.randn(2, ROWS, WIDTH)
            held, y = weakref.ref(x), model(x)
            if learns:
                y.sum().backward()
            del x, y
        assert held() is None
    finally:
        gc.enable()
