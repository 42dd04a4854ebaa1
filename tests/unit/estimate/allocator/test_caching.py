"""Each rule of the caching allocator by hand, and what must hold for any log."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtune.estimate.allocator.addresses import DriverAddresses
from vlmtune.estimate.allocator.caching import (
    EMPTY_CACHE,
    ENTER_POOL,
    LEAVE_POOL,
    RESET_PEAK,
    AllocatorSettings,
    CachingAllocator,
    replay,
)
from vlmtune.units import MIB

NATIVE = AllocatorSettings()
EXPANDABLE = AllocatorSettings(expandable_segments=True)
BOTH = pytest.mark.parametrize("settings", [NATIVE, EXPANDABLE], ids=["native", "expandable"])


def _mib(*sizes):
    """Returns events that allocate these sizes in MiB as handles 1, 2, ... and free the handles given as negatives."""
    events, handle = [], 0
    for size in sizes:
        if size < 0:
            events.append((size, 0))
        else:
            handle += 1
            events.append((handle, int(size * MIB)))
    return events


def _reserved_mib(events, settings=NATIVE):
    return replay(events, settings).reserved_at_end_bytes / MIB


@BOTH
@pytest.mark.parametrize(
    ("size_bytes", "counted_bytes"), [(1, 512), (511, 512), (512, 512), (513, 1024), (1_000_000, 1_000_448)]
)
def test_an_allocation_counts_in_steps_of_512_bytes(size_bytes, counted_bytes, settings):
    assert replay([(1, size_bytes)], settings).peak_allocated_bytes == counted_bytes


@BOTH
def test_nothing_is_reserved_for_nothing(settings):
    assert replay([(1, 0), (-1, 0)], settings).peak_reserved_bytes == 0


@pytest.mark.parametrize(
    ("size_bytes", "native_mib", "expandable_mib"),
    [
        (1, 2, 2),
        (MIB, 2, 2),
        (MIB + 1, 20, 20),
        (10 * MIB - 512, 20, 20),
        (10 * MIB - 511, 10, 20),
        (10 * MIB, 10, 20),
        (10 * MIB + 1, 12, 20),
        (20 * MIB, 20, 20),
        (21 * MIB, 22, 40),
        (100 * MIB + 1, 102, 120),
    ],
)
def test_what_the_driver_is_asked_for(size_bytes, native_mib, expandable_mib):
    assert _reserved_mib([(1, size_bytes)]) == native_mib
    assert _reserved_mib([(1, size_bytes)], EXPANDABLE) == expandable_mib


def test_a_large_native_block_is_split_for_more_than_a_mebibyte_of_rest():
    assert replay([(1, 11 * MIB)], NATIVE).peak_allocated_bytes == 12 * MIB
    assert replay([(1, 11 * MIB - 512)], NATIVE).peak_allocated_bytes == 11 * MIB - 512
    assert replay([(1, 11 * MIB)], EXPANDABLE).peak_allocated_bytes == 11 * MIB
    assert replay([(1, 20 * MIB - 512)], EXPANDABLE).peak_allocated_bytes == 20 * MIB - 512


@BOTH
def test_a_small_block_is_split_to_the_last_512_bytes(settings):
    assert _reserved_mib([(1, MIB), (2, MIB - 512), (3, 512)], settings) == 2
    assert _reserved_mib([(1, MIB), (2, MIB - 512), (3, 513)], settings) == 4


@BOTH
def test_small_and_large_do_not_share_segments(settings):
    assert _reserved_mib(_mib(30, -1, 1), settings) == (30 if settings is NATIVE else 40) + 2
    assert _reserved_mib([*((h, MIB) for h in range(1, 9)), *((-h, 0) for h in range(1, 9)), (9, 2 * MIB)]) == 8 + 20


def test_the_smallest_free_block_that_suffices_is_taken():
    assert _reserved_mib(_mib(14, 12, -1, -2, 12, 14)) == 26


@BOTH
@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_of_equal_blocks_the_one_at_the_lowest_address_is_taken(order, settings):
    allocator = CachingAllocator(settings)
    blocks = [allocator.allocate(40 * MIB) for _ in range(4)]
    for index in order:
        allocator.free(blocks[index])
    assert allocator.allocate(40 * MIB).address == min(blocks[index].address for index in order)


@pytest.mark.parametrize("order", list(permutations((-1, -2, -3))))
def test_neighbours_coalesce_in_any_order(order):
    assert _reserved_mib(_mib(4, 4, 4, *order, 20)) == 20
    assert _reserved_mib(_mib(4, 4, 4, *order[:2], 20)) == 40


def test_expandable_segments_grow_at_the_end():
    assert _reserved_mib(_mib(15, 15)) == 32
    assert _reserved_mib(_mib(15, 15), EXPANDABLE) == 40
    assert _reserved_mib(_mib(15, 25, 19), EXPANDABLE) == 60
    assert _reserved_mib(_mib(30, -1, 50), NATIVE) == 80
    assert _reserved_mib(_mib(30, -1, 50), EXPANDABLE) == 60


def test_a_block_that_can_grow_is_taken_last():
    allocator = CachingAllocator(EXPANDABLE)
    inner, _, outer = (allocator.allocate(size * MIB) for size in (30, 5, 25))
    allocator.free(inner)
    allocator.free(outer)
    assert allocator.allocate(21 * MIB).address == inner.address
    assert allocator.allocate(21 * MIB).address == outer.address


def test_empty_cache_releases_only_whole_native_segments():
    assert _reserved_mib([*_mib(4, 30, -2), EMPTY_CACHE]) == 20
    assert _reserved_mib([*_mib(4, 30, -1), EMPTY_CACHE]) == 30
    assert _reserved_mib([*_mib(4, 4, -1), EMPTY_CACHE]) == 20


def test_empty_cache_unmaps_whole_pages_of_expandable_segments():
    events = [*_mib(15, 30, -2), EMPTY_CACHE]
    assert _reserved_mib(events, EXPANDABLE) == 20
    assert _reserved_mib([*events, (3, 5 * MIB)], EXPANDABLE) == 20
    assert _reserved_mib([*events, (3, 5 * MIB), (4, 40 * MIB)], EXPANDABLE) == 60
    assert _reserved_mib([*_mib(5, 70, 5, -2), EMPTY_CACHE], EXPANDABLE) == 40


def test_the_lowest_unmapped_room_is_mapped_first():
    allocator = CachingAllocator(EXPANDABLE)
    first, second, _ = (allocator.allocate(20 * MIB) for _ in range(3))
    end = 3 * 20 * MIB
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 40 * MIB
    assert allocator.allocate(30 * MIB).address == end
    assert allocator.allocate(15 * MIB).address == first.address
    # 5 MiB are left before `second`: when that is free too, 25 MiB fit there.
    allocator.free(second)
    assert allocator.allocate(25 * MIB).address == first.address + 15 * MIB
    assert allocator.reserved_bytes == 100 * MIB


def test_room_may_span_unmapped_and_free_stretches():
    allocator = CachingAllocator(EXPANDABLE)
    first, second, _ = (allocator.allocate(20 * MIB) for _ in range(3))
    allocator.free(first)
    allocator.empty_cache()
    allocator.free(second)
    assert allocator.allocate(40 * MIB).address == first.address
    assert allocator.reserved_bytes == 60 * MIB


def test_room_may_span_several_unmapped_stretches():
    allocator = CachingAllocator(EXPANDABLE)
    _, middle, last = (allocator.allocate(size * MIB) for size in (15, 30, 5))
    start = middle.address
    allocator.free(middle)
    allocator.empty_cache()
    allocator.free(last)
    assert allocator.reserved_bytes == 40 * MIB
    assert allocator.allocate(60 * MIB).address == start
    assert allocator.reserved_bytes == 80 * MIB


def test_a_free_block_without_a_whole_page_stays_mapped():
    allocator = CachingAllocator(EXPANDABLE)
    _, middle, _ = (allocator.allocate(size * MIB) for size in (15, 10, 15))
    allocator.free(middle)
    allocator.empty_cache()
    assert allocator.allocate(10 * MIB).address == middle.address


def test_what_was_released_lies_where_it_lay():
    allocator = CachingAllocator(NATIVE)
    allocator.driver = DriverAddresses()  # no code comes in between
    block = allocator.allocate(40 * MIB)
    allocator.free(block)
    allocator.empty_cache()
    assert allocator.allocate(40 * MIB).address == block.address


def test_addresses_end_at_nine_eighths_of_the_card():
    allocator = CachingAllocator(AllocatorSettings(expandable_segments=True, device_total_bytes=160 * MIB))
    first, _ = allocator.allocate(80 * MIB), allocator.allocate(80 * MIB)
    assert allocator.allocate(20 * MIB).prev is not None
    assert allocator.allocate(20 * MIB).prev is None
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.allocate(80 * MIB).address == first.address
    assert allocator.reserved_bytes == 200 * MIB


@BOTH
def test_a_full_card_gives_cached_memory_back_before_the_second_try(settings):
    limited = AllocatorSettings(settings.expandable_segments, capacity_bytes=100 * MIB)
    events = _mib(40, 20, 40, -1, -3, 60)
    result = replay(events, limited)
    assert (result.num_retries, result.out_of_memory_at) == (1, None)
    assert result.reserved_at_end_bytes == 80 * MIB
    assert (result.peak_reserved_bytes, result.peak_reserved_at) == (100 * MIB, 2)
    assert replay(events, settings).num_retries == 0


@BOTH
def test_it_ends_where_no_memory_is_found(settings):
    limited = AllocatorSettings(settings.expandable_segments, capacity_bytes=60 * MIB)
    result = replay(_mib(20, 20, 21, 512), limited)
    assert (result.out_of_memory_at, result.num_retries) == (2, 1)
    assert result.allocated_at_end_bytes == result.reserved_at_end_bytes == 40 * MIB
    assert replay(_mib(20, 20, 20), limited).out_of_memory_at is None


def test_native_fragments_can_fail_where_expandable_segments_fit():
    events = _mib(30, 30, -1, -2, 10, 21, 28)
    assert replay(events, AllocatorSettings(capacity_bytes=60 * MIB)).out_of_memory_at == 6
    assert replay(events, AllocatorSettings(True, capacity_bytes=60 * MIB)).out_of_memory_at is None


def test_what_was_mapped_before_the_card_was_full_counts_at_the_peak():
    limited = AllocatorSettings(expandable_segments=True, capacity_bytes=50 * MIB)
    result = replay([*_mib(20, 15, -1), EMPTY_CACHE, (-2, 0), (3, 60 * MIB)], limited)
    assert result.out_of_memory_at == 5
    assert (result.peak_reserved_bytes, result.peak_reserved_at) == (40 * MIB, 1)
    restarted = replay([*_mib(20, 15, -1), EMPTY_CACHE, RESET_PEAK, (-2, 0), (3, 60 * MIB)], limited)
    assert (restarted.peak_reserved_bytes, restarted.peak_reserved_at) == (40 * MIB, 6)
    assert restarted.reserved_at_end_bytes == 0


def test_the_share_of_the_process_is_checked_with_the_size_of_a_segment_of_its_own():
    def limited(mib):
        return AllocatorSettings(expandable_segments=True, allowed_bytes=mib * MIB)

    assert replay(_mib(15, 15), limited(36)).peak_reserved_bytes == 40 * MIB
    assert replay(_mib(15, 15), limited(35)).out_of_memory_at == 1
    assert replay(_mib(40, -1, 60), limited(99)).num_retries == 1
    assert replay(_mib(40, -1, 60), limited(100)).num_retries == 0
    assert replay(_mib(15, 15), AllocatorSettings(allowed_bytes=31 * MIB)).out_of_memory_at == 1
    assert replay(_mib(15, 15), AllocatorSettings(allowed_bytes=32 * MIB)).out_of_memory_at is None


@BOTH
def test_peaks_start_anew_where_asked(settings):
    events = [*_mib(40, 30, -2), EMPTY_CACHE, RESET_PEAK, *_mib(40, 20, 10, -3)[2:]]
    result = replay(events, settings)
    assert (result.peak_allocated_bytes, result.peak_allocated_at) == (50 * MIB, 5)
    assert result.peak_reserved_at == 5
    whole = replay([event for event in events if event != RESET_PEAK], settings)
    assert (whole.peak_allocated_bytes, whole.peak_allocated_at) == (70 * MIB, 1)


def test_a_release_of_what_is_not_held_is_a_bug_of_the_log():
    with pytest.raises(KeyError):
        replay([(1, 5), (-1, 0), (-1, 0)], NATIVE)


SIZES = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 3 * MIB),
    st.integers(MIB, 60 * MIB),
    st.sampled_from([MIB, 2 * MIB, 10 * MIB, 12 * MIB, 20 * MIB, 40 * MIB]),
)
STEPS = st.lists(st.tuples(st.sampled_from(["allocate", "allocate", "free", "empty"]), SIZES, st.integers(0, 999)))
LIMITS = st.one_of(st.none(), st.integers(30, 200).map(lambda mib: mib * MIB))
MODES = st.builds(
    AllocatorSettings, st.booleans(), capacity_bytes=LIMITS, allowed_bytes=LIMITS, device_total_bytes=LIMITS
)


def _all_blocks(allocator, live):
    """Returns every block there is, found from the live and the cached ones by their links."""
    found = {}
    cached = [entry[-1] for pool in (allocator.small, allocator.large) for entry in [*pool.free, *pool.unmapped]]
    for block in [*live, *cached]:
        while block is not None and block.address not in found:
            found[block.address] = block
            block = block.next
    return [found[address] for address in sorted(found)]


def _check(allocator, live):
    blocks = _all_blocks(allocator, live)
    assert all(a.address + a.size <= b.address for a, b in zip(blocks, blocks[1:], strict=False))
    assert {id(block) for block in blocks if block.allocated} == {id(block) for block in live}
    assert allocator.allocated_bytes == sum(block.size for block in live)
    assert allocator.reserved_bytes == sum(block.size for block in blocks if block.mapped)
    assert allocator.allocated_bytes <= allocator.reserved_bytes <= allocator.peak_reserved_bytes
    assert allocator.allocated_bytes <= allocator.peak_allocated_bytes
    if allocator.capacity_bytes is not None:
        assert allocator.peak_reserved_bytes <= allocator.capacity_bytes


@settings(deadline=None)  # a machine with other work takes longer now and then
@given(steps=STEPS, settings=MODES)
def test_blocks_never_overlap_and_the_sums_hold(steps, settings):
    allocator, live, failed = CachingAllocator(settings), [], False
    for kind, size_bytes, choice in steps:
        if kind == "allocate":
            block = allocator.allocate(size_bytes)
            failed = failed or block is None
            if block is not None:
                assert size_bytes <= block.size
                live.append(block)
        elif kind == "empty":
            allocator.empty_cache()
        elif live:
            allocator.free(live.pop(choice % len(live)))
        _check(allocator, live)
    reserved_bytes = allocator.reserved_bytes
    while live:
        allocator.free(live.pop())
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, reserved_bytes)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
    left = _all_blocks(allocator, [])
    # An allocation that found no memory leaves the addresses it was to have.
    assert not any(block.mapped for block in left) and (failed or not left)


@settings(deadline=None)
@given(sizes=st.lists(SIZES, min_size=1), settings=MODES)
def test_the_same_log_gives_the_same_answer(sizes, settings):
    events = [(handle, size) for handle, size in enumerate(sizes, 1)]
    events += [(-handle, 0) for handle in range(1, len(sizes), 2)] + [EMPTY_CACHE]
    assert replay(events, settings) == replay(iter(events), settings)


@BOTH
def test_what_cuda_graphs_free_is_theirs_alone_and_is_never_given_back(settings):
    """A pool of 40 MiB is used by the next graph again; neither others nor `empty_cache` get any of it."""
    one, another = [(1, 40 * MIB), (-1, 0)], [(2, 30 * MIB), (3, 10 * MIB), (-2, 0), (-3, 0)]
    recorded = [ENTER_POOL, *one, LEAVE_POOL, ENTER_POOL, *another, LEAVE_POOL]
    assert _reserved_mib(recorded, settings) == 40
    assert _reserved_mib([*recorded, (4, 20 * MIB)], settings) == 60
    assert _reserved_mib([*recorded, (4, 20 * MIB), (-4, 0), EMPTY_CACHE], settings) == 40
    assert _reserved_mib([(4, 20 * MIB), *recorded, (-4, 0), (5, 20 * MIB)], settings) == 60


@BOTH
def test_what_lies_in_the_pool_of_graphs_goes_back_there(settings):
    begun = [ENTER_POOL, (1, 20 * MIB), LEAVE_POOL, (-1, 0)]
    assert _reserved_mib([*begun, (2, 20 * MIB)], settings) == 40
    assert _reserved_mib([*begun, ENTER_POOL, (2, 20 * MIB), LEAVE_POOL], settings) == 20
