"""What `vlmtune calibrate` measured on a card: kept as JSON in the user's cache folder, read by later estimates.

A result holds for one card, one driver and one torch: with another of them it is not used.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmtune.errors import VlmtuneError
from vlmtune.files import cache_folder, parse_json, write_json


@dataclass(frozen=True)
class Setup:
    """What a calibration holds for."""

    card: str
    """As the driver reports it."""
    uuid: str
    driver: str
    torch: str


@dataclass(frozen=True)
class Figures:
    """What was measured of a card."""

    context_bytes: int | None
    """What the process takes outside of PyTorch's allocator after some steps; None where the driver does not tell."""
    cublas_bytes: tuple[tuple[int, ...], tuple[int, ...]]
    """Blocks that the first matrix product of the forward pass keeps, and of the backward pass."""


@dataclass(frozen=True)
class Speeds:
    """What a card does in a second, as measured."""

    tensor_flops_s: float
    """Of large products of 16-bit numbers."""
    fp32_flops_s: float
    """Of large products of fp32 numbers."""
    bytes_s: float
    """Of memory, read and written in order."""
    host_bytes_s: float
    """From pinned main memory."""
    plain_launch_s: float | None = None
    """What the processor takes for a kernel that torch launches by itself; None where the card was too slow to tell."""


LARGE_PRODUCT, LARGE_FP32_PRODUCT, LARGE_PASS, LARGE_COPY = 0.83, 0.75, 0.88, 0.85
"""What large products, passes over memory and copies over the bus reach of the peaks in a card's data sheet."""


@dataclass(frozen=True)
class ShortRun:
    """A short real run beside its estimate."""

    estimated_reserved_bytes: int
    measured_reserved_bytes: int
    estimated_allocated_bytes: int
    measured_allocated_bytes: int


@dataclass(frozen=True)
class Calibration:
    """What is kept of one card."""

    setup: Setup
    figures: Figures
    check: ShortRun
    speeds: Speeds | None = None
    """None in a result of an older version."""


def calibration_path(setup: Setup) -> Path:
    """Return the file that keeps the result of a card."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{setup.card} {setup.uuid[:8]}".lower()).strip("-")
    return cache_folder() / "calibration" / f"{name}.json"


def keep_calibration(calibration: Calibration) -> Path:
    """Write a result for later estimates; return its file.

    Raises:
        VlmtuneError: the folder cannot be written.
    """
    path = calibration_path(calibration.setup)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(calibration))
    except OSError as error:
        raise VlmtuneError(
            f"the result cannot be kept: {path}: {error.strerror}", "XDG_CACHE_HOME can name another folder"
        ) from None
    return path


def kept_calibration(setup: Setup) -> Calibration | None:
    """Return the result for this card, driver and torch, if one is kept; a damaged file counts as none."""
    try:
        kept = parse_json(Calibration, calibration_path(setup).read_bytes())
    except (OSError, ValueError):
        return None
    return kept if kept.setup == setup else None
