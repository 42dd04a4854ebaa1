"""The allocator's model against what real allocators did (tests/gpu/record_allocator.py wrote it down)."""

import json
from pathlib import Path

import pytest

from vlmtune.estimate.allocator.addresses import DriverAddresses
from vlmtune.estimate.allocator.caching import EMPTY_CACHE, RESET_PEAK, AllocatorSettings, CachingAllocator

MEASURED = Path(__file__).parents[3] / "gpu" / "measured"


def _scenarios():
    for path in sorted(MEASURED.glob("allocator*.json")):
        for scenario in json.loads(path.read_text())["scenarios"]:
            mode = "expandable" if scenario["expandable_segments"] else "native"
            yield pytest.param(scenario, id=f"{path.stem}: {mode}, {scenario['name']}")


SCENARIOS = list(_scenarios())


class _RecordedAddresses:
    """Gives native segments the addresses that the driver gave them: which block is best of equals hangs on them."""

    def __init__(self, segments):
        self.left = iter(segments)

    def take(self, size_bytes):
        return next(self.left)[1]

    def give_back(self, address, size_bytes):
        pass


class _Replayed(CachingAllocator):
    """A recorded scenario's allocator, one event at a time."""

    def __init__(self, scenario):
        super().__init__(
            AllocatorSettings(
                expandable_segments=scenario["expandable_segments"],
                capacity_bytes=scenario["free_bytes"],
                allowed_bytes=scenario["allowed_bytes"],
                device_total_bytes=scenario["device_total_bytes"],
            )
        )
        self.blocks = {}

    def play(self, index, handle, size_bytes):
        """Does one event and returns whether it found memory."""
        self.event = index
        if (handle, size_bytes) == EMPTY_CACHE:
            self.empty_cache()
        elif (handle, size_bytes) == RESET_PEAK:
            self.reset_peak()
        elif handle < 0:
            block = self.blocks.pop(-handle)
            if block is not None:
                self.free(block)
        else:
            self.blocks[handle] = self.allocate(size_bytes)
            return self.blocks[handle] is not None
        return True


@pytest.mark.skipif(not SCENARIOS, reason="no allocator*.json in tests/gpu/measured yet")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_figure_of_a_recorded_allocator_comes_out(scenario):
    allocator, failed, checkpoints = _Replayed(scenario), [], {row[0]: row[1:] for row in scenario["checkpoints"]}
    allocator.driver = _RecordedAddresses(scenario["segments"])
    for index, (handle, size_bytes) in enumerate(scenario["events"]):
        if not allocator.play(index, handle, size_bytes):
            failed.append(index)
        if index in checkpoints:
            allocated = [allocator.allocated_bytes, allocator.peak_allocated_bytes]
            reserved = [allocator.reserved_bytes, allocator.peak_reserved_bytes]
            assert [*allocated, *reserved, allocator.num_retries] == checkpoints[index], f"at event {index}"
    assert failed == scenario["failed"]


@pytest.mark.skipif(not SCENARIOS, reason="no allocator*.json in tests/gpu/measured yet")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_peak_comes_out_without_knowing_the_addresses(scenario):
    allocator, peak_bytes = _Replayed(scenario), 0
    allocator.driver = DriverAddresses()  # the recorded processes ran no kernel
    for index, (handle, size_bytes) in enumerate(scenario["events"]):
        allocator.play(index, handle, size_bytes)
        peak_bytes = max(peak_bytes, allocator.peak_reserved_bytes)
    measured_bytes = max(row[4] for row in scenario["checkpoints"])
    # Only after memory went back to the driver are its addresses a guess.
    given_back = allocator.num_retries or list(EMPTY_CACHE) in scenario["events"][:-1]
    assert peak_bytes == pytest.approx(measured_bytes, rel=0.01 if given_back else 0)
