"""Constants of a layer that are unpacked together: the same bits as weight by weight, by fewer operations."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from tiny.rows import built, learned, tiny_plan
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmtune.engine.step import forward_loss
from vlmtune.models.build import base_of
from vlmtune.models.packed import unpacked_weight
from vlmtune.models.speed import constants

KEEP, SOME = {"gradient_checkpointing": False}, {"checkpointed_layers": 1}
WITH_TOWER = {"lora": {"vision_tower": True}}
MODELS = [
    ("llava", {}, {}),
    ("qwen2_5_vl", KEEP, WITH_TOWER),
    ("gemma3", SOME, {}),
    ("llava", {"streamed_layers": 4}, {}),
]
FP32 = torch.float32
UNPACKED = torch.ops.bitsandbytes.dequantize_blockwise.default


class Counted(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.times[operation] += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture(params=[0, 10**6], ids=["unpacked", "left to bitsandbytes"])
def rows(request, monkeypatch):
    monkeypatch.setattr(constants, "LEFT_TO_BITSANDBYTES_ROWS", request.param)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("name", "hardware", "training"), MODELS, ids=str)
def test_models_learn_the_same_bits(name, hardware, training, models, tmp_path):
    tiny = models(name, layers=4) if "streamed_layers" in hardware else models(name)
    batch = tiny.batch(tmp_path)
    expected, found = (
        learned(tiny, batch, {"lean_lora": True, "joined_constants": joined, **hardware}, training)
        for joined in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True)) and len(found) >= 28


def test_a_layer_that_recomputes_unpacks_them_twice_and_the_logits_find_none(models, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "LEFT_TO_BITSANDBYTES_ROWS", 0)
    tiny, works = models("llava"), []
    monkeypatch.setattr(constants, "_AtWork", lambda kind=constants._AtWork: works.append(kind()) or works[0])
    plan = tiny_plan(tiny.folder, hardware={"lean_lora": True, "joined_constants": True})
    model, batch, found = built(plan), tiny.batch(tmp_path), []
    config = base_of(model).config
    base_of(model).get_output_embeddings().register_forward_pre_hook(lambda *_: found.append(works[0].layer))
    with Counted() as counted:
        forward_loss(model, batch, plan).backward()
    assert counted.times[UNPACKED] == 2 * config.text_config.num_hidden_layers + config.vision_config.num_hidden_layers
    assert found and not any(found) and works[0].layer


class Layer(GradientCheckpointingLayer):
    """Linear layers in 4 bits whose constants fill no whole block of theirs, with a bias, and of another code."""

    def __init__(self) -> None:
        super().__init__()
        self.odd, self.first, self.other = packed(24, 40), packed(512, 192, bias=True), packed(96, 96)
        self.other.weight.quant_state.state2.code = self.other.weight.quant_state.state2.code * 2
        self.whole = nn.Linear(8, 8)


def test_weights_of_any_size_and_code_are_those_of_bitsandbytes(models, monkeypatch):
    monkeypatch.setattr(constants, "LEFT_TO_BITSANDBYTES_ROWS", 0)
    layer, x = Layer(), torch.randn(3, 512)
    linears = [module for module in layer.children() if isinstance(module, Linear4bit)]
    expected = [dequantize_4bit(linear.weight, linear.weight.quant_state) for linear in linears]
    product, names = layer.first(x), set(layer.state_dict())
    constants.join_constants(nn.Sequential(layer), replace(models("llava").plan, joined_constants=True))
    assert all(
        torch.equal(unpacked_weight(*pair), one) for *pair, one in zip(linears, [FP32] * 3, expected, strict=True)
    )
    assert torch.equal(layer.first(x), product) and set(layer.state_dict()) == names
    assert ["joined_constants" in vars(module) for module in layer.children()] == [True, True, False, False]
    layer.first.weight = packed(512, 192, seed=1).weight
    merged = dequantize_4bit(layer.first.weight, layer.first.weight.quant_state)
    assert torch.equal(unpacked_weight(layer.first, FP32), merged) and not torch.equal(merged, expected[1])


def packed(inputs: int, outputs: int, bias: bool = False, seed: int = 0) -> Linear4bit:
    torch.manual_seed(seed)
    linear = Linear4bit(inputs, outputs, bias=bias, compute_dtype=FP32, compress_statistics=True)
    linear.weight = Params4bit(torch.randn(outputs, inputs), requires_grad=False, compress_statistics=True).to("cpu")
    return linear
