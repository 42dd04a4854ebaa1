"""Lean adapters: what they compute, and all gradients, is what PEFT's own forward makes, within rounding."""

import copy
from collections import Counter

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tiny.rows import built, learned, tiny_plan
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmtune.engine.step import forward_loss
from vlmtune.estimate.simulate.record import GRADIENTS, PRODUCT_4BIT, RECOMPUTED, Recorder
from vlmtune.models.build import base_of
from vlmtune.models.lora.lean import make_lean

IN, OUT, RANK, ROWS = 128, 192, 8, 24
ROUNDING = {torch.float32: 2**-21, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""How far outputs and gradients may lie from exact ones, by the norm: as one rounded number may (fp32: some)."""


def adapted(dtype: torch.dtype, packed: bool = False, **lora) -> nn.Module:
    """A linear layer with an adapter that does something."""
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT).to(dtype)
    if packed:
        weight, linear = linear.weight.data, Linear4bit(IN, OUT, compute_dtype=dtype, quant_type="nf4").to(dtype)
        linear.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
    base = nn.Sequential(linear)
    base.is_loaded_in_4bit = packed
    settings = {"r": RANK, "lora_alpha": 3 * RANK, "target_modules": ["0"], **lora}
    model = get_peft_model(base.requires_grad_(False), LoraConfig(**settings))
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.1)
    return model


def passed(model: nn.Module, dtype: torch.dtype, passes: int = 1) -> list[Tensor]:
    """The output and the gradients of input, A and B."""
    torch.manual_seed(1)
    x = torch.randn(2, ROWS // 2, IN, dtype=dtype, requires_grad=True)
    towards = torch.randn(2, ROWS // 2, OUT, dtype=dtype)
    for _ in range(passes):
        y = model(x)
        y.backward(towards)
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    pairs = zip(found, expected, strict=True)
    return [float((one.double() - other.double()).norm() / other.double().norm()) for one, other in pairs]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_product_and_its_gradients_are_exact_within_rounding(dtype, packed, passes):
    model = adapted(dtype, packed)
    exact = adapted(torch.float64)
    exact.load_state_dict({name: tensor.double() for name, tensor in whole_state(model).items()})
    exact.double()
    make_lean(model.get_base_model())
    found = passed(model, dtype, passes)
    expected = in_double(exact, dtype, passes)
    assert max(errors(found, expected)) <= ROUNDING[dtype]
    assert [grad.dtype for grad in found[2:]] == [torch.float32] * 2, "of the master weights"


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, packed ones as the numbers that they stand for."""
    from bitsandbytes.functional import dequantize_4bit

    linear = model.get_base_model()[0].get_base_layer()
    state = {name: tensor for name, tensor in model.state_dict().items() if ".weight." not in name}
    if isinstance(linear, Linear4bit):
        name = next(name for name in state if name.endswith("base_layer.weight"))
        state[name] = dequantize_4bit(linear.weight, linear.weight.quant_state)
    return state


def in_double(model: nn.Module, dtype: torch.dtype, passes: int) -> list[Tensor]:
    """As `passed`, computed in fp64 from the numbers that `dtype` has."""
    torch.manual_seed(1)
    x = torch.randn(2, ROWS // 2, IN, dtype=dtype).double().requires_grad_()
    towards = torch.randn(2, ROWS // 2, OUT, dtype=dtype).double()
    for _ in range(passes):
        y = model(x)
        y.backward(towards)
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def test_in_fp32_they_are_peft_s_own_to_the_last_bits():
    model = adapted(torch.float32)
    expected = passed(copy.deepcopy(model), torch.float32)
    make_lean(model.get_base_model())
    assert max(errors(passed(model, torch.float32), expected)) <= 2**-20


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_other_kinds_of_adapters_stay_peft_s(lora):
    model = adapted(torch.float32, **lora)
    make_lean(model.get_base_model())
    assert "forward" not in vars(model.get_base_model()[0])


def test_what_only_peft_does_is_left_to_it():
    model = adapted(torch.float32)
    x = torch.randn(3, IN)
    base, peft = model.get_base_model()[0].get_base_layer()(x), model(x)
    make_lean(model.get_base_model())
    assert torch.equal(model(x), peft) or (model(x) - peft).abs().max() < 1e-5
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    model.merge_adapter()
    assert (model(x) - peft).abs().max() < 1e-5


def test_weights_that_changed_are_seen_by_the_next_pass():
    """Copies in 16 bits are kept within a pass: an optimizer of bitsandbytes changes weights without telling torch."""
    model = adapted(torch.bfloat16)
    make_lean(model.get_base_model())
    x = torch.randn(3, IN, dtype=torch.bfloat16)
    before = model(x)
    weight = model.get_base_model()[0].lora_B["default"].weight
    weight.detach().numpy()[:] *= 2
    assert not torch.equal(model(x), before)


class Layer(GradientCheckpointingLayer):
    """Two linear layers, the second of which is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(IN, OUT), nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_an_adapter_that_no_loss_depends_on_has_no_gradient():
    model = nn.Sequential(Layer().bfloat16())
    model = get_peft_model(model.requires_grad_(False), LoraConfig(r=RANK, target_modules=["used", "unused"]))
    make_lean(model.get_base_model())
    for _ in range(2):
        model(torch.randn(3, IN, dtype=torch.bfloat16)).sum().backward()
    layer = model.get_base_model()[0]
    assert layer.used.lora_B["default"].weight.grad.any() and layer.unused.lora_B["default"].weight.grad is None


def test_adapters_are_saved_as_peft_s():
    models = [adapted(torch.bfloat16) for _ in range(2)]
    make_lean(models[1].get_base_model())
    plain, lean = (get_peft_model_state_dict(model) for model in models)
    assert {name: tensor.dtype for name, tensor in plain.items()} == {name: lean[name].dtype for name in lean}
    assert all(torch.equal(plain[name], lean[name]) for name in plain)


KEEP, SOME = {"gradient_checkpointing": False}, {"checkpointed_layers": 1}
WITH_TOWER, LORA = {"lora": {"vision_tower": True}}, {"method": "lora"}
MODELS = [
    ("llava", {}, {}),
    ("qwen2_5_vl", KEEP, WITH_TOWER),
    ("gemma3", SOME, LORA),
    ("qwen", {}, {}),
]


@pytest.mark.parametrize(("name", "hardware", "training"), MODELS, ids=str)
def test_models_learn_the_same(name, hardware, training, models, tmp_path):
    tiny = models(name)
    batch = tiny.batch(tmp_path)
    expected, found = (learned(tiny, batch, {**hardware, "lean_lora": lean}, training) for lean in (False, True))
    assert max(errors(found, expected)) <= 2**-15
    assert len(found) >= 28


def test_a_call_takes_two_outputs_at_most_and_a_layer_s_weights_are_copied_once(models, tmp_path):
    """Of a layer's linears only what the backward pass needs is computed again: not the last one."""
    tiny = models("llava")
    batch = tiny.batch(tmp_path)
    plan = tiny_plan(tiny.folder, hardware={"lean_lora": True, "mixed_precision": "bf16"})
    model, products = built(plan), Counter()

    class Counting(Recorder):
        def _run(self, operation, *given):
            products[self.kind] += operation is PRODUCT_4BIT.default
            return super()._run(operation, *given)

    with Counting() as recorder:
        loss = forward_loss(model, batch, plan)
        recorder.kind = GRADIENTS
        loss.backward()
    layers = base_of(model).config.text_config.num_hidden_layers
    assert products[GRADIENTS] == 6 * layers
    copied = [kind for kind, name, _ in recorder.log.tags.values() if name == "aten.new_empty.default"]
    assert copied.count(RECOMPUTED) <= layers
