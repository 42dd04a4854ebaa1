"""A log of allocations → its peaks: by phase of the run, by kind of what was held, and as the allocator shows them."""

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

from vlmtune.estimate.allocator.caching import AllocatorSettings, replay, round_size
from vlmtune.estimate.report import PeakAt, Phase
from vlmtune.estimate.simulate.record import Log
from vlmtune.runs.memory import parts_of_peak


@dataclass(frozen=True)
class Peaks:
    """What a simulated run takes. Sizes in bytes."""

    phases: dict[str, Phase]
    held: dict[str, dict[str, int]]
    """Phase → what was allocated at its peak, by kind."""
    at: dict[str, PeakAt]
    """Phase → what was being done at its peak."""
    unsplit_bytes: int
    """What PyTorch counts as allocated besides: ends of blocks too small to be blocks of their own."""
    unused_bytes: int
    """Peak of reserved memory less peak of allocated memory: room between and behind what is allocated."""
    flops_per_row: float
    streamed_bytes_per_batch: int

    @property
    def highest(self) -> str:
        """The phase with the peak; loading has its own, which `torch.cuda.max_memory_*` of training do not show."""
        training = [phase for phase in self.phases.values() if phase.name != "load"]
        return max(training, key=lambda phase: phase.peak_allocated_bytes).name

    @property
    def allocated_bytes(self) -> int:
        """Peak of allocated memory."""
        return self.phases[self.highest].peak_allocated_bytes + self.unsplit_bytes

    @property
    def reserved_bytes(self) -> int:
        """Peak of reserved memory."""
        return self.allocated_bytes + self.unused_bytes

    @property
    def parts(self) -> dict[str, int]:
        """The allocated peak by when it was taken, as training measures it."""
        loaded, stepped = (self.phases[name].allocated_at_end_bytes for name in ("load", "step 1"))
        return parts_of_peak(loaded, stepped, self.allocated_bytes)


def peaks_of(log: Log, expandable_segments: bool) -> Peaks:
    """Return the peaks of a log on a card without limit."""
    shown = replay(log.events, AllocatorSettings(expandable_segments=expandable_segments))
    phases, highest_at = _phases(log)
    highest_bytes = max(phase.peak_allocated_bytes for phase in phases.values() if phase.name != "load")
    return Peaks(
        phases=phases,
        held=_held_at(log, highest_at),
        at={name: _done_at(log, name, index) for name, index in highest_at.items()},
        unsplit_bytes=shown.peak_allocated_bytes - highest_bytes,
        unused_bytes=shown.peak_reserved_bytes - shown.peak_allocated_bytes,
        flops_per_row=log.flops / log.num_rows,
        streamed_bytes_per_batch=log.streamed_bytes // log.num_batches,
    )


def phases_of(log: Log) -> dict[str, Phase]:
    """Return the phases of a log by their names."""
    return _phases(log)[0]


def _phases(log: Log) -> tuple[dict[str, Phase], dict[str, int]]:
    """Return the phases, and the index of the event that makes each one's peak."""
    sizes: dict[int, int] = {}
    allocated, phases, highest_at = 0, {}, {}
    ends = [start for _, start in log.phases[1:]] + [len(log.events)]
    for (name, start), end in zip(log.phases, ends, strict=True):
        peak, peak_at = allocated, max(0, start - 1)
        for index in range(start, end):
            handle, num_bytes = log.events[index]
            if handle > 0:
                sizes[handle] = _counted(num_bytes)
                allocated += sizes[handle]
                if allocated > peak:
                    peak, peak_at = allocated, index
            elif handle < 0:
                allocated -= sizes.pop(-handle)
        phases[name], highest_at[name] = Phase(name, peak, allocated), peak_at
    return phases, highest_at


def _held_at(log: Log, highest_at: dict[str, int]) -> dict[str, dict[str, int]]:
    """Return what is allocated after each phase's highest event, by kind."""
    live: dict[int, int] = {}
    held: dict[str, dict[str, int]] = {}
    begin = 0
    for phase, highest in sorted(highest_at.items(), key=itemgetter(1)):
        for handle, num_bytes in islice(log.events, begin, highest + 1):
            if handle > 0:
                live[handle] = num_bytes
            elif handle < 0:
                del live[-handle]
        begin, kinds = highest + 1, Counter[str]()
        for one, num_bytes in live.items():
            kinds[log.tags[one][0]] += _counted(num_bytes)
        held[phase] = dict(kinds)
    return held


def _counted(num_bytes: int) -> int:
    return round_size(num_bytes) if num_bytes else 0


def _done_at(log: Log, phase: str, index: int) -> PeakAt:
    handle = next((handle for handle, _ in reversed(log.events[: index + 1]) if handle > 0), None)
    _, operation, module = log.tags[handle] if handle else ("", "", "")
    return PeakAt(phase, operation, module)
