"""The head in 8 bits: what rounding takes, what the loss and its gradients make of it, and where it is meanwhile."""

import dataclasses
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY
from tiny.packed import save_packed
from tiny.rows import colour_rows, tiny_plan

from vlmtune.compat.bitsandbytes import state_of
from vlmtune.data.collate import WHERE, collate
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.step import forward_loss
from vlmtune.models import build, head
from vlmtune.models.build import base_of, build_model, load_base
from vlmtune.models.head import Head8bit, rounded
from vlmtune.models.inventory import inventory

UNTIED = ("idefics3", "instructblip", "llava", "qwen", "qwen2_5_vl", "smolvlm")
IN_8, IN_4 = ({"training": {"quantization": {"quantize_head": wish}}} for wish in ("8bit", True))
LARGEST_DIFFERENCE = 0.001
"""Of the loss, by a head in 8 bits; the tiny models show 0.00006 to 0.0004, with losses of 5.6 to 6.1."""


@pytest.fixture
def small_parts(monkeypatch):
    """Seven rows of a tiny head at a time: neither number divides the other."""
    monkeypatch.setattr(head, "PART_BYTES", 7 * 64 * 4)


@pytest.fixture
def weight():
    torch.manual_seed(0)
    made = torch.randn(100, 64)
    made[3] = 0
    made[4] *= 1e-20
    return made


def test_each_number_is_off_by_half_a_step_at_most_and_the_largest_is_kept(weight):
    whole, scale = rounded(weight)
    assert whole.dtype == torch.int8 and (whole.shape, scale.shape) == (weight.shape, (100, 1))
    again = whole * scale
    assert ((again - weight).abs() <= scale / 2 * (1 + 1e-5)).all()
    assert torch.equal(whole.abs().amax(1), torch.tensor([0 if row == 3 else 127 for row in range(100)]))
    largest = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(again.gather(1, largest), weight.gather(1, largest), rtol=1e-6, atol=0)


def test_it_is_rounded_a_part_at_a_time(weight, small_parts):
    before, scale = weight.clone(), weight.abs().amax(1, keepdim=True) / 127
    expected = (weight / scale.clamp(min=1.2e-38)).round().to(torch.int8)
    assert all(map(torch.equal, rounded(weight), (expected, scale)))
    assert torch.equal(weight, before), "the weight itself stays as it is"


@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradient_are_those_of_the_same_numbers_in_full(weight, bias, small_parts):
    whole, scale = rounded(weight)
    addend = torch.randn(100) if bias else None
    hidden = torch.randn(2, 5, 64, requires_grad=True)
    made = Head8bit(whole, scale, addend)
    logits = made(hidden)
    expected = F.linear(hidden, whole * scale, addend)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(logits)
    (found,) = torch.autograd.grad((logits * weights).sum(), hidden)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_in_16_bits_it_is_as_exact_as_one_product_but_for_one_more_rounding(small_parts):
    """Sums over the vocabulary are made in fp32, as a matrix product makes them."""
    torch.manual_seed(0)
    weight, hidden, gradient = torch.randn(2000, 64), torch.randn(8, 64), torch.randn(8, 2000)
    whole, scale = rounded(weight)
    exact = (whole * scale).double()
    rows = hidden.bfloat16().requires_grad_()
    logits = Head8bit(whole, scale, None)(rows)
    (found,) = torch.autograd.grad(logits, rows, gradient.bfloat16())
    assert logits.dtype == found.dtype == torch.bfloat16
    plain = exact.bfloat16()
    for mine, theirs, true in (
        (logits, rows @ plain.T, rows.double() @ exact.T),
        (found, gradient.bfloat16() @ plain, gradient.bfloat16().double() @ exact),
    ):
        error, usual = ((value.double() - true).norm() for value in (mine, theirs))
        assert error <= 1.5 * usual


@pytest.fixture
def learn(models, tmp_path):
    """A function that returns the loss and the gradients of a model on the tiny rows."""

    def run(name: str, model: torch.nn.Module, plan) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tiny = models(name)
        rows = list(TuneDataset(colour_rows(tmp_path), tiny.processor, tiny.family, plan))
        batch = collate(rows, tiny.processor.tokenizer.pad_token_id)
        batch.pop(WHERE)
        adapters = [value for value in model.parameters() if value.requires_grad]
        torch.manual_seed(1)
        with torch.no_grad():
            for value in adapters:
                value.normal_(std=0.05)
        loss = forward_loss(model.train(), batch, plan)
        return loss.detach(), list(torch.autograd.grad(loss, adapters))

    return run


@pytest.mark.parametrize("chunk_tokens", [8, 10_000])
@pytest.mark.parametrize("name", UNTIED)
def test_it_gives_the_gradients_of_the_same_numbers_in_full(name, chunk_tokens, models, learn, small_parts):
    plan = dataclasses.replace(tiny_plan(models(name).folder, **IN_8), loss_chunk_tokens=chunk_tokens)
    model = build_model(plan)
    packed = base_of(model).get_output_embeddings()
    assert type(packed) is Head8bit
    loss, gradients = learn(name, model, plan)
    full = torch.nn.Linear(packed.in_features, packed.out_features, bias=False)
    full.weight = torch.nn.Parameter(packed.weight * packed.scale, requires_grad=False)
    base_of(model).set_submodule(models(name).family.head, full)
    full_loss, full_gradients = learn(name, model, plan)
    torch.testing.assert_close(loss, full_loss, rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients, full_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        assert found.abs().max() > 0


@pytest.mark.parametrize("name", UNTIED)
def test_what_it_changes_of_the_loss_is_little_and_less_than_4_bits_do(name, models, learn):
    losses = {}
    for wish, sections in (("16", {}), ("8", IN_8), ("4", IN_4)):
        plan = tiny_plan(models(name).folder, **sections)
        losses[wish], _ = learn(name, build_model(plan), plan)
    off = {wish: abs(losses[wish] - losses["16"]).item() for wish in ("8", "4")}
    assert 0 < off["8"] < LARGEST_DIFFERENCE and off["8"] < off["4"], off


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_model_without_storage_has_the_same(name, models):
    tiny = models(name)
    plan = tiny_plan(tiny.folder, **IN_8)
    rows = inventory(build_model(plan, weights="none"), tiny.family)
    assert rows == inventory(build_model(plan), tiny.family)
    assert {row.dtype for row in rows if row.part == "head"} == ({"int8"} if name in UNTIED else set())
    if name not in UNTIED:
        said = {choice.key: choice for choice in plan.choices}["training.quantization.quantize_head"]
        assert said.value == "false" and said.reason.startswith("the head shares the embedding's weights")


@pytest.mark.parametrize("packed", [False, True], ids=["16-bit files", "4-bit files"])
def test_on_a_card_it_waits_in_main_memory_in_16_bits(packed, models, tmp_path, monkeypatch):
    """`cpu:0` stands for the card: transformers takes it for another device than `cpu`."""
    tiny = models("llava")
    folder = save_packed(tiny.folder, tmp_path / "packed") if packed else tiny.folder
    plan = tiny_plan(folder, **IN_8)
    on_card = dataclasses.replace(plan, device="cuda", offload_embeddings=True)
    table = "model.language_model.embed_tokens"
    described = build._weightless(plan)
    assert head.device_map(on_card, tiny.family, described) == {"": "cuda", table: "cpu", "lm_head": "cpu"}
    assert head.device_map(plan, tiny.family, described) == {"": "cpu"}
    monkeypatch.setattr(head.embeddings, "device_map", lambda *args: {"": "cpu:0"})
    monkeypatch.setattr(head, "waits_outside", lambda plan: True)
    waiting = []
    monkeypatch.setattr(build, "pack_head", lambda model, *_: waiting.append(model.get_output_embeddings()))
    base = load_base(plan)
    assert type(waiting[0]) is torch.nn.Linear and waiting[0].weight.device.type == "cpu"
    assert sum(state_of(tensor) is not None for tensor in base.parameters()) >= 25, "the rest is quantised all the same"
    assert not [module for module in base.modules() if hasattr(module, "_hf_hook")]


def test_beside_embeddings_in_main_memory_nothing_holds_the_head_in_16_bits(models, monkeypatch):
    """Looked-up rows go where the head is: a head that is replaced later would be held, and be in the wrong place."""
    plan = tiny_plan(models("llava").folder, hardware={"offload_embeddings": True}, **IN_8)
    real, before = build.pack_head, []

    def pack_head(model, *args):
        before.append(weakref.ref(model.get_output_embeddings()))
        real(model, *args)

    monkeypatch.setattr(build, "pack_head", pack_head)
    base = load_base(plan)
    gc.collect()
    assert plan.offload_embeddings and type(base.get_output_embeddings()) is Head8bit and before[0]() is None


def test_a_kept_base_has_the_head_in_16_bits_for_every_wish(models):
    tiny = models("llava")
    keep = {"model": {"name": str(tiny.folder), "cache_quantized": True}}
    plan = tiny_plan(tiny.folder, **keep, **IN_8)
    told: list[str] = []
    first, second = (load_base(plan, tell=told.append) for _ in range(2))
    assert told[0].startswith("keeping") and told[1].startswith("the base in 4 bits comes from")
    for base in (first, second):
        assert torch.equal(base.lm_head.weight, rounded(load_base(tiny.plan).lm_head.weight)[0])
    plain = load_base(tiny_plan(tiny.folder, **keep), tell=told.append)
    assert told[2].startswith("the base in 4 bits comes from") and plain.lm_head.weight.dtype == torch.float32
