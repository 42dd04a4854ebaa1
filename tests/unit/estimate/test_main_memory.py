"""What a run takes of main memory: from the model's facts, plan and batches."""

from dataclasses import replace

import pytest
import torch
from tiny import TINY
from tiny.rows import tiny_plan

from vlmtune import levers
from vlmtune.estimate import main_memory
from vlmtune.estimate.main_memory import (
    CUDA_BYTES,
    LIBRARIES_BYTES,
    WORKER_BYTES,
    Weights,
    need_of,
    stored_format,
    weights_of,
)
from vlmtune.estimate.report import MainMemoryNeed, Share, would_swap
from vlmtune.models.build import base_of, build_model
from vlmtune.models.streaming import stream_of
from vlmtune.units import GIB, MIB

ALWAYS = LIBRARIES_BYTES + CUDA_BYTES
WEIGHTS = Weights((400, 300, 200, 100), 300, total_bytes=5000, trained_bytes=700, held=())
BATCH = {"input_ids": torch.zeros(1, 100, dtype=torch.int64), "pixel_values": torch.zeros(3, 100)}
BATCH_BYTES = 800 + 1200


@pytest.fixture(scope="module")
def plan(models):
    """A plan for a card, without data workers, one batch a step."""
    made = tiny_plan(models("llava").folder, training={"gradient_accumulation_steps": 1})
    return replace(made, device="cuda", base_dtype="bf16", num_workers=0)


def parts(plan, weights=WEIGHTS, stored="bf16", batches=(BATCH,), step_bytes=0) -> dict[str, int]:
    need = need_of(plan, weights, stored, batches, step_bytes)
    found = {part.name: part.bytes for part in need.parts}
    assert sum(found.values()) == need.peak_bytes >= need.loading_bytes
    assert found.pop("libraries") == LIBRARIES_BYTES
    if plan.device == "cuda":
        assert found.pop("CUDA") == CUDA_BYTES
    return found


def loading(plan, stored) -> int:
    return need_of(plan, WEIGHTS, stored, [BATCH], 0).loading_bytes - ALWAYS


def test_weights_that_keep_their_format_pass_through_the_files_own_pages(plan):
    assert loading(plan, "bf16") == 0


def test_one_weight_at_a_time_changes_its_format_while_others_are_quantised(plan):
    assert plan.quant_type and loading(plan, "fp32") == loading(plan, None) == 400 * 2


def test_without_quantising_several_are_on_their_way(plan):
    plain = replace(plan, method="lora", quant_type=None)
    assert loading(plain, "fp32") == (400 + 300 + 200 + 100) * 2
    assert loading(replace(plain, base_dtype="fp32"), "bf16") == (400 + 300 + 200 + 100) * 4


def test_files_in_4_bits_change_their_format_in_their_place(plan):
    packed = replace(plan, prequantised=True)
    assert loading(packed, "fp32") == loading(replace(packed, device="cpu"), None) - 5000 + CUDA_BYTES == 0


def test_a_head_is_rounded_in_main_memory(plan):
    weights = replace(WEIGHTS, rounded_numbers=GIB)
    name = "head being rounded"
    assert parts(plan, weights)[name] == GIB, "of the files it is pages, and 8 bits are made of it"
    assert parts(plan, weights, "fp32")[name] == 3 * GIB
    assert parts(replace(plan, device="cpu", base_dtype="fp32"), weights)[name] == 4 * GIB, "8 bits are weights there"


def test_a_base_is_kept_one_file_at_a_time(plan):
    kept = replace(plan, cache_quantized=True)
    weights = replace(WEIGHTS, total_bytes=4 * GIB, largest_stored_bytes=300 * MIB)
    assert parts(kept, weights)["base being kept"] == GIB
    assert parts(kept, replace(weights, largest_stored_bytes=GIB))["base being kept"] == 2 * GIB
    small = replace(weights, total_bytes=100 * MIB)
    assert parts(kept, small)["base being kept"] == 200 * MIB


def test_loading_can_be_the_peak(plan):
    large = replace(WEIGHTS, largest_numbers=(GIB,))
    assert parts(plan, large, "fp32") == {"weights on their way": 2 * GIB}


def test_batches_of_two_steps_are_pinned_and_those_of_workers_wait(plan):
    pinned = 1024 + 2048
    assert parts(plan)["batches"] == 2 * pinned
    assert parts(replace(plan, gradient_accumulation_steps=8))["batches"] == 16 * pinned
    found = parts(replace(plan, num_workers=3))
    assert found["batches"] == 2 * pinned + 6 * BATCH_BYTES and found["data workers"] == 3 * WORKER_BYTES


def test_the_largest_batch_counts(plan):
    with_workers = replace(plan, num_workers=2)
    small = {"input_ids": torch.zeros(8, dtype=torch.int64)}
    assert parts(with_workers, batches=[BATCH, small]) == parts(with_workers)


def test_what_is_written_comes_back_from_the_card_at_once(plan):
    assert parts(plan)["checkpoint"] == 700
    assert parts(replace(plan, method="full"))["checkpoint"] == 5000


def test_on_a_cpu_weights_and_steps_are_there_too(plan):
    on_cpu = replace(plan, device="cpu")
    assert parts(on_cpu, step_bytes=GIB) == {"weights": 5000, "step": GIB, "batches": 2 * BATCH_BYTES}
    assert need_of(on_cpu, WEIGHTS, None, [BATCH], 0).loading_bytes == LIBRARIES_BYTES + 5000 + (2 + 12) * 300


def test_what_levers_keep_is_there_all_the_time(plan):
    held = replace(WEIGHTS, held=(Share("Toy", 5 * GIB),))
    assert parts(plan, held)["Toy"] == 5 * GIB
    assert need_of(plan, held, "bf16", [BATCH], 0).loading_bytes == ALWAYS + 5 * GIB


def test_what_levers_keep_of_the_files_counts_where_its_format_changes(plan):
    mapped = replace(WEIGHTS, mapped=(Share("Toy", 5 * GIB),))
    assert "Toy" not in parts(plan, mapped, "bf16")
    assert parts(plan, mapped, "fp16")["Toy"] == 5 * GIB


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"dtype": "torch.float16", "text_config": {"dtype": "bfloat16"}}, "fp16"),
        ({"torch_dtype": "float32", "text_config": {"torch_dtype": "bfloat16"}}, "fp32"),
        ({"text_config": {"dtype": "bfloat16"}}, "bf16"),
        ({"dtype": None, "text_config": None}, None),
        ({}, None),
        ({"dtype": "float8_e4m3fn"}, None),
    ],
)
def test_the_format_of_the_files_is_what_the_config_says(config, expected):
    assert stored_format(config) == expected


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_facts_are_the_same_with_and_without_storage(name, models):
    tiny = models(name)
    found = [
        weights_of(base_of(build_model(tiny.plan, weights=weights)), tiny.plan, tiny.family, 100)
        for weights in ("checkpoint", "none")
    ]
    assert found[0] == found[1]
    assert found[0].total_bytes > found[0].trained_bytes > 0
    assert max(found[0].largest_numbers) >= found[0].largest_packed_numbers > 0
    plain = tiny_plan(tiny.folder, training={"method": "lora"})
    unpacked = weights_of(base_of(build_model(plain, weights="none")), plain, tiny.family, 100)
    assert found[0].largest_numbers == unpacked.largest_numbers


def test_a_lever_says_what_it_keeps(models, monkeypatch):
    tiny = models("llava")

    def keeps(model, plan, family, batch_tokens):
        return batch_tokens * MIB

    toy = replace(levers.LEVERS[-1], name="Toy", main_memory_bytes=keeps)
    monkeypatch.setattr(levers, "LEVERS", (*levers.LEVERS[:-1], toy))
    model = base_of(build_model(tiny.plan, weights="none"))
    assert weights_of(model, tiny.plan, tiny.family, 7).held == (Share("Toy", 7 * MIB),)


def test_embeddings_that_leave_the_card_are_kept(models):
    tiny = models("llava")
    plan = replace(tiny.plan, device="cuda", base_dtype="bf16", offload_embeddings=True)
    model = base_of(build_model(plan, weights="none"))
    (share,) = weights_of(model, plan, tiny.family, 7).mapped
    assert share == Share("Embeddings in main memory", model.get_input_embeddings().weight.numel() * 2)
    on_cpu = replace(plan, device="cpu")
    assert weights_of(model, on_cpu, tiny.family, 7).mapped == (), "there it is among all weights"


@pytest.mark.parametrize(("checkpointed", "num_layers"), [(None, 2), (1, 1)])
def test_what_layers_recompute_from_waits_pinned(models, checkpointed, num_layers):
    tiny = models("llava")
    plan = replace(tiny.plan, device="cuda", base_dtype="bf16", offload_activations=True)
    plan = replace(plan, checkpointed_layers=checkpointed)
    model = base_of(build_model(plan, weights="none"))
    (share,) = weights_of(model, plan, tiny.family, 100).held
    assert share == Share("Recompute activations", num_layers * 2**14), "64 numbers of 2 bytes for 100 tokens: 12,800"


def test_layers_that_are_streamed_are_kept(models):
    tiny = models("llava", 5)
    plan = replace(tiny.plan, device="cuda", base_dtype="bf16", streamed_layers=4)
    model = base_of(build_model(plan, weights="none"))
    (share,) = weights_of(model, plan, tiny.family, 7).held
    (layer_bytes,) = set(stream_of(model).layer_bytes)
    assert share == Share("Layers in main memory", 4 * layer_bytes)
    (buffers,) = weights_of(model, replace(plan, device="cpu"), tiny.family, 7).held
    assert buffers.bytes == 2 * layer_bytes, "the layers are among all weights there"


def test_a_cpu_run_takes_at_least_its_weights(models):
    tiny = models("llava")
    model = base_of(build_model(tiny.plan, weights="none"))
    need = main_memory.need_at_least(model, tiny.plan, tiny.family)
    weights = weights_of(model, tiny.plan, tiny.family, 0)
    assert need.peak_bytes == LIBRARIES_BYTES + weights.total_bytes + max(
        3 * weights.trained_bytes, 16 * weights.largest_packed_numbers
    )


def test_nobody_swaps_where_nobody_tells():
    need = MainMemoryNeed(peak_bytes=10)
    assert not would_swap(need, None) and would_swap(need, 0) and not would_swap(need, 10) and would_swap(need, 9)
