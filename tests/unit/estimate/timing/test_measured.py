"""How fast a device is, measured on the CPU, and what that says of a card."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmtune.estimate.report import StepTime
from vlmtune.estimate.timing import measured
from vlmtune.estimate.timing.kernels import Kernel
from vlmtune.estimate.timing.rates import FP32, Rates
from vlmtune.hardware.at_hand import with_speeds
from vlmtune.hardware.calibration import Speeds
from vlmtune.hardware.cards import find_card

PREDICTED = StepTime(0.5, 4.0, None, None, 0.1, 2_000, 10_000, 1e-4, False, 0.0, False)


def test_all_is_measured_as_often_as_lasts(monkeypatch):
    monkeypatch.setattr(measured, "MEASURED_S", 0.001)
    speeds = measured.measured_speeds("cpu", scale=64)
    assert min(speeds.tensor_flops_s, speeds.fp32_flops_s, speeds.bytes_s, speeds.host_bytes_s) > 0
    assert speeds.plain_launch_s is None


def test_all_that_is_counted_as_moved_is_moved(monkeypatch):
    """A tensor that is read twice at once moves once."""
    moved = []

    def seconds(run, device):
        with Moved() as seen:
            run()
        moved.append(sum(seen.bytes.values()))
        return 1.0

    monkeypatch.setattr(measured, "_seconds_of", seconds)
    speeds = measured.measured_speeds("cpu", scale=64)
    assert speeds.bytes_s == moved[2]


class Moved(TorchDispatchMode):
    """Notes the memory that operations were given."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        for tensor in filter(torch.is_tensor, (*args, *(kwargs or {}).values())):
            self.bytes[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return operation(*args, **(kwargs or {}))


def test_what_is_repeated_lasts_long_enough(monkeypatch):
    lasted = []

    def lasting(run, times, device):
        lasted.append(times)
        return times * 0.05

    monkeypatch.setattr(measured, "_lasting", lasting)
    assert measured._seconds_of(lambda: None, "cpu") == pytest.approx(0.05)
    assert lasted == [1, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("predicted", "expected_s"),
    [(PREDICTED, pytest.approx(3e-5)), (replace(PREDICTED, kernels_s=0.25), None), (None, None)],
)
def test_a_step_tells_what_a_launch_takes_unless_kernels_fill_it(predicted, expected_s):
    assert measured.measured_plain_launch_s([0.4, 0.3, 0.2], predicted) == expected_s


def test_a_card_that_was_measured_takes_what_was_measured():
    """Peaks are such that `rates` gives the measured time back."""
    card = with_speeds(find_card("rtx-4060"), Speeds(20e12, 9e12, 200e9, 10e9, 1e-5))
    rates, side, numbers = Rates(card), measured.SIDE, measured.PASS_NUMBERS
    sizes = (1, side, side, side)
    for format, flops_s in (("float16", 20e12), (FP32, 9e12)):
        seconds = rates.seconds(Kernel("product", 3 * side**2 * 4, side**2, format, 2 * side**3, sizes))
        assert seconds == pytest.approx(2 * side**3 / flops_s, rel=0.02)
    assert rates.seconds(Kernel("pass", 6 * numbers, numbers)) == pytest.approx(6 * numbers / 200e9, rel=0.02)
    assert rates.seconds(Kernel("bus", 10**9)) == pytest.approx(0.1)
