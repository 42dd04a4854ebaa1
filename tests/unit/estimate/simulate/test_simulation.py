"""The step simulated without weights takes what the same step takes on a real CPU, for every family.

test_trainer.py compares the same for plans as they are by default and some others, event for event: these are not here.
"""

import gc
from dataclasses import replace

import pytest
import torch
from tiny import TINY
from tiny.rows import TinyModel, colour_rows, tiny_plan

from vlmtune.contract import peak_bytes
from vlmtune.data.batches.packs import collate_of
from vlmtune.data.collate import Collator
from vlmtune.data.dataset import TuneDataset
from vlmtune.estimate.allocator.peaks import peaks_of
from vlmtune.estimate.simulate.record import GRADIENTS, RECOMPUTED, Log, Recorder, Workspaces
from vlmtune.estimate.simulate.simulation import Run, record_steps, simulate
from vlmtune.estimate.simulate.steps import collated, steps_of_run
from vlmtune.models.build import build_model

TOLERANCE = 0.005
KEEP = {"hardware": {"gradient_checkpointing": False}}
ON_ONE = [
    {"training": {"lora": {"rank": 64}}},
    {"training": {"lora": {"vision_tower": True}}, **KEEP},
    {"training": {"batch_size": 4}},
    {"training": {"batch_size": 2, "gradient_accumulation_steps": 2}},
    {"training": {"gradient_accumulation_steps": 3}, **KEEP},
    {"training": {"gradient_accumulation_steps": 3, "packing": True, "pack_tokens": 200}},
    {"training": {"optim": "adamw", "method": "lora"}},
    {"training": {"quantization": {"bnb_4bit_use_double_quant": False, "quantize_vision_tower": False}}},
    {"hardware": {"checkpointed_layers": 1}},
    {"training": {"batch_size": 4}, "hardware": {"checkpointed_layers": 1}},
    {"hardware": {"lean_lora": True, "mixed_precision": "bf16"}, "training": {"gradient_accumulation_steps": 2}},
    {"hardware": {"lean_lora": True, "checkpointed_layers": 1}, "training": {"lora": {"vision_tower": True}}},
    {"hardware": {"joined_constants": True}},
]
HEAD_4BIT, HEAD_8BIT = ({"training": {"quantization": {"quantize_head": wish}}} for wish in (True, "8bit"))
PUTS_16_INTO_32 = ("idefics3", "smolvlm")
"""With transformers before 5.23 their code writes 16-bit features into fp32, which autocast allows on a GPU alone."""
FULL_16BIT = {"training": {"method": "full"}, "hardware": {"mixed_precision": "bf16"}}
UNTIED = ("llava", "qwen2_5_vl", "smolvlm")
PLANS = [
    *((name, KEEP) for name in TINY if name != "qwen3_vl"),
    *(("qwen3_vl", sections) for sections in ON_ONE),
    *((name, HEAD_4BIT) for name in UNTIED),
    ("qwen2_5_vl", HEAD_8BIT),
    *((name, FULL_16BIT) for name in TINY if name not in PUTS_16_INTO_32),
    ("llava", {**HEAD_4BIT, "hardware": {"mixed_precision": "bf16", "checkpointed_layers": 1}}),
]


def plan_and_steps(model: TinyModel, folder, sections: dict, num_steps: int = 2):
    training = {"gradient_accumulation_steps": 1, **sections.get("training", {})}
    plan = tiny_plan(model.folder, **{**sections, "training": training})
    rows = TuneDataset(colour_rows(folder), model.processor, model.family, plan)
    lengths = [rows[index].labels.shape[1] for index in range(len(rows))]
    return plan, collated(steps_of_run(plan, lengths)[:num_steps], rows, collate_of(plan, Collator(model.processor)))


@pytest.mark.parametrize(("name", "sections"), PLANS, ids=str)
def test_simulated_peak_is_the_real_one(name, sections, models, tmp_path):
    plan, steps = plan_and_steps(models(name), tmp_path, sections)
    real = peak_bytes(record_steps(build_model(plan).train(), plan, Run(steps, load=None)))
    simulated = peak_bytes(simulate(plan, Run(steps, load=None)))
    assert simulated == pytest.approx(real, rel=TOLERANCE)


def test_lean_adapters_multiply_as_much_as_peft_s(models, tmp_path):
    plan, (step, _) = plan_and_steps(models("llava"), tmp_path, KEEP)
    lean, peft = (simulate(replace(plan, lean_lora=lean), Run([step], load=None)).flops for lean in (True, False))
    assert lean == peft > 0


@pytest.mark.parametrize("dtype", ["bf16", "no"])
def test_a_head_in_parts_is_simulated_event_for_event(dtype, models, tmp_path, monkeypatch):
    """Each part is unpacked, multiplied and given back before the next one, in both directions."""
    from vlmtune.models import head

    part_bytes = 64 * 64 * 4
    monkeypatch.setattr(head, "PART_BYTES", part_bytes)
    sections = {**HEAD_8BIT, "hardware": {"mixed_precision": dtype}}
    plan, steps = plan_and_steps(models("llava"), tmp_path, sections, num_steps=1)
    plan = replace(plan, loss_chunk_tokens=8)
    logs = [record_steps(build_model(plan).train(), plan, Run(steps, load=None)), simulate(plan, Run(steps, load=None))]
    events = [[(size, log.tags[handle][1]) for handle, size in log.events if handle > 0 and size > 512] for log in logs]
    of_step = [[event for event in one if event[1] != "load"] for one in events]
    assert of_step[0] == of_step[1] and len(of_step[0]) >= 500
    unpacked = of_step[0].count((part_bytes, "aten._to_copy.default"))
    assert unpacked >= 12, "parts of each chunk, there, again and back"


def test_joined_constants_are_simulated_event_for_event(models, tmp_path, monkeypatch):
    """They come with a layer's first product, in each of its passes, and their two small tensors with the model."""
    from vlmtune.models.speed import constants

    monkeypatch.setattr(constants, "LEFT_TO_BITSANDBYTES_ROWS", 0)
    hardware = {"joined_constants": True, "checkpointed_layers": 1, "mixed_precision": "bf16"}
    plan, steps = plan_and_steps(models("llava"), tmp_path, {"hardware": hardware}, num_steps=1)
    logs = [record_steps(build_model(plan).train(), plan, Run(steps, load=None)), simulate(plan, Run(steps, load=None))]
    events = [[(size, log.tags[handle][1]) for handle, size in log.events if handle > 0 and size > 512] for log in logs]
    assert events[0] == events[1] and len(events[0]) >= 500
    unpacked = [name for _, name in events[0]].count("bitsandbytes.dequantize_blockwise.default")
    assert unpacked == 3 + 4, "the tower's layers, and two, of which the first recomputes; with the second's backward"


def test_what_layers_recompute_from_is_not_on_the_card_between_its_two_passes(models, tmp_path):
    """At the end of the forward pass one layer's start fewer is there for each layer; then they come back."""
    plan, (step, _) = plan_and_steps(models("llava"), tmp_path, {})
    kept, offloaded = (
        simulate(replace(plan, offload_activations=offloads), Run([step], load=None)) for offloads in (False, True)
    )
    hidden_bytes = step[0]["labels"].shape[1] * 64 * 4
    came_back = [num_bytes for kind, name, num_bytes in taken(offloaded) if (kind, name) == (RECOMPUTED, TO_COPY)]
    assert came_back == [hidden_bytes] * 2, "of each layer"
    assert at_backward(kept) - at_backward(offloaded) == 2 * hidden_bytes


def test_what_is_streamed_takes_the_bus_in_every_batch(models, tmp_path):
    """Nothing stands for its copies otherwise: the layers have no storage in a simulation."""
    tiny, training = models("llava", 5), {"gradient_accumulation_steps": 2}
    (plan, steps), (plain, _) = (
        plan_and_steps(tiny, tmp_path, {"training": training, "hardware": {"streamed_layers": layers}})
        for layers in (5, 0)
    )
    log, without = (simulate(one, Run(steps, load=None)) for one in (plan, plain))
    came = [
        sum(kernel.bytes * times for kernel, times in of.tokens.items() if kernel.kind == "bus") for of in log.batches
    ]
    assert came == [log.streamed_bytes // 4] * 4 and came[0] > 0
    assert not any(kernel.kind == "bus" for of in without.batches for kernel in of.tokens)


TO_COPY = "aten._to_copy.default"


def taken(log: Log) -> list[tuple[str, str, int]]:
    """Kind, operation and size of all that is taken."""
    return [(*log.tags[handle][:2], num_bytes) for handle, num_bytes in log.events if handle > 0]


def at_backward(log: Log) -> int:
    """What is there when the backward pass begins."""
    sizes = {}
    for handle, num_bytes in log.events:
        if handle > 0 and log.tags[handle][0] == GRADIENTS:
            return sum(sizes.values())
        if handle > 0:
            sizes[handle] = num_bytes
        else:
            sizes.pop(-handle, None)  # handle 0 is none: the cache is emptied
    raise AssertionError("no backward pass")


@pytest.mark.parametrize(("name", "accumulation"), [("qwen3_vl", 1), ("paligemma", 2), ("smolvlm", 3)])
def test_a_repeated_step_is_the_simulated_one(name, accumulation, models, tmp_path):
    plan, steps = plan_and_steps(models(name), tmp_path, {"training": {"gradient_accumulation_steps": accumulation}})
    same = [steps[0], steps[0]]
    whole = simulate(plan, Run(same, load=None, evaluated=steps[0][:1]))
    repeated = simulate(plan, Run(same[:1], load=None, evaluated=steps[0][:1], repeat=True))
    expected, found = peaks_of(whole, True), peaks_of(repeated, True)
    assert found.reserved_bytes == expected.reserved_bytes
    # But for one block: a step's labelled tokens are counted before those of the last are gone.
    first, second = expected.phases["step 2"], found.phases["step 2"]
    assert first.allocated_at_end_bytes == second.allocated_at_end_bytes
    assert 0 <= first.peak_allocated_bytes - second.peak_allocated_bytes <= 512
    assert found.phases["evaluation"] == expected.phases["evaluation"]


def test_gradients_are_added_in_place():
    weight = torch.ones(64, 64, requires_grad=True)
    with Recorder() as recorder:
        made = weight * 2
        (made.exp().sum() + made.sin().sum()).backward()
    operations = [operation for _, operation, _ in recorder.log.tags.values()]
    assert "aten.add.Tensor" not in [op for op, size in zip(operations, _sizes(recorder.log), strict=True) if size > 99]


def test_a_shared_gradient_is_not_added_in_place():
    """Both summands get the same tensor as their gradient; what is added to one must not show in the other's."""
    first, second = (torch.full((64, 64), value, requires_grad=True) for value in (1.0, 2.0))
    with Recorder():
        mine, other = first * 2, second * 3
        sine = mine.sin()
        ((mine + other).square().sum() + sine.sum()).backward()
    assert second.grad[0, 0].item() == pytest.approx(3 * 2 * 8)
    assert first.grad[0, 0].item() == pytest.approx(2 * (2 * 8 + torch.tensor(2.0).cos().item()))


def test_the_gradient_of_indexing_is_written_in_place():
    weight = torch.ones(64, 64, requires_grad=True)
    rows = torch.tensor([1, 2, 2])
    with Recorder() as recorder:
        (weight * 2)[rows].sum().backward()
    assert "aten.index_put.default" not in [operation for _, operation, _ in recorder.log.tags.values()]
    assert torch.equal(weight.grad[:4, 0], torch.tensor([0.0, 2.0, 4.0, 0.0]))


def test_workspaces_are_taken_around_the_outputs():
    def hidden(operation, args, kwargs):
        return Workspaces(before=(1001,), after=(1002,), kept=(1003,))

    value = torch.ones(100)
    with Recorder(hidden) as recorder:
        doubled = value * 2
    sizes = dict(recorder.log.events)
    handles = {num_bytes: handle for handle, num_bytes in sizes.items() if num_bytes}
    assert [num_bytes for _, num_bytes in recorder.log.events if num_bytes] == [1001, 400, 1003, 1002]
    assert -handles[1001] in sizes and -handles[1002] in sizes and -handles[1003] not in sizes
    del doubled
    gc.collect()


def _sizes(log: Log) -> list[int]:
    return [num_bytes for handle, num_bytes in log.events if handle > 0]
