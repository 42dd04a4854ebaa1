"""Layers that lie in main memory: the same losses, gradients and answers as with all of them on the card."""

import dataclasses
from unittest.mock import Mock

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, built, colour_rows, tiny_plan
from torch import Tensor, nn

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.callbacks import FirstStepCheck
from vlmtune.engine.evaluate import generated
from vlmtune.engine.step import forward_loss
from vlmtune.errors import VlmtuneError
from vlmtune.models import streaming
from vlmtune.models.build import base_of, build_model
from vlmtune.models.layers.placed import spread
from vlmtune.models.streaming import LayerStream, stream_of
from vlmtune.plan.types import RunPlan

LAYERS = 5
ALL, SOME, NONE = {}, {"checkpointed_layers": 2}, {"gradient_checkpointing": False}
"""Which layers recompute."""
CASES = [
    *((name, SOME, 4) for name in sorted(TINY)),
    *(("llava", {"lean_lora": True, "joined_constants": True, **recomputing}, 4) for recomputing in (SOME, NONE)),
    *(("llava", recomputing, streamed) for recomputing in (ALL, NONE) for streamed in (3, 4, LAYERS)),
]
PASSES = 2


def plan_of(tiny: TinyModel, streamed: int, **hardware) -> RunPlan:
    return tiny_plan(tiny.folder, hardware={"streamed_layers": streamed, **hardware})


def learned(model: nn.Module, plan: RunPlan, batch: dict[str, Tensor]) -> list[Tensor]:
    """Losses and gradients of some passes, with an evaluation between them."""
    found = []
    for _ in range(PASSES):
        loss = forward_loss(model, batch, plan)
        adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found += [loss.detach(), *torch.autograd.grad(loss, adapters)]
        with torch.no_grad():
            found.append(forward_loss(model.eval(), batch, plan))
        model.train()
    return found


@pytest.fixture
def late(monkeypatch):
    """Copies that come as late as they may: what a card would still read is spoilt at once, and filled when awaited."""
    sent: dict[tuple[LayerStream, int], Tensor] = {}

    def send(self: LayerStream, source: Tensor, slot: int) -> None:
        self.buffers[slot].fill_(0xFF)
        sent[self, slot] = source

    def wait(self: LayerStream, slot: int) -> None:
        if (source := sent.pop((self, slot), None)) is not None:
            self.buffers[slot][: source.nbytes].copy_(source)

    monkeypatch.setattr(LayerStream, "_send", send)
    monkeypatch.setattr(LayerStream, "wait_for", wait)


@pytest.mark.parametrize(("name", "recomputing", "streamed"), CASES, ids=str)
def test_streamed_layers_learn_the_same_bit_for_bit(name, recomputing, streamed, models, tmp_path, late):
    tiny = models(name, LAYERS)
    batch = tiny.batch(tmp_path)
    plan = plan_of(tiny, 0, **recomputing)
    expected = learned(built(plan), plan, batch)
    found = learned(built(plan_of(tiny, streamed, **recomputing)), plan, batch)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)
    assert all(value.any() for value in expected)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize(("streamed", "double_quant"), [(5, True), (5, False), (4, True)])
def test_two_layers_less_than_are_streamed_travel_in_each_pass(streamed, double_quant, lean, models, tmp_path):
    tiny = models("llava", LAYERS)
    quantization = {"bnb_4bit_use_double_quant": double_quant}
    hardware = {"streamed_layers": streamed, "lean_lora": lean}
    plan = tiny_plan(tiny.folder, hardware=hardware, training={"quantization": quantization})
    model, batch = built(plan), tiny.batch(tmp_path)
    stream = stream_of(base_of(model))
    (layer_bytes,) = set(stream.layer_bytes)
    assert stream.copied_bytes == 0
    for number in range(1, 4):
        forward_loss(model, batch, plan).backward()
        assert stream.copied_bytes == number * 2 * (streamed - 2) * layer_bytes
    assert sum(buffer.nbytes for buffer in stream.buffers) == 2 * layer_bytes


@pytest.mark.parametrize("lean", [False, True])
def test_layers_are_sent_before_they_are_needed(lean, models, tmp_path, monkeypatch):
    tiny, real, there = models("llava", LAYERS), LayerStream.need, []

    def need(self: LayerStream, layer: int) -> None:
        there.append(self.here[layer % 2] == layer)
        real(self, layer)

    monkeypatch.setattr(LayerStream, "need", need)
    plan, batch = plan_of(tiny, 4, lean_lora=lean), tiny.batch(tmp_path)
    model = built(plan)
    there.clear()  # of the check of what was loaded
    for _ in range(3):
        forward_loss(model, batch, plan).backward()
    assert len(there) > 3 * 2 * 4 * 7 and all(there)
    with torch.no_grad():
        forward_loss(model, batch, plan)
        there.clear()
        forward_loss(model, batch, plan)
    assert len(there) == (1 + lean) * 4 * 7 and all(there)


@pytest.mark.parametrize("streamed", [3, 4])
def test_answers_are_the_same(streamed, models, tmp_path, late):
    tiny = models("qwen2_5_vl", LAYERS)
    row = TuneDataset(colour_rows(tmp_path, 1), tiny.processor, tiny.family, tiny.plan)[0]

    def answer(number: int) -> Tensor:
        model = built(plan_of(tiny, number)).eval()
        return generated(model, dict(row.tensors), max_new_tokens=8, pad_token_id=0)

    assert torch.equal(answer(streamed), answer(0))


def test_the_weights_of_streamed_layers_lie_in_two_buffers_and_main_memory(models):
    tiny = models("llava", LAYERS)
    plain, streamed = base_of(built(plan_of(tiny, 0))), base_of(built(plan_of(tiny, 4)))
    stream = stream_of(streamed)
    buffers = {buffer.untyped_storage().data_ptr() for buffer in stream.buffers}
    expected, inside = dict(plain.named_parameters()), set()
    for name, parameter in streamed.named_parameters():
        if parameter.untyped_storage().data_ptr() in buffers:
            inside.add(int(name.partition(".layers.")[2].partition(".")[0]))
            state = parameter.quant_state
            assert state.absmax.untyped_storage().data_ptr() in buffers
            stream.read(parameter)
            assert torch.equal(state.absmax, expected[name].quant_state.absmax)
        assert torch.equal(parameter, expected[name])
    assert inside == {0, 1, 3, 4}


@pytest.mark.parametrize(("number", "found"), [(3, [1, 4, 7]), (4, [1, 3, 5, 7]), (9, list(range(9)))])
def test_streamed_layers_are_spread_evenly(number, found):
    assert spread(number, list(range(9))) == found


def test_weights_leave_the_card_as_soon_as_they_are_packed(models, monkeypatch):
    real, on_card = LayerStream.adopt, []

    def adopt(self: LayerStream, linear: nn.Module) -> None:
        buffers = {buffer.untyped_storage().data_ptr() for buffer in self.buffers}
        packed = [other for other in self.places if state_of(other.weight) is not None]
        on_card.append([other for other in packed if other.weight.untyped_storage().data_ptr() not in buffers])
        real(self, linear)

    monkeypatch.setattr(LayerStream, "adopt", adopt)
    model = build_model(plan_of(models("llava", LAYERS), 4))
    assert [len(linears) for linears in on_card] == [1] * len(stream_of(base_of(model)).places)


def test_frozen_weights_are_looked_at_wherever_they_are(models, tmp_path):
    tiny = models("llava", LAYERS)
    plan = plan_of(tiny, 5)
    model, batch = built(plan), tiny.batch(tmp_path)
    trainer = type("Trainer", (), {"model": model})
    check = FirstStepCheck(trainer, tiny.family)
    check.on_train_begin(None, None, None)
    plain = FirstStepCheck(type("Trainer", (), {"model": built(plan_of(tiny, 0))}), tiny.family)
    plain.on_train_begin(None, None, None)
    assert check.frozen == plain.frozen
    forward_loss(model, batch, plan).backward()
    check.learning_rate = 1.0
    state = type("State", (), {"global_step": 1})
    stream = stream_of(base_of(model))
    stream.on_host[2][7] ^= 1
    with pytest.raises(VlmtuneError, match="changed 1 tensors that are frozen"):
        check.on_step_end(None, state, None)


class Runtime:
    """Stands for CUDA's: pins two pieces of memory, then no more."""

    def __init__(self) -> None:
        self.pinned: list[int] = []

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        if len(self.pinned) == 2:
            return 2
        self.pinned.append(address)
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.pinned.remove(address)
        return 0


def test_memory_that_cannot_be_pinned_is_told_and_what_was_is_given_back(monkeypatch):
    runtime, pinned = Runtime(), []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffers = [streaming._host_memory(2**20) for _ in range(3)]
    with pytest.raises(VlmtuneError, match="hardware.streamed_layers: 0.00 GiB of main memory are to be pinned"):
        streaming._pin(buffers, pinned)
    assert [buffer.data_ptr() for buffer in pinned] == runtime.pinned and len(pinned) == 2
    side = Mock()
    streaming._let_go(side, pinned)
    assert runtime.pinned == [] and side.synchronize.called


def test_a_model_without_storage_streams_too(models):
    tiny = models("llava", LAYERS)
    loaded = stream_of(base_of(build_model(plan_of(tiny, 4))))
    model = base_of(build_model(plan_of(tiny, 4), weights="none"))
    stream = stream_of(model)
    assert stream.layer_bytes == loaded.layer_bytes
    assert stream.on_host == [] and all(buffer.is_meta for buffer in stream.buffers)
    assert [buffer.shape for buffer in stream.buffers] == [buffer.shape for buffer in loaded.buffers]
    packed = next(iter(stream.places)).weight
    assert packed.untyped_storage()._cdata == stream.buffers[0].untyped_storage()._cdata


def test_other_plans_stream_nothing(models):
    tiny = models("llava", LAYERS)
    assert stream_of(base_of(build_model(tiny.plan))) is None
    plan = dataclasses.replace(tiny.plan, streamed_layers=4)
    assert stream_of(base_of(build_model(plan))) is not None
