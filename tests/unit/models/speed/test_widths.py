"""MLPs of an odd width: the same with zeros beside them, and the same weights to whoever looks at the model."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Params4bit
from tiny import TINY
from tiny.rows import TinyModel, built, tiny_plan
from torch import Tensor, nn

from vlmtune.engine.checkpoints import save_adapter
from vlmtune.engine.step import forward_loss
from vlmtune.estimate.simulate.simulation import Run, record_steps, simulate
from vlmtune.models.build import base_of, build_model, build_tower, build_tuned
from vlmtune.models.inventory import inventory
from vlmtune.models.speed.widths import align_widths

INSIDE, ODD, ROWS = 64, 126, 5
ALIGN = {"align_widths": True}


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> TinyModel:
    """A model whose tower has an odd width, as Qwen2.5-VL's has."""

    def builder() -> tuple:
        model_class, config, processor = TINY["qwen2_5_vl"]()
        config.vision_config.intermediate_size = ODD
        return model_class, config, processor

    with patch.dict(TINY, odd=builder):
        return TinyModel("odd", tmp_path_factory.mktemp("odd"))


class Mlp(nn.Module):
    """One MLP as the library makes them."""

    def __init__(self, inputs: tuple[str, ...], out: str, packed: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.inputs, self.out = inputs, out
        for name in inputs:
            setattr(self, name, linear(INSIDE, ODD, packed, dtype))
        setattr(self, out, linear(ODD, INSIDE, packed, dtype))

    def forward(self, x: Tensor) -> Tensor:
        first, *gated = (getattr(self, name)(x) for name in self.inputs)
        self.hidden = F.gelu(first) * gated[0] if gated else F.gelu(first)
        return getattr(self, self.out)(self.hidden)


def linear(inside: int, outside: int, packed: bool, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(inside, outside).to(dtype)
    if packed:
        weight, made = made.weight.data, Linear4bit(inside, outside, compute_dtype=dtype, quant_type="nf4").to(dtype)
        made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
    return made.requires_grad_(False)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 128), (torch.bfloat16, 128)], ids=str)
@pytest.mark.parametrize(
    ("inputs", "out"), [(("gate_proj", "up_proj"), "down_proj"), (("fc1",), "fc2"), (("linear_fc1",), "linear_fc2")]
)
def test_an_mlp_computes_the_same_with_an_aligned_width(inputs, out, packed, dtype, width, odd):
    torch.manual_seed(0)
    mlp = nn.Sequential(Mlp(inputs, out, packed, dtype))
    x = torch.randn(2, ROWS, INSIDE, dtype=dtype)
    expected, stored = mlp(x), {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    align_widths(mlp, tiny_plan(odd.folder, hardware=ALIGN))
    found = mlp(x)
    assert mlp[0].hidden.shape[-1] == width and found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-20 if dtype is torch.float32 else 2**-8)
    assert {name: tensor.shape for name, tensor in mlp.state_dict().items()} == {
        name: tensor.shape for name, tensor in stored.items()
    }


def test_a_model_learns_the_same(odd, tmp_path):
    batch, found = odd.batch(tmp_path), []
    for aligned in (False, True):
        plan = tiny_plan(odd.folder, hardware={"align_widths": aligned})
        model = built(plan)
        loss = forward_loss(model, batch, plan)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 2**-16 * other.norm()


def widths(model: nn.Module, path: str, x: Tensor) -> list[int]:
    """The widths that the parts of the tower's first MLP make of x."""
    mlp = model.get_submodule(path).blocks[0].mlp
    return [part(x).shape[-1] for part in (mlp.gate_proj, mlp.up_proj)]


def test_every_model_with_a_tower_computes_so_and_has_its_weights_as_they_were(odd, tmp_path):
    plain, plan = (tiny_plan(odd.folder, hardware={"align_widths": aligned}) for aligned in (False, True))
    x, path = torch.randn(3, INSIDE), odd.family.vision
    model = build_model(plan)
    save_adapter(model, tmp_path)
    tower = build_tower(tiny_plan(odd.folder, hardware=ALIGN, data={"train_path": "r", "cache_features": True}))
    for one in (base_of(model), base_of(build_tuned(plan, str(tmp_path))), tower):
        assert widths(one, path, x) == [128, 128]
    assert widths(base_of(build_model(plain)), path, x) == [ODD, ODD]
    assert inventory(model, odd.family) == inventory(build_model(plain), odd.family)


def test_layers_with_adapters_keep_their_width(odd):
    model = build_model(tiny_plan(odd.folder, hardware=ALIGN, training={"lora": {"vision_tower": True}}))
    assert widths(base_of(model), odd.family.vision, torch.randn(3, INSIDE)) == [ODD, ODD]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_the_simulation_takes_what_the_step_takes(packed, odd, tmp_path):
    quantization = {"quantize_vision_tower": packed}
    plan = tiny_plan(odd.folder, hardware=ALIGN, training={"quantization": quantization})
    run = Run([[odd.batch(tmp_path)]], load=None)
    logs = [record_steps(build_model(plan).train(), plan, run), simulate(plan, run)]
    real, simulated = (
        [(log.tags[handle][1], size) for handle, size in log.events if handle > 0 and log.tags[handle][0] != "load"]
        for log in logs
    )
    padded = [event for event in simulated if event[0] == "aten.constant_pad_nd.default"]
    assert padded and padded == [event for event in real if event[0] == "aten.constant_pad_nd.default"]
    assert logs[0].flops == logs[1].flops
    assert sum(size for _, size in real) == pytest.approx(sum(size for _, size in simulated), rel=0.005)
