"""Replays an allocation log through an exact model of PyTorch's CUDA caching allocator.

It follows c10/cuda/CUDACachingAllocator.cpp of torch 2.11 to 2.15 at its default settings, with native or expandable
segments: rounding, the two pools, best fit by (size, address), splitting, coalescing, and the release of cached memory
before a second try when the card or the process's share is full; and one pool of CUDA graphs. Out of scope: several
streams, `record_stream`, garbage collection and `max_split_size_mb`, all off by default.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from vlmtune.estimate.allocator.addresses import AddressesWithCode
from vlmtune.estimate.allocator.blocks import Block, Pool
from vlmtune.units import MIB

MIN_BLOCK_BYTES = 512
SMALL_MAX_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
OWN_SEGMENT_MIN_BYTES = 10 * MIB
OWN_SEGMENT_STEP_BYTES = 2 * MIB
ENDLESS_BYTES = LARGE_SEGMENT_BYTES << 32

# An event is (handle, size_bytes) for an allocation and (-handle, 0) for its release; handles are positive.
Event = tuple[int, int]
EMPTY_CACHE: Event = (0, 0)
RESET_PEAK: Event = (0, 1)
ENTER_POOL: Event = (0, 2)
LEAVE_POOL: Event = (0, 3)
"""Between them allocations are those of CUDA graphs, in a pool of their own."""


@dataclass(frozen=True)
class AllocatorSettings:
    """The allocator's mode and its limits; None is no limit."""

    expandable_segments: bool = False
    capacity_bytes: int | None = None
    """What the card can give this process in all, context and other programs taken off."""
    allowed_bytes: int | None = None
    """What `set_per_process_memory_fraction` leaves this process: the fraction times the card's whole memory."""
    device_total_bytes: int | None = None
    """The card's whole memory: an expandable segment reserves 9/8 of it as addresses."""


@dataclass(frozen=True)
class Replay:
    """What `torch.cuda.memory_stats` would have shown; the indices point into the events."""

    peak_allocated_bytes: int
    peak_allocated_at: int
    peak_reserved_bytes: int
    peak_reserved_at: int
    allocated_at_end_bytes: int
    reserved_at_end_bytes: int
    num_retries: int
    out_of_memory_at: int | None


def replay(events: Iterable[Event], settings: AllocatorSettings) -> Replay:
    """Returns the peaks of a log of events; it ends at the first allocation that finds no memory."""
    allocator = CachingAllocator(settings)
    blocks: dict[int, Block | None] = {}
    out_of_memory_at = None
    for index, (handle, size_bytes) in enumerate(events):
        allocator.event = index
        if handle < 0:
            block = blocks.pop(-handle)
            if block is not None:
                allocator.free(block)
        elif handle == 0:
            allocator.told((handle, size_bytes))
        elif size_bytes == 0:
            blocks[handle] = None  # PyTorch does not ask its allocator for nothing
        else:
            block = blocks[handle] = allocator.allocate(size_bytes)
            if block is None:
                out_of_memory_at = index
                break
    return Replay(
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_allocated_at=allocator.peak_allocated_at,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        peak_reserved_at=allocator.peak_reserved_at,
        allocated_at_end_bytes=allocator.allocated_bytes,
        reserved_at_end_bytes=allocator.reserved_bytes,
        num_retries=allocator.num_retries,
        out_of_memory_at=out_of_memory_at,
    )


def round_size(size_bytes: int) -> int:
    """Returns the bytes that an allocation counts for."""
    return max(MIN_BLOCK_BYTES, -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES)


def segment_size(rounded_bytes: int) -> int:
    """Returns the bytes asked of the driver for an allocation that no cached block can serve."""
    if rounded_bytes <= SMALL_MAX_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded_bytes < OWN_SEGMENT_MIN_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-rounded_bytes // OWN_SEGMENT_STEP_BYTES) * OWN_SEGMENT_STEP_BYTES


class CachingAllocator:
    """One device and one stream; `event` is the index that peaks are noted with."""

    def __init__(self, settings: AllocatorSettings):
        expandable = settings.expandable_segments
        self.expandable = expandable
        self.capacity_bytes, self.allowed_bytes = settings.capacity_bytes, settings.allowed_bytes
        total = settings.device_total_bytes
        self.address_space_bytes = ENDLESS_BYTES if total is None else total + total // 8
        # should_split: the large pool serves no request up to 1 MiB, so a smaller rest stays with its block, unless the
        # segment can grow behind it.
        self.small = Pool(SMALL_SEGMENT_BYTES, MIN_BLOCK_BYTES)
        self.large = Pool(LARGE_SEGMENT_BYTES, MIN_BLOCK_BYTES if expandable else SMALL_MAX_BYTES + MIN_BLOCK_BYTES)
        self.common = self.small, self.large
        self.of_graphs = tuple(Pool(pool.page_bytes, pool.min_rest_bytes) for pool in self.common)
        self.driver, self.next_expandable_address = AddressesWithCode(), 0
        self.event = self.num_retries = 0
        self.allocated_bytes = self.peak_allocated_bytes = self.peak_allocated_at = 0
        self.reserved_bytes = self.peak_reserved_bytes = self.peak_reserved_at = 0

    def allocate(self, size_bytes: int) -> Block | None:
        """Returns the block that serves a request, None when there is no memory for it."""
        size = round_size(size_bytes)
        pool = self.small if size <= SMALL_MAX_BYTES else self.large
        block = self._take_cached(pool, size)
        if block is None:
            block = self._take_new(pool, size)
            if block is None:
                return None
        if block.size - size >= pool.min_rest_bytes:
            pool.add(block.cut(size))
        block.allocated = True
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes, self.peak_allocated_at = self.allocated_bytes, self.event
        return block

    def free(self, block: Block):
        """Gives a block back to its pool."""
        self.allocated_bytes -= block.size
        block.allocated = False
        block.pool.absorb_neighbours(block)
        block.pool.add(block)

    def told(self, event: Event):
        """Does what an event says that neither allocates nor frees."""
        if event == EMPTY_CACHE:
            self.empty_cache()
        elif event == RESET_PEAK:
            self.reset_peak()
        else:
            self.small, self.large = self.of_graphs if event == ENTER_POOL else self.common

    def empty_cache(self):
        """Gives back to the driver what no block is using: whole segments, or whole pages of expandable ones.

        What graphs have taken stays theirs.
        """
        for pool in reversed(self.common):
            for _, _, block in list(pool.free):  # unmapping changes the list itself
                if self.expandable:
                    self._unmap(pool, block)
                elif block.prev is None and block.next is None:  # cudaFree takes whole segments
                    pool.remove(block)
                    self.reserved_bytes -= block.size
                    self.driver.give_back(block.address, block.size)

    def reset_peak(self):
        """Starts both peaks anew from what is held now."""
        self.peak_allocated_bytes, self.peak_allocated_at = self.allocated_bytes, self.event
        self.peak_reserved_bytes, self.peak_reserved_at = self.reserved_bytes, self.event

    def _take_cached(self, pool: Pool, size: int) -> Block | None:
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self.expandable:
            # A block that can still grow counts as large as it can grow to, so that it is touched last.
            while index + 1 < len(free) and free[index + 1][2].expandable_size() < free[index][2].expandable_size():
                index += 1
        return free.pop(index)[2]

    def _take_new(self, pool: Pool, size: int) -> Block | None:
        block = self._try_new(pool, size)
        if block is None:
            self.empty_cache()
            self.num_retries += 1
            block = self._try_new(pool, size)
        return block

    def _try_new(self, pool: Pool, size: int) -> Block | None:
        segment = segment_size(size)
        # The limit is checked before an expandable segment knows how little of the request it has to map.
        if self.allowed_bytes is not None and self.reserved_bytes + segment > self.allowed_bytes:
            return None
        if self.expandable:
            return self._expand(pool, size)
        if not self._reserve(segment):
            return None
        return Block(pool, self.driver.take(segment), segment)

    def _reserve(self, size: int) -> bool:
        if self.capacity_bytes is not None and self.reserved_bytes + size > self.capacity_bytes:
            return False
        self.reserved_bytes += size
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes, self.peak_reserved_at = self.reserved_bytes, self.event
        return True

    def _expand(self, pool: Pool, size: int) -> Block | None:
        if size > self.address_space_bytes:
            return None
        block = self._lowest_room(pool, size)
        if not block.mapped and not self._map(pool, block, min(block.size, size)):
            return None
        while block.size < size:
            # What an earlier turn mapped stays mapped, also when the card is full now.
            unmapped = block.next
            if not self._map(pool, unmapped, min(size - block.size, unmapped.size)):
                return None
            block = unmapped
        pool.remove(block)
        return block

    def _lowest_room(self, pool: Pool, size: int) -> Block:
        for _, unmapped in pool.unmapped:
            # The end of what is mapped may be free: both together are the room.
            start = unmapped.prev if unmapped.prev is not None and not unmapped.prev.allocated else unmapped
            room, block = 0, start
            while room < size and block is not None and not block.allocated:
                room, block = room + block.size, block.next
            if room >= size:
                return start
        pages = -(-self.address_space_bytes // pool.page_bytes)
        # On a page boundary of the large pool, which is one of the small pool too.
        address = self.next_expandable_address
        self.next_expandable_address += -(-pages * pool.page_bytes // LARGE_SEGMENT_BYTES) * LARGE_SEGMENT_BYTES
        segment = Block(pool, address, pages * pool.page_bytes, mapped=False)
        pool.add(segment)
        return segment

    def _map(self, pool: Pool, block: Block, size: int) -> bool:
        # Physical memory comes in whole pages; what the request leaves of them is a free block.
        mapped_size = -(-size // pool.page_bytes) * pool.page_bytes
        if not self._reserve(mapped_size):
            return False
        pool.remove(block)
        if mapped_size < block.size:
            pool.add(block.cut(mapped_size))
        block.mapped = True
        pool.absorb_neighbours(block)
        pool.add(block)
        return True

    def _unmap(self, pool: Pool, block: Block):
        # A page that a neighbour reaches into stays.
        page = pool.page_bytes
        begin = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if begin >= end:
            return
        pool.remove(block)
        if begin > block.address:
            head, block = block, block.cut(begin - block.address)
            pool.add(head)
        if end < block.address + block.size:
            pool.add(block.cut(end - begin))
        block.mapped = False
        self.reserved_bytes -= end - begin
        pool.absorb_neighbours(block)
        # A segment with nothing mapped in it is given up, its addresses too (release_expandable_segment).
        if block.prev is not None or block.next is not None:
            pool.add(block)
