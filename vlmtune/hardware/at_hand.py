"""The GPU of this machine: which card it is, and what of its memory this process may reserve."""

import os
import sys
from dataclasses import replace

import torch

from vlmtune.compat.torch import HAS_PRIMARY_CONTEXT
from vlmtune.errors import VlmtuneError
from vlmtune.hardware.calibration import (
    LARGE_COPY,
    LARGE_FP32_PRODUCT,
    LARGE_PASS,
    LARGE_PRODUCT,
    Figures,
    Setup,
    Speeds,
    kept_calibration,
)
from vlmtune.hardware.cards import Card, Platform, Target, card_of_driver
from vlmtune.hardware.main_memory import available_to_this_process
from vlmtune.hardware.sensors import GpuReading, read_gpu
from vlmtune.hardware.triton import why_no_triton

MEASURED = "measured by vlmtune calibrate"
DEVICE = 0
"""Training takes torch's first device."""
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
SAME_CARD_WITHIN = 1 / 8
"""NVML counts what the driver keeps; a slice of a card is much smaller than the card."""


def card_at_hand() -> Card | None:
    """Return the GPU that torch will train on, None when there is none; no CUDA context is made for it."""
    if not torch.cuda.is_available():
        return None
    seen = torch.cuda.get_device_properties(DEVICE)
    card = card_of_driver(seen.name, (seen.major, seen.minor), seen.multi_processor_count, seen.total_memory)
    kept = kept_calibration(setup_at_hand())
    return card if kept is None else with_speeds(calibrated(card, kept.figures), kept.speeds)


def require_card() -> Card:
    """Return the GPU that torch will train on.

    Raises:
        VlmtuneError: there is none.
    """
    card = card_at_hand()
    if card is None:
        raise VlmtuneError(
            "there is no GPU here that PyTorch can use",
            "vlmtune doctor says why; to estimate for another card, name it: --gpu rtx-4060 or --gpu 8gb",
        )
    return card


def target_at_hand(platform: Platform | None = None, reserve_bytes: int | None = None) -> Target:
    """Return the GPU of this machine with what this process may reserve of it at this moment.

    Args:
        platform: None for the allocator's settings of this process.
        reserve_bytes: left free besides what other programs hold already.

    Raises:
        VlmtuneError: there is no GPU.
    """
    card = require_card()
    budget_bytes = max(0, _reservable_bytes(card) - (reserve_bytes or 0))
    expandable = _expandable_segments() if platform is None else platform != "windows"
    return Target(card, budget_bytes, expandable, available_to_this_process(), why_no_triton())


def calibrated(card: Card, measured: Figures) -> Card:
    """Return the card with what was measured on it."""
    forward, backward = measured.cublas_bytes
    card = replace(card, cublas_forward_bytes=forward, cublas_backward_bytes=backward)
    if measured.context_bytes is None:
        return card
    sources = card.sources | {"context_bytes": MEASURED}
    return replace(card, context_bytes=measured.context_bytes, sources=sources)


def with_speeds(card: Card, measured: Speeds | None) -> Card:
    """Return the card with the peaks that what was measured of it implies."""
    if measured is None:
        return card
    peaks = {
        "bf16_tflops": measured.tensor_flops_s / LARGE_PRODUCT / 1e12,
        "fp32_tflops": measured.fp32_flops_s / LARGE_FP32_PRODUCT / 1e12,
        "bandwidth_gb_s": measured.bytes_s / LARGE_PASS / 1e9,
        "host_gb_s": measured.host_bytes_s / LARGE_COPY / 1e9,
    }
    sources = card.sources | dict.fromkeys(peaks, MEASURED)
    return replace(card, **peaks, plain_launch_s=measured.plain_launch_s, sources=sources)


def setup_at_hand() -> Setup:
    """Return what a calibration of this machine's GPU holds for."""
    seen = torch.cuda.get_device_properties(DEVICE)
    reading = reading_at_hand()
    return Setup(seen.name, str(seen.uuid), reading.driver if reading else "unknown", torch.__version__)


def reading_at_hand() -> GpuReading | None:
    """Return what NVML says about torch's device, found by its UUID; None where NVML does not know it."""
    seen = torch.cuda.get_device_properties(DEVICE)
    reading = read_gpu(uuid=f"GPU-{seen.uuid}")
    if reading is None or abs(reading.total_bytes - seen.total_memory) > reading.total_bytes * SAME_CARD_WITHIN:
        return None
    return reading


def own_bytes(reading: GpuReading) -> int | None:
    """Return what the driver counts for this process; None where it does not tell, as in some containers."""
    return next((process.used_bytes for process in reading.processes if process.pid == os.getpid()), None)


def _reservable_bytes(card: Card) -> int:
    """Return what PyTorch's allocator may hold in this process: free memory less the context still to come."""
    reading = reading_at_hand()
    if reading is not None and not HAS_PRIMARY_CONTEXT(DEVICE):
        available = reading.total_bytes - reading.used_bytes - card.context_bytes
    else:
        free_bytes, _ = torch.cuda.mem_get_info(DEVICE)  # makes the context if there was none
        reserved = torch.cuda.memory_reserved(DEVICE)
        own = own_bytes(reading) if reading else None
        # A context grows as kernels are loaded; what it has already is known only where the driver tells.
        to_come = 0 if own is None else max(0, card.context_bytes - (own - reserved))
        available = free_bytes + reserved - to_come
    share = torch.cuda.get_per_process_memory_fraction(DEVICE)
    return min(available, int(share * card.total_bytes_linux))


def _expandable_segments() -> bool:
    """Return whether this process asks PyTorch for expandable segments, which Linux alone has."""
    settings = ",".join(os.environ.get(name, "") for name in ALLOCATOR_VARIABLES)
    return sys.platform == "linux" and "expandable_segments:true" in settings.replace(" ", "").lower()
