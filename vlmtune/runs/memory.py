"""What a run takes of a card, estimated beside measured."""

from dataclasses import dataclass

from vlmtune.units import GIB

MAX_DIFFERENCE_SHARE = 0.05
"""Of the estimate: a measured peak that differs by less is what was expected."""
OF_WEIGHTS, OF_OPTIMIZER, OF_STEP = "weights and adapters", "optimizer and workspaces", "step"
"""Parts of the allocated peak."""


@dataclass(frozen=True)
class Pace:
    """What a run is predicted to take of time."""

    step_s: float


@dataclass(frozen=True)
class Memory:
    """What a run takes of a card, estimated or measured."""

    peak_reserved_bytes: int
    peak_allocated_bytes: int
    parts: dict[str, int]
    """`parts_of_peak`."""
    answers_at_once: int | None = None
    """Of an estimate: held-out rows that are answered at once at evaluations; None where none are."""
    time: Pace | None = None
    """Of an estimate; None where the card's speed is not known."""


@dataclass(frozen=True)
class Compared:
    """One number of bytes, estimated and measured; None where there is no estimate."""

    name: str
    estimated_bytes: int | None
    measured_bytes: int


def parts_of_peak(loaded_bytes: int, between_steps_bytes: int, peak_allocated_bytes: int) -> dict[str, int]:
    """Return the allocated peak by when it was taken; the parts sum to it.

    Args:
        loaded_bytes: allocated when the model is ready to train.
        between_steps_bytes: allocated at the end of the first step.
    """
    return {
        OF_WEIGHTS: loaded_bytes,
        OF_OPTIMIZER: between_steps_bytes - loaded_bytes,
        OF_STEP: peak_allocated_bytes - between_steps_bytes,
    }


def compare(estimated: Memory | None, measured: Memory) -> list[Compared]:
    """Return both peaks and each part of the allocated one."""
    numbers = {
        "peak reserved": measured.peak_reserved_bytes,
        "peak allocated": measured.peak_allocated_bytes,
        **measured.parts,
    }
    if estimated is None:
        return [Compared(name, None, size) for name, size in numbers.items()]
    expected = {
        "peak reserved": estimated.peak_reserved_bytes,
        "peak allocated": estimated.peak_allocated_bytes,
        **estimated.parts,
    }
    return [Compared(name, expected[name], size) for name, size in numbers.items()]


def difference_note(estimated_bytes: int, measured_bytes: int) -> str | None:
    """Return a sentence when the measured reserved peak is further than MAX_DIFFERENCE_SHARE from the estimated one."""
    share = measured_bytes / estimated_bytes - 1
    if abs(share) <= MAX_DIFFERENCE_SHARE:
        return None
    return (
        f"the measured memory peak, {measured_bytes / GIB:.2f} GiB, is {abs(share):.0%} "
        f"{'above' if share > 0 else 'below'} the estimate of {estimated_bytes / GIB:.2f} GiB"
    )
