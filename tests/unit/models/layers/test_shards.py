"""Layers that several GPUs share; here one process has the only share, so that all can be seen from it."""

import pytest
import torch
from tiny.rows import built, tiny_plan

from vlmtune.engine.step import forward_loss
from vlmtune.errors import VlmtuneError
from vlmtune.models.build import base_of, build_model
from vlmtune.models.layers.peers import Peers
from vlmtune.models.layers.placed import shared_with
from vlmtune.models.layers.shards import end_pass, pass_by, shards_of

LAYERS = 5


class Gathers:
    """What would come from the others: counted, and damaged from some gather on."""

    def __init__(self, damaged_from: int = 10**9) -> None:
        self.done: list[int] = []
        self.damaged_from = damaged_from

    def __call__(self, whole: torch.Tensor, own: torch.Tensor) -> None:
        whole.copy_(own)
        self.done.append(own.data_ptr())
        if len(self.done) > self.damaged_from:
            whole[700] ^= 64


@pytest.fixture
def tiny(models):
    return models("llava", LAYERS)


def plan_of(tiny, **hardware):
    return tiny_plan(tiny.folder, hardware=hardware)


def sharded(plan, gathers: Gathers):
    with shared_with(Peers(0, 1, gathers)):
        return built(plan)


LAYERS_PASS = [{}, {"lean_lora": False}, {"gradient_checkpointing": False}, {"joined_constants": True}]


@pytest.mark.parametrize("hardware", LAYERS_PASS, ids=str)
def test_every_pass_gathers_the_same_layers_whatever_it_needs(hardware, tiny, tmp_path):
    plan, gathers = plan_of(tiny, **hardware), Gathers()
    model = sharded(plan, gathers)
    base, shares = base_of(model), [share.data_ptr() for share in shards_of(base_of(model)).shares]
    batch = tiny.batch(tmp_path, 2)

    def gathered() -> list[int]:
        end_pass(base)
        numbers = [shares.index(pointer) for pointer in gathers.done]
        gathers.done.clear()
        return numbers

    assert gathered() == [0, 1, 2, 3, 4, 0, 1]  # all are looked at, and the first two wait
    forward_loss(model, batch, plan).backward()
    model.zero_grad()  # lean adapters add to gradients that are there
    passed = gathered()
    assert passed == [2, 3, 4, 2, 1, 0]
    forward_loss(model, batch, plan)
    top = [one for name, one in model.named_parameters() if one.requires_grad and ".layers.4." in name]
    torch.autograd.grad(forward_loss(model, batch, plan), top)  # ends in the last layer
    assert gathered() == 2 * passed
    pass_by(base)
    assert gathered() == passed
    with torch.no_grad():
        forward_loss(model.eval(), batch, plan)
    assert gathered() == [2, 3, 4, 0, 1]
    pass_by(base)
    assert gathered() == [2, 3, 4, 0, 1]


def test_layers_that_do_not_arrive_as_they_were_loaded_are_refused(tiny):
    with pytest.raises(VlmtuneError, match="layer 2 of the language model is not what was loaded here"):
        sharded(plan_of(tiny), Gathers(damaged_from=2))


def test_without_storage_there_are_the_same_shares(tiny):
    plan = tiny_plan(
        tiny.folder,
        hardware={"shard": "always", "num_gpus": 2},
        training={"gradient_accumulation_steps": 2},
    )
    loaded = shards_of(base_of(sharded(plan, Gathers())))
    model = shards_of(base_of(build_model(plan, weights="none")))
    assert [2 * len(share) for share in model.shares] == model.layer_bytes
    assert all(0 <= two - one < 1024 for one, two in zip(loaded.layer_bytes, model.layer_bytes, strict=True))
    assert [len(buffer) for buffer in model.buffers] == model.layer_bytes[:2]
    assert all(tensor.is_meta for tensor in model.resident)


def test_models_that_are_asked_share_nothing(tiny):
    plan = tiny_plan(
        tiny.folder,
        hardware={"shard": "always", "num_gpus": 2},
        training={"gradient_accumulation_steps": 2},
    )
    assert shards_of(base_of(build_model(plan))) is None
