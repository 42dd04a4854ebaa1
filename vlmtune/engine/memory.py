"""What a run takes of the card, measured at the points that the estimate has, and said when the two part."""

import torch
from transformers import TrainerCallback

from vlmtune.engine.monitor import LiveView
from vlmtune.runs.memory import Memory, difference_note, parts_of_peak

FIRST_STEADY_STEP = 2
"""The optimizer's states exist from the end of the first step on: before that, a peak below the estimate is right."""


class MemoryWatch(TrainerCallback):
    """Measures a run on a GPU; to be made when the model is loaded and nothing else is."""

    def __init__(self, view: LiveView, estimated: Memory | None) -> None:
        self.view = view
        self.estimated = estimated
        self.loaded_bytes = torch.cuda.memory_allocated()
        self.between_steps_bytes: int | None = None
        self.num_steps = 0
        self._warned = False

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.between_steps_bytes is None:
            self.between_steps_bytes = torch.cuda.memory_allocated()
        self.num_steps += 1
        # Below the estimate may still be reached by a later step; above it is above it.
        if self.estimated and torch.cuda.max_memory_reserved() > self.estimated.peak_reserved_bytes:
            self._warn(self.difference())

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._warn(self.difference())

    def measured(self) -> Memory | None:
        """Return both peaks and the parts; None before the first step has ended."""
        if self.between_steps_bytes is None:
            return None
        allocated = torch.cuda.max_memory_allocated()
        parts = parts_of_peak(self.loaded_bytes, self.between_steps_bytes, allocated)
        return Memory(torch.cuda.max_memory_reserved(), allocated, parts)

    def difference(self) -> str | None:
        """Return a sentence when the peaks part, None when they do not, or when it is too early to say."""
        if self.estimated is None:
            return None
        estimated, measured = self.estimated.peak_reserved_bytes, torch.cuda.max_memory_reserved()
        if measured < estimated and self.num_steps < FIRST_STEADY_STEP:
            return None
        return difference_note(estimated, measured)

    def _warn(self, difference: str | None) -> None:
        if difference and not self._warned:
            self._warned = True
            self.view.warn(difference)


def facts_of_gpu(watch: MemoryWatch | None) -> dict:
    """Return what a report says of the card; None in each place without one."""
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if watch else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if watch else None,
        "gpu": torch.cuda.get_device_name(0) if watch else None,
        "memory_estimated": watch.estimated if watch else None,
        "memory_measured": watch.measured() if watch else None,
    }


def memory_now(on_gpu: bool) -> dict[str, int | None]:
    """Return what a record of the log says of the card's memory."""
    values = {
        "gpu_memory_bytes": torch.cuda.memory_reserved,
        "gpu_peak_bytes": torch.cuda.max_memory_reserved,
        "gpu_limit_bytes": _limit_bytes,
        "gpu_allocated_bytes": torch.cuda.memory_allocated,
        "gpu_allocated_peak_bytes": torch.cuda.max_memory_allocated,
    }
    return {name: measure() if on_gpu else None for name, measure in values.items()}


def _limit_bytes() -> int:
    """Return what the process may take: the card, or the share that set_per_process_memory_fraction leaves it."""
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    return int(total_bytes * torch.cuda.get_per_process_memory_fraction())
