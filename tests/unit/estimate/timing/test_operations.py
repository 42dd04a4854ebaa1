"""Kernels that a recorded computation launches: their number, what they multiply and what they move."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from tiny.rows import tiny_plan

from vlmtune.estimate.simulate.attention import attention_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.simulate.simulation import Run, simulate
from vlmtune.estimate.timing.convolutions import BACKWARD_TAP, PLACE_TAPS
from vlmtune.estimate.timing.operations import CHUNK_BLOCKS, CHUNK_NUMBERS
from vlmtune.estimate.timing.products import unpacking_of
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


def test_numbers_side_by_side_in_one_tensor_and_not_in_another_are_transposed():
    x, table = meta(8, 64), meta(2, 5, 8, 64)
    assert one(lambda: x.T.contiguous()).kind == "transposed"
    assert one(lambda: x.view(64, 8).T + x).kind == "transposed"
    assert one(lambda: table.transpose(1, 2).contiguous()).kind == "strided"
    assert one(lambda: x * meta(8, 1)).kind == one(lambda: x[:, ::2].contiguous()).kind == "strided"
    assert one(lambda: x.T + x.T).kind == "pass"


def test_kernels_written_here_are_one_pass_each():
    x, angle = meta(1, 5, 4, 8), meta(5, 8)
    runs = (
        lambda: gated.gated_backward(x, x, x, gated.SILU),
        lambda: rotary.turned(x, angle, angle, False),
        lambda: norms.norm(x, meta(8), 1e-6),
    )
    kernels = [one(run) for run in runs]
    assert {kernel.kind for kernel in kernels} == {"ours"}
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


@pytest.mark.parametrize("learned", [False, True])
def test_attention_under_a_mask_is_whole_whether_gradients_follow_or_not(learned):
    q = meta(1, 4, 256, 64).requires_grad_(learned)
    kernels = launched(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=meta(1, 1, 256, 256)))
    (kernel,) = (kernel for kernel in kernels if "attention" in kernel.kind)
    assert (kernel.kind, kernel.flops, kernel.old) == ("masked attention", 4 * 4 * 256 * 256 * 64, True)


def test_wide_heads_have_the_kernel_for_masks_without_one_too():
    kinds = [one(lambda s=s: F.scaled_dot_product_attention(*[meta(1, 4, 32, s)] * 3)).kind for s in (256, 512)]
    assert kinds == ["attention", "masked attention"]


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


def convolved(x: torch.Tensor, w: torch.Tensor, **how) -> Counter:
    convolve = F.conv1d if x.dim() == 3 else F.conv2d
    return launched(lambda: convolve(x, w, **how))


def test_a_depthwise_convolution_counts_its_places_and_their_taps():
    (short,) = convolved(meta(1, 64, 100), meta(64, 1, 4), groups=64, padding=3)
    wide, small = (
        next(iter(convolved(meta(1, 64, 10, 10), meta(64, 1, side, side), groups=64, padding=side // 2)))
        for side in (7, 3)
    )
    assert {short.kind, wide.kind, small.kind} == {"depthwise"}
    assert (short.numbers, wide.numbers) == (64 * 103 * (PLACE_TAPS + 4), 64 * 100 * (PLACE_TAPS + 49))
    assert small.numbers == 64 * 100 * (PLACE_TAPS + 3)  # of nine that are unrolled


def test_backward_through_a_depthwise_convolution_asks_at_every_tap():
    x = meta(1, 64, 10, 10).requires_grad_()
    kernels = launched(lambda: F.conv2d(x, meta(64, 1, 3, 3), groups=64, padding=1).sum().backward())
    made = [kernel.numbers for kernel in kernels if kernel.kind == "depthwise"]
    assert made == [64 * 100 * (PLACE_TAPS + 3), round(64 * 100 * (PLACE_TAPS + 9 * BACKWARD_TAP))]


def test_a_convolution_puts_its_input_into_order_first_out_of_sight():
    def kinds(x: torch.Tensor) -> list[str]:
        return [kernel.kind for kernel in convolved(x, meta(64, 1, 4), groups=64)]

    assert kinds(meta(1, 64, 100)) == ["depthwise"]
    assert kinds(meta(1, 100, 64).transpose(1, 2)) == ["transposed", "depthwise"]
    assert kinds(meta(1, 64, 200)[..., :100]) == ["strided", "depthwise"]


def test_windows_of_one_place_are_a_product_and_wider_ones_are_turned_around():
    x = meta(1, 64, 16, 16)
    ((point, times),) = convolved(x, meta(128, 64, 1, 1)).items()
    assert (point.kind, point.sizes, point.old, times) == ("product", (1, 256, 128, 64), False, 1)
    wide = list(convolved(x, meta(128, 64, 3, 3), padding=1).elements())
    assert [(kernel.kind, kernel.old) for kernel in wide] == [("product", True), ("strided", False), ("strided", False)]
    assert [kernel.numbers for kernel in wide[1:]] == [64 * 256, 128 * 256]


def test_a_bias_is_added_by_a_kernel_of_its_own_unless_each_channel_is_alone():
    x, bias = meta(1, 64, 16, 16), meta(64)
    plain, biased = (convolved(x, meta(64, 64, 1, 1), bias=of) for of in (None, bias))
    (added,) = (biased - plain).elements()
    assert (added.kind, added.numbers) == ("strided", 64 * 256)
    assert sum(convolved(x, meta(64, 1, 1, 1), bias=bias, groups=64).values()) == 1


def test_a_stretched_picture_is_a_thread_a_place_through_all_channels():
    small, gradient = (meta(1, 100, side, side, dtype=torch.float32) for side in (16, 40))
    small.requires_grad_()
    kernels = launched(lambda: F.interpolate(small, size=(40, 40), mode="bicubic").backward(gradient))
    bicubic = [kernel for kernel in kernels.elements() if kernel.kind.startswith("bicubic")]
    assert [kernel.kind for kernel in bicubic] == ["bicubic", "bicubic backward"]
    assert {(kernel.numbers, kernel.sizes) for kernel in bicubic} == {(100 * 2048, (2,))}


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
