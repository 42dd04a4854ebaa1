"""Kernels that a recorded computation launches: their number, what they multiply and what they move."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from tiny.rows import tiny_plan

from vlmtune.estimate.simulate.attention import attention_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.simulate.simulation import Run, simulate
from vlmtune.estimate.timing.operations import CHUNK_BLOCKS, CHUNK_NUMBERS, PLACE_TAPS, unpacking_of
from vlmtune.models.speed import gated, norms, rotary

BF16 = torch.bfloat16


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launched(run) -> Counter:
    with Recorder() as recorder, attention_of("cuda"):
        run()
    return recorder.ledger.taken().tokens


def one(run):
    (kernel,) = launched(run).elements()
    return kernel


def test_looking_at_memory_in_another_way_launches_nothing():
    x = meta(8, 64)
    assert not launched(lambda: (x.view(64, 8).T[3:].unsqueeze(0).detach(), torch.empty_like(x), x.reshape(-1)))


def test_a_product_multiplies_and_moves_its_matrices():
    kernel = one(lambda: meta(30, 64) @ meta(64, 128))
    assert (kernel.kind, kernel.flops, kernel.sizes) == ("product", 2 * 30 * 64 * 128, (1, 30, 128, 64))
    assert kernel.bytes == 2 * (30 * 64 + 64 * 128 + 30 * 128)
    assert one(lambda: torch.bmm(meta(5, 30, 64), meta(5, 64, 128))).sizes == (5, 30, 128, 64)


@pytest.mark.parametrize(("inner", "outer", "old"), [(64, 128, False), (3420, 128, True), (64, 3420, True)])
def test_rows_that_start_anywhere_take_old_kernels(inner, outer, old):
    assert one(lambda: F.linear(meta(30, inner), meta(outer, inner))).old == old


def test_numbers_in_their_order_are_passed_over_and_others_looked_up():
    x, row = meta(8, 64), meta(64)
    kinds = {
        "pass": lambda: x + x,
        "strided": lambda: x * row,
        "widen": lambda: x.float(),
        "copy": lambda: x.clone(),
        "reduce": lambda: x.sum(-1),
        "cat": lambda: torch.cat([x, x]),
        "gather": lambda: F.embedding(torch.tensor([3, 5]), x),
    }
    assert {kind: one(run).kind for kind, run in kinds.items()} == {kind: kind for kind in kinds}
    assert one(lambda: x.T.contiguous()).kind == "strided"


def test_kernels_written_here_are_one_pass_each():
    x, angle = meta(1, 5, 4, 8), meta(5, 8)
    runs = (
        lambda: gated.gated_backward(x, x, x, gated.SILU),
        lambda: rotary.turned(x, angle, angle, False),
        lambda: norms.norm(x, meta(8), 1e-6),
    )
    kernels = [one(run) for run in runs]
    assert {kernel.kind for kernel in kernels} == {"pass"}
    assert kernels[1].bytes == 2 * x.nbytes + 2 * angle.nbytes


def test_each_number_is_read_and_written_once():
    x, row = meta(8, 64), meta(64)
    assert one(lambda: x + x[:]).bytes == 3 * x.nbytes
    assert one(lambda: x.mul_(2)).bytes == 2 * x.nbytes
    assert one(lambda: x * row.expand(8, 64)).bytes == 2 * x.nbytes + row.nbytes
    assert one(lambda: F.embedding(torch.tensor([3, 5]), x)).bytes == 2 * 2 * 64 * 2 + 2 * 8


def test_causal_attention_is_half_of_the_whole():
    q = meta(1, 4, 256, 64)
    whole, causal = (one(lambda c=c: F.scaled_dot_product_attention(q, q, q, is_causal=c)) for c in (False, True))
    assert (whole.flops, causal.flops) == (4 * 4 * 256 * 256 * 64, 2 * 4 * 256 * 256 * 64)
    assert (whole.kind, whole.sizes, whole.old) == ("attention", (4, 256, 256, 64), False)
    masked = launched(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=meta(1, 1, 256, 256)))
    assert [kernel.old for kernel in masked if kernel.kind == "attention"] == [True]


def test_a_packed_weight_is_unpacked_in_three_kernels():
    constants, offset, weight = unpacking_of(64 * 1000, item_bytes=2)
    assert (constants.numbers, offset.numbers, weight.numbers) == (1000, 1000, 64_000)
    assert weight.bytes == 32_000 + 4 * 1000 + 128_000


def test_lists_of_tensors_take_as_many_launches_as_their_pieces():
    few, many = [meta(8, dtype=torch.float32)] * 3, [meta(8, dtype=torch.float32)] * 200
    assert sum(launched(lambda: torch._foreach_mul_(few, 2.0)).values()) == 1
    assert sum(launched(lambda: torch._foreach_mul_(many, 2.0)).values()) == 2
    large = [meta(CHUNK_NUMBERS * CHUNK_BLOCKS * 2, dtype=torch.float32)]
    assert sum(launched(lambda: torch._foreach_mul_(large, 2.0)).values()) == 2


def test_a_depthwise_convolution_counts_its_places_and_their_taps():
    short = one(lambda: F.conv1d(meta(1, 64, 100), meta(64, 1, 4), groups=64, padding=3))
    wide = one(lambda: F.conv2d(meta(1, 64, 10, 10), meta(64, 1, 7, 7), groups=64, padding=3))
    assert {short.kind, wide.kind} == {"depthwise"}
    assert (short.numbers, wide.numbers) == (64 * 103 * (PLACE_TAPS + 4), 64 * 100 * (PLACE_TAPS + 49))


def test_a_stretched_picture_is_a_thread_a_place_through_all_channels():
    small, gradient = (meta(1, 100, side, side, dtype=torch.float32) for side in (16, 40))
    small.requires_grad_()
    kernels = launched(lambda: F.interpolate(small, size=(40, 40), mode="bicubic").backward(gradient))
    bicubic = {kernel: times for kernel, times in kernels.items() if kernel.kind == "bicubic"}
    assert [(kernel.numbers, kernel.sizes, times) for kernel, times in bicubic.items()] == [(100 * 2048, (2,), 2)]


@pytest.fixture(scope="module")
def log(models, tmp_path_factory):
    from tiny.rows import colour_rows

    from vlmtune.data.batches.packs import collate_of
    from vlmtune.data.collate import Collator
    from vlmtune.data.dataset import TuneDataset
    from vlmtune.estimate.simulate.steps import collated

    model = models("llava")
    plan = tiny_plan(model.folder, training={"gradient_accumulation_steps": 5})
    rows = TuneDataset(colour_rows(tmp_path_factory.mktemp("rows")), model.processor, model.family, plan)
    steps = [[[0], [0], [0], [0], [1]]]
    return simulate(plan, Run(collated(steps, rows, collate_of(plan, Collator(model.processor))), load=None))


def test_every_batch_of_a_step_is_there_and_equal_ones_launch_the_same(log):
    assert len(log.batches) == 5 and len(log.updates) == 1
    _, second, third, fourth, other = log.batches
    assert second == third == fourth and all(launched.images and launched.tokens for launched in log.batches)


def test_products_are_those_whose_operations_are_counted(log):
    first, second, *_, last = log.batches  # those in between were passed over
    counted = [kernel.flops * times for one in (first, second, last) for part in one for kernel, times in part.items()]
    assert 0.9 * log.flops < sum(counted) < log.flops  # attention to what comes later is left out here


def test_an_update_launches_a_kernel_a_parameter_or_lists(log):
    assert {kernel.kind for kernel in log.updates[0]} >= {"lists"}
