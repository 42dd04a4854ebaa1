"""Each rule of what CUDA operations take besides their outputs, with numbers of recorded runs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vlmtune.estimate.simulate.cuda import cublas_workspace_bytes, hidden_of
from vlmtune.estimate.simulate.record import NO_WORKSPACES, Recorder, Workspaces
from vlmtune.units import MIB

H100_SMS = 132
HOPPER, ADA, BLACKWELL_RTX = (9, 0), (8, 9), (12, 0)
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def workspaces(operation, *args, sm=HOPPER, **kwargs):
    return hidden_of(sm, H100_SMS)(operation, args, kwargs)


@pytest.mark.parametrize(("sm", "expected"), [(HOPPER, 32 * MIB), (BLACKWELL_RTX, 32 * MIB), (ADA, 8_519_680)])
def test_cublas_workspace_by_architecture(sm, expected):
    assert cublas_workspace_bytes(sm) == expected


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(None, [8_519_680, MIB, 8_519_680, MIB]), (((4 * MIB, 512), (2 * MIB,)), [4 * MIB, 512, 2 * MIB, 512])],
)
def test_each_thread_keeps_a_workspace_of_its_first_product_and_one_of_its_first_bias(measured, expected):
    hidden, bias = hidden_of(ADA, 24, measured), meta(8, dtype=torch.float32)
    weight = meta(8, 8, dtype=torch.float32).requires_grad_()

    def layers(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows @ weight, weight, bias).exp()  # its output is saved

    def kept_by(backward_recomputes: bool) -> list[int]:
        kept: list[int] = []

        def noted(operation, args, kwargs):
            spaces = hidden(operation, args, kwargs)
            kept.extend(spaces.kept)
            return spaces

        with Recorder(noted):
            out = checkpoint(layers, weight, use_reentrant=False) if backward_recomputes else layers(weight)
            out.sum().backward()
        return kept

    # Gradients of a product with a bias add none: the backward thread's comes with what it computes anew.
    assert kept_by(backward_recomputes=False) == expected[:3]
    assert kept_by(backward_recomputes=True) == expected[3:]
    assert kept_by(backward_recomputes=True) == []


def test_no_workspace_is_kept_where_the_card_was_measured_to_keep_none():
    hidden = hidden_of(ADA, 24, ((), ()))
    product = (meta(8), meta(8, 8), meta(8, 8))
    assert not hidden(torch.ops.aten.addmm.default, product, {}).kept


@pytest.mark.parametrize(("rows", "has_bias", "expected"), [(5, True, True), (5, False, False), (4, True, False)])
def test_a_4bit_product_adds_its_bias_where_it_is_unpacked(rows, has_bias, expected):
    args, kwargs = gemm_4bit(rows, None)
    given = {**kwargs, "bias": meta(6144) if has_bias else None}
    kept = hidden_of(HOPPER, H100_SMS)(Named("bitsandbytes.gemm_4bit.default"), args, given).kept
    assert (kept == (32 * MIB, MIB)) is expected
    assert kept[0] == 32 * MIB


def test_a_matrix_that_is_added_is_no_bias():
    args = (meta(8, 8), meta(8, 8), meta(8, 8))
    assert hidden_of(HOPPER, H100_SMS)(torch.ops.aten.addmm.default, args, {}).kept == (32 * MIB,)


def gemm_4bit(rows: int, absmax_8bit) -> tuple:
    packed = meta(2048 * 6144 // 2, 1, dtype=torch.uint8)
    args = (meta(1, rows, 2048), packed, [6144, 2048], meta(768, dtype=torch.float32), 64, "nf4")
    return args, {"absmax_8bit": absmax_8bit}


class Named:
    """Stands for an operation that is only known by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


def test_4bit_weights_are_unpacked_whole():
    args, kwargs = gemm_4bit(463, meta(196_608, dtype=torch.uint8))
    spaces = workspaces(Named("bitsandbytes.gemm_4bit.default"), *args, **kwargs)
    assert spaces.before == (786_432, 786_432, 25_165_824)


def test_4bit_weights_with_plain_constants():
    args, kwargs = gemm_4bit(463, None)
    assert workspaces(Named("bitsandbytes.gemm_4bit.default"), *args, **kwargs).before == (25_165_824,)


def test_few_rows_read_4bit_weights_in_place():
    args, kwargs = gemm_4bit(4, None)
    assert workspaces(Named("bitsandbytes.gemm_4bit.default"), *args, **kwargs).before == ()


@pytest.mark.parametrize(
    ("tokens", "heads", "grouped", "head", "expected"),
    [
        (463, 16, 8, 128, 7_615_680),
        (237, 16, 8, 128, 3_898_432),
        (670, 32, 32, 128, 11_063_296),
        (1184, 9, 3, 64, 5_498_752),
        (337, 28, 4, 128, 9_700_464),
    ],
)
def test_cudnn_attention_backward_on_hopper(tokens, heads, grouped, head, expected):
    q, k = meta(1, heads, tokens, head), meta(1, grouped, tokens, head)
    assert workspaces(FLASH_BACKWARD, q, q, k, k).after == (expected,)


def test_flash_attention_backward_elsewhere():
    q, k = meta(2, 16, 463, 80), meta(2, 8, 463, 80)
    spaces = workspaces(FLASH_BACKWARD, q, q, k, k, sm=ADA)
    grouped = 2 * 463 * 16 * 80 * 2
    assert spaces.before == (2 * 16 * 512 * 4, 2 * 512 * 16 * 96 * 4, grouped, grouped)


def test_masked_scatter_counts_the_mask():
    operation = torch.ops.aten.masked_scatter.default
    into, mask = meta(1, 463, 2048), meta(1, 463, 2048, dtype=torch.bool)
    assert workspaces(operation, into, mask, into).after == (7_585_792, 948_224)


@pytest.mark.parametrize(
    ("number", "side", "width", "dtype", "expected"),
    [
        (13, 384, 1152, torch.bfloat16, (56_118_544,)),  # SmolVLM2
        (3, 384, 1152, torch.bfloat16, (15_729_424,)),  # Granite Vision
        (1, 364, 1152, torch.bfloat16, (7_290_128,)),  # Idefics3
        (4, 336, 1024, torch.bfloat16, (15_155_216,)),  # LLaVA 1.5
        (1, 224, 1152, torch.bfloat16, (5_005_328,)),  # PaliGemma
        (1, 448, 1024, torch.bfloat16, ()),  # InternVL3
        (1, 896, 1152, torch.bfloat16, ()),  # Gemma 3
        (5, 384, 768, torch.float32, ()),
    ],
)
def test_patches_are_convolved_with_channels_last(number, side, width, dtype, expected):
    images, weight = meta(number, 3, side, side, dtype=dtype), meta(width, 3, 14, 14, dtype=dtype)
    args = (images, weight, None, [14, 14], [0, 0], [1, 1], False, [0, 0], 1)
    assert workspaces(torch.ops.aten.convolution.default, *args) == Workspaces(after=expected)


def test_other_convolutions_take_nothing():
    operation, images = torch.ops.aten.convolution.default, meta(1, 3, 384, 384)
    overlapping = (images, meta(64, 3, 3, 3), None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1)
    frames = (meta(400, 3, 2, 14, 14), meta(1280, 3, 2, 14, 14), None, [2, 14, 14], [0] * 3, [1] * 3, False, [0] * 3, 1)
    assert workspaces(operation, *overlapping) == workspaces(operation, *frames) == NO_WORKSPACES


def test_what_is_not_contiguous_is_copied_first():
    turned, straight = meta(2, 3, 1024).transpose(0, 1), meta(3, 2, 1024)
    operation = torch.ops.aten.native_layer_norm.default
    assert workspaces(operation, turned, [1024], None, None, 1e-5).before == (2 * 3 * 1024 * 2,)
    assert workspaces(operation, straight, [1024], None, None, 1e-5).before == ()
    backward = torch.ops.aten.native_layer_norm_backward.default
    assert workspaces(backward, straight, turned, [1024]).before == (2 * 3 * 1024 * 2,)
    weight = meta(4, 2, 7)
    conv = torch.ops.aten.convolution.default
    assert workspaces(conv, meta(3, 9, 2).transpose(1, 2), weight, None, [1]).before == (3 * 9 * 2 * 2,)
    assert workspaces(conv, meta(3, 2, 9), weight, None, [1]).before == ()


@pytest.mark.parametrize(("dtype", "converted"), [(torch.bool, (81_788_928,)), (torch.int64, ())])
def test_whole_numbers_are_converted_before_they_are_summed(dtype, converted):
    pixels = meta(13, 3, 512, 512, dtype=dtype)
    assert workspaces(torch.ops.aten.sum.dim_IntList, pixels, [-1, -2, -3]).after == converted


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((13_312, 768), [0], (81_788_928, 24)),
        ((13_312, 3072), [0], (138_412_032, 96)),
        ((1, 1184, 576), [0, 1], (5_603_328, 20)),
        ((1, 958, 576), [0, 1], ()),
        ((1184, 576), [1], ()),
        ((1184, 576), [0, 1], ()),
    ],
)
def test_sums_over_rows_are_shared_by_blocks(shape, dims, expected):
    assert workspaces(torch.ops.aten.sum.dim_IntList, meta(*shape), dims).after == expected


def test_a_smaller_card_shares_sums_among_fewer_blocks():
    hidden = hidden_of(ADA, 24)
    rows = meta(13_312, 768)
    shares = -(-24 * 12 // 6)
    assert hidden(torch.ops.aten.sum.dim_IntList, (rows, [0]), {}).after == (4 * 768 * shares * 128, 24)


def test_the_norm_of_all_gradients_has_a_number_for_each_chunk():
    gradients = [meta(3), meta(131_073), meta(8, 8)]
    assert workspaces(torch.ops.aten._foreach_norm.Scalar, gradients).before == (3 * 3 * 4,)


def test_other_operations_take_nothing_more():
    assert workspaces(torch.ops.aten.exp.default, meta(3)) is NO_WORKSPACES
