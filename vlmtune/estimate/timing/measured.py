"""How fast the card at hand is: what `vlmtune calibrate` measures for `rates.py`."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from vlmtune.estimate.report import StepTime
from vlmtune.hardware.calibration import Speeds
from vlmtune.units import MIB

SIDE = 4096
"""Of square products: large enough for all multiprocessors of any card."""
PASS_NUMBERS = 64 * MIB
"""16-bit ones; far more than any card's cache."""
HOST_BYTES = 128 * MIB
MEASURED_S = 0.3
"""How long each is repeated at least: clocks settle."""
BUSY_SHARE = 0.7
"""With kernels that take more of a step, its time says nothing of launches."""


def measured_speeds(device: str, scale: int = 1) -> Speeds:
    """Return what a device computes and moves in a second.

    Args:
        scale: measure with sizes so many times smaller.
    """
    side, numbers = SIDE // scale, PASS_NUMBERS // scale**2
    half, single = (torch.ones(side, side, dtype=dtype, device=device) for dtype in (torch.float16, torch.float32))
    # Two to read: of one tensor given twice each number comes from memory once.
    left, right, result = (torch.ones(numbers, dtype=torch.float16, device=device) for _ in range(3))
    on_host = torch.ones(HOST_BYTES // scale**2, dtype=torch.uint8)
    on_host = on_host.pin_memory() if device == "cuda" else on_host
    on_card = on_host.to(device)
    flops = 2 * side**3
    return Speeds(
        tensor_flops_s=flops / _seconds_of(lambda: half @ half, device),
        fp32_flops_s=flops / _seconds_of(lambda: single @ single, device),
        bytes_s=3 * left.nbytes / _seconds_of(lambda: torch.add(left, right, out=result), device),
        host_bytes_s=on_host.nbytes / _seconds_of(lambda: on_card.copy_(on_host, non_blocking=True), device),
    )


def measured_plain_launch_s(steps_s: Sequence[float], predicted: StepTime | None) -> float | None:
    """Return what the processor takes for a plain launch of a run; None where the card was busy, or is not known.

    Args:
        steps_s: of each step; the median tells, as of the steps that are predicted.
        predicted: what its steps launch, and how long their kernels take.
    """
    step_s = median(steps_s)
    if predicted is None or predicted.kernels_s > BUSY_SHARE * step_s:
        return None
    return step_s / predicted.plain_launches


def _seconds_of(run: Callable[[], object], device: str) -> float:
    """Return what something takes once, in the mean of as many times as last long enough."""
    times = 1
    _lasting(run, times, device)  # its first time: libraries load, workspaces are made
    while (seconds := _lasting(run, times, device)) < MEASURED_S:
        times *= 2
    return seconds / times


def _lasting(run: Callable[[], object], times: int, device: str) -> float:
    started = time.perf_counter()
    for _ in range(times):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
