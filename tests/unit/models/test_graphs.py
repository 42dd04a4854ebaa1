"""Layers as CUDA graphs, on a CPU, where what is recorded runs again: the same bits, whatever came in between."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny.rows import built, colour_rows, tiny_plan
from tiny.varlen import VarlenKernel
from torch import Tensor, nn

from vlmtune.data.batches.packs import packed
from vlmtune.data.collate import WHERE
from vlmtune.data.dataset import TuneDataset
from vlmtune.engine.step import forward_loss
from vlmtune.estimate.allocator.caching import EMPTY_CACHE, ENTER_POOL, LEAVE_POOL
from vlmtune.estimate.run import estimate_largest
from vlmtune.estimate.simulate.simulation import Run, simulate
from vlmtune.hardware.cards import Target, find_card
from vlmtune.models.build import base_of
from vlmtune.models.graphs import buffers
from vlmtune.models.graphs.recording import Repeated
from vlmtune.plan.types import RunPlan

LEAN = {"lean_lora": True, "joined_constants": True, "mixed_precision": "no"}
STEPS = (((0, 1), (2, 3, 1), (3,)), ((2, 3, 1), (3,)), ((0, 1), (1, 0)), ((3,), (0, 1, 2, 3)), ((0, 1, 2, 3), (0, 1)))
"""Rows of the packs of each step: some lengths come twice in a step, others a step later."""


def plan_of(tiny, graphed: bool, **hardware) -> RunPlan:
    plan = tiny_plan(tiny.folder, hardware={**LEAN, **hardware})
    return replace(plan, pack_tokens=512, varlen_attention=True, cuda_graphs=graphed)


def packs(tiny, plan: RunPlan, folder) -> Iterator[list[dict[str, Tensor]]]:
    rows = list(TuneDataset(colour_rows(folder), tiny.processor, tiny.family, plan))
    for step in STEPS:
        batches = [packed([rows[number] for number in pack], 512 // 16) for pack in step]
        yield [{key: value for key, value in batch.items() if key != WHERE} for batch in batches]


def learned(tiny, plan: RunPlan, folder) -> tuple[nn.Module, list[Tensor]]:
    """Return the model, and the losses and gradients of steps that change it, an evaluation behind each."""
    model, found = built(plan), []
    for batches in packs(tiny, plan, folder):
        for batch in batches:
            loss = forward_loss(model, batch, plan, num_items=3)
            loss.backward()
            found.append(loss.detach())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    found.append(parameter.grad.clone())
                    parameter.sub_(0.1 * parameter.grad)
            found.append(forward_loss(model.eval(), batches[0], plan, num_items=3))
        model.train().zero_grad()
    return model, found


@pytest.mark.parametrize(
    ("kind", "hardware"),
    [
        ("llava", {}),
        ("qwen2_5_vl", {}),
        ("qwen3_vl", {"checkpointed_layers": 2}),
        ("llava", {"streamed_layers": 3}),
        ("llava", {"joined_constants": False}),
    ],
    ids=str,
)
def test_models_learn_the_same_bits(kind, hardware, models, tmp_path, monkeypatch):
    VarlenKernel(monkeypatch)
    tiny = models(kind, layers=4)
    (_, expected), (model, found) = (learned(tiny, plan_of(tiny, on, **hardware), tmp_path) for on in (False, True))
    assert len(expected) == len(found) > 100
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    lengths = {shape.hidden[1] for shape in base_of(model).layer_graphs.of_shape}
    assert len(lengths) >= 2 and all(length % 32 == 0 for length in lengths)
    # Rows a pack and the longest row only ever grow: their bounds make no shapes of their own, but when they do.
    bounds = {(shape.starts, shape.longest) for shape in base_of(model).layer_graphs.of_shape}
    assert len(base_of(model).layer_graphs.of_shape) < len(lengths) + len(bounds)


def test_a_layer_without_a_mask_of_rows_runs_as_ever(models, tmp_path, monkeypatch):
    """Gemma 3's images see both ways: pairs of tokens make its mask."""
    VarlenKernel(monkeypatch)
    tiny = models("gemma3")
    (_, expected), (model, found) = (learned(tiny, plan_of(tiny, on), tmp_path) for on in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert base_of(model).layer_graphs.of_shape == {}


def test_the_card_is_asked_for_the_longest_row_once_a_pack_and_never_by_what_is_recorded(models, tmp_path, monkeypatch):
    kernel = VarlenKernel(monkeypatch)
    monkeypatch.setattr(buffers, "longest_of", kernel.longest_of)
    tiny, recording, asked = models("llava"), [], []
    real = Repeated.recorded

    def recorded(self, work):
        def noted() -> None:
            before = len([starts for starts in kernel.asked if not hasattr(starts, "longest")])
            recording.append(before)
            work()
            asked.extend(starts for starts in kernel.asked[before:] if not hasattr(starts, "longest"))

        return real(self, noted)

    monkeypatch.setattr(Repeated, "recorded", recorded)
    learned(tiny, plan_of(tiny, True), tmp_path)
    assert recording and not asked


def test_what_is_recorded_is_simulated_in_a_pool_of_its_own(models, tmp_path, monkeypatch):
    VarlenKernel(monkeypatch)
    tiny = models("llava")
    plan, plain = plan_of(tiny, True), plan_of(tiny, False)
    [batch, *_], *_ = packs(tiny, plan, tmp_path)
    steps = [[batch], [batch], [batch]]
    log, without = (simulate(one, Run(steps, load=None)) for one in (plan, plain))
    marks = [event for event in log.events if event in (EMPTY_CACHE, ENTER_POOL, LEAVE_POOL)]
    # Beside what loading gives back: once, then two layers forth and back; the third batch repeats what the second was.
    assert marks == [EMPTY_CACHE, EMPTY_CACHE, *[ENTER_POOL, LEAVE_POOL] * 4]
    assert log.flops == without.flops > 0
    of_first, _, of_third = log.batches
    assert not of_first.recorded and of_first.tokens == without.batches[0].tokens
    launches = [sum(of.tokens.values()) for of in log.batches]
    assert launches[2] < launches[0] and [
        sum(k.kind == "graph" for k in of.tokens.elements()) for of in log.batches
    ] == [
        0,
        4,
        4,
    ]
    products = [sum(n for k, n in (of.tokens + of.recorded).items() if k.kind == "product") for of in log.batches]
    assert len(set(products)) == 1 and products[0] == sum(
        n for k, n in without.batches[2].tokens.items() if k.kind == "product"
    )
    assert of_third.recorded == log.batches[1].recorded


@pytest.mark.parametrize("fast", [False, True])
def test_an_estimate_knows_their_pool_and_their_launches(fast, models):
    tiny, target = models("qwen3_vl", layers=4), Target(find_card("rtx-4090"), 20 * 2**30, expandable_segments=True)
    plans = [replace(plan_of(tiny, on), device="cuda", gradient_accumulation_steps=4) for on in (False, True)]
    plain, graphed = (estimate_largest(plan, tiny.source, target, fast=fast) for plan in plans)
    assert [share.name for share in graphed.breakdown if "reserved but free" in share.name] == [
        "reserved but free (graphs' own pool)"
    ]
    assert graphed.peak_reserved_bytes > plain.peak_reserved_bytes
    assert graphed.time.launches < plain.time.launches / 2
    assert graphed.time.kernels_s == pytest.approx(plain.time.kernels_s, rel=0.35)
