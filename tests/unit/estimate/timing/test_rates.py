"""What kernels take on a card: close to those that were measured, and bound by what bounds them."""

import json
import re
import statistics
from functools import partial
from pathlib import Path

import pytest
from gpu import microbench

from vlmtune.estimate.simulate.attention import attention_of
from vlmtune.estimate.simulate.record import Recorder
from vlmtune.estimate.timing.kernels import Kernel
from vlmtune.estimate.timing.rates import FP32, KINDS, Rates
from vlmtune.hardware.cards import cards, find_card

MEASURED = json.loads((Path(__file__).parents[3] / "gpu/measured/microbench.json").read_text(encoding="utf-8"))
PACKS = json.loads((Path(__file__).parents[3] / "gpu/measured/microbench-h100.json").read_text(encoding="utf-8"))
H100, H200, RTX_4060 = (Rates(find_card(name)) for name in ("h100", "h200", "rtx-4060"))
FORMATS = {"bf16": "bfloat16", "fp16": "float16", "fp32": FP32}


def product(m: int, n: int, k: int, format: str = "bfloat16", old: bool = False) -> Kernel:
    item_bytes = 4 if format == FP32 else 2
    return Kernel("product", (m * k + k * n + m * n) * item_bytes, m * n, format, 2 * m * n * k, (1, m, n, k), old)


def by_rule_ms(run, times: int = 20, rates: Rates = H200) -> float:
    with Recorder() as recorder:
        run()
    return sum(rates.seconds(kernel) * times for kernel, times in recorder.ledger.taken().tokens.items()) * 1e3


@pytest.fixture(scope="module")
def off() -> dict[str, float]:
    """What the rules say of the very kernels that were measured, beside that."""
    found: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch, attention_of("cuda"):
        patch.setattr(microbench, "CARD", "meta")
        patch.setattr(microbench, "milliseconds", by_rule_ms)
        for measure in (microbench.passes, microbench.attention, microbench.convolutions, microbench.stretching):
            measure(found)
    return {name: ms / MEASURED[name] - 1 for name, ms in found.items()}


@pytest.mark.parametrize(
    ("kernels", "number", "median", "most"),
    [
        (r"conv .* G\d{2,} ...", 12, 0.05, 0.30),
        (r"conv .* G1 ...", 6, 0.25, 0.40),
        (r"stretch bicubic antialias=False .*", 4, 0.03, 0.05),
        (r"transpose contiguous .*", 4, 0.10, 0.20),
        (r"sdpa .* mask ...|sdpa .* D512 .*", 10, 0.10, 0.25),
    ],
)
def test_single_kernels_take_what_was_measured(off, kernels, number, median, most):
    errors = [abs(error) for name, error in off.items() if re.fullmatch(kernels, name)]
    assert len(errors) == number
    assert statistics.median(errors) < median and max(errors) < most


def test_attention_of_packs_takes_what_was_measured(monkeypatch):
    found: dict[str, float] = {}
    monkeypatch.setattr(microbench, "CARD", "meta")
    monkeypatch.setattr(microbench, "milliseconds", partial(by_rule_ms, rates=H100))
    microbench.packs(found)
    assert found.keys() == {name for name in PACKS if name.startswith("varlen")}
    errors = {name: abs(ms / PACKS[name] - 1) for name, ms in found.items()}
    used = [error for name, error in errors.items() if "True" in name or name.endswith("fwd")]  # towers seldom learn
    assert len(used) == 16 and statistics.median(used) < 0.12 and max(used) < 0.22
    assert max(errors.values()) < 0.45


def test_products_take_what_was_measured():
    errors = {}
    for name, ms in MEASURED.items():
        if found := re.fullmatch(r"gemm (\w+) (\d+)x(\d+)x(\d+) TN", name):
            m, n, k = map(int, found.groups()[1:])
            old = any(size * 2 % 16 for size in (n, k)) and found[1] != "fp32"
            errors[name] = H200.seconds(product(m, n, k, FORMATS[found[1]], old)) * 1e3 / ms - 1
    assert len(errors) >= 80
    assert statistics.median(map(abs, errors.values())) < 0.10
    large = {name: error for name, error in errors.items() if MEASURED[name] > 0.05}
    assert max(map(abs, large.values())) < 0.30


def test_unpacking_takes_what_was_measured():
    for rows, columns in ((11008, 2048), (14336, 4096), (5120, 27648)):
        numbers = rows * columns
        kernel = Kernel("unpack", numbers // 2 + numbers // 16 + 2 * numbers, numbers)
        assert H200.seconds(kernel) * 1e3 == pytest.approx(
            MEASURED[f"dequant ({rows}, {columns}) nested=False"], rel=0.1
        )


def test_passes_over_much_memory_take_what_was_measured():
    numbers = 268435456
    for name, kind, num_bytes in (("add bf16", "pass", 6), ("copy bf16->fp32", "widen", 6), ("mul fp32", "pass", 8)):
        kernel = Kernel(kind, numbers * num_bytes, numbers)
        assert H200.seconds(kernel) * 1e3 == pytest.approx(MEASURED[f"{name} {numbers}"], rel=0.1), name


def test_old_kernels_are_slow_where_the_tensor_cores_are_new():
    def slowdown(rates: Rates) -> float:
        return rates.seconds(product(6400, 3420, 1280, old=True)) / rates.seconds(product(6400, 3424, 1280))

    assert slowdown(H200) > 2.5 > slowdown(RTX_4060) > 1.5


def test_a_small_card_is_slow_by_what_it_lacks():
    large, wide = product(4096, 4096, 4096), Kernel("pass", 10**9, 10**8)
    assert RTX_4060.seconds(large) / H200.seconds(large) == pytest.approx(989 / 30.2, rel=0.05)
    assert RTX_4060.seconds(wide) / H200.seconds(wide) == pytest.approx(4800 / 272, rel=0.05)


def test_a_product_in_parts_is_two_launches():
    assert H200.launches(product(1500, 16, 11008)) == 2
    assert H200.launches(product(1500, 11008, 2048)) == 1
    assert H200.launches(Kernel("pass", 100, 100)) == 1


def test_full_tuning_waits_for_states_in_8_bits():
    numbers = 1_540_000_000  # Qwen2-VL 2B's language model, in one
    assert H100.seconds(Kernel("optimizer", 16 * numbers, numbers)) == pytest.approx(0.0439, rel=0.05)


def test_what_is_called_through_python_is_several_plain_launches():
    called = ("unpack", "ours", "optimizer")
    assert [H200.plain_launches(Kernel(kind, 100, 100)) for kind in ("pass", *called)] == [1, 6, 6, 6]
    assert H200.plain_launches(product(1500, 16, 11008)) == 7  # in parts, which another kernel adds up


def test_masks_in_fp32_multiply_three_times_at_half_the_rate_by_the_slower_kernel():
    sizes = (12, 2560, 2560, 64)
    half, full = (Kernel("masked attention", 10**6, 0, of, 10**11, sizes, True) for of in ("bfloat16", FP32))
    for rates in (H200, RTX_4060):
        assert 6 < rates.seconds(full) / rates.seconds(half) < 12


def test_backward_through_heads_whose_sums_fit_into_no_registers_is_slow():
    def slowdown(rates: Rates, size: int) -> float:
        narrow, wide = (
            Kernel("masked attention backward", 10**6, 0, "bfloat16", 10**10 * one, (8, 640, 640, one), True)
            for one in (128, size)
        )
        return rates.seconds(wide) / rates.seconds(narrow)

    assert slowdown(H200, 256) == pytest.approx(2, rel=0.1)
    assert slowdown(H200, 512) > 30
    assert slowdown(RTX_4060, 256) > 6  # cuDNN's are for data centre cards


def test_a_stretched_picture_takes_as_long_on_a_card_of_many_multiprocessors():
    one, many = (Kernel("bicubic", 0, 5760 * 1024 * blocks, sizes=(blocks,)) for blocks in (1, 132))
    assert H200.seconds(one) == pytest.approx(29e-3, rel=0.05) == H200.seconds(many)


def test_every_kind_has_a_time_on_every_card():
    for card in cards():
        rates = Rates(card)
        for kind in (*KINDS, "bus", "copy"):
            assert 0 < rates.seconds(Kernel(kind, 10**6, 10**6, sizes=(30,))) < 1, (card.key, kind)
        for kind in ("attention", "masked attention"):
            attention = Kernel(f"{kind} backward", 10**6, 0, "bfloat16", 10**9, (16, 500, 500, 64))
            assert 0 < rates.seconds(attention) < 1


def test_more_rows_never_take_less():
    taken = [H200.seconds(product(m, 4096, 4096)) for m in range(128, 4097, 128)]
    assert all(later > 0.9 * earlier for earlier, later in zip(taken, taken[1:], strict=False))
