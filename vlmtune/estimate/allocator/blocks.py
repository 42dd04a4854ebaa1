"""The blocks that a caching allocator cuts its segments into, and the pools that keep the free ones."""

from bisect import bisect_left, insort


class Block:
    """A stretch of addresses of one segment, linked to the stretches before and after it."""

    __slots__ = ("address", "allocated", "mapped", "next", "pool", "prev", "size")

    def __init__(self, pool: "Pool", address: int, size: int, mapped: bool = True):
        self.pool, self.address, self.size, self.mapped = pool, address, size, mapped
        self.allocated = False
        self.prev: Block | None = None
        self.next: Block | None = None

    def cut(self, size: int) -> "Block":
        """Shortens the block to `size` and returns the rest, linked behind it."""
        rest = Block(self.pool, self.address + size, self.size - size, self.mapped)
        rest.prev, rest.next = self, self.next
        if rest.next is not None:
            rest.next.prev = rest
        self.next, self.size = rest, size
        return rest

    def expandable_size(self) -> int:
        """Returns the size that this free block can grow to."""
        return self.size + (self.next.size if self.next is not None and not self.next.mapped else 0)


class Pool:
    """The free blocks of one pool by (size, address), and the unmapped stretches of its segments by address."""

    def __init__(self, page_bytes: int, min_rest_bytes: int):
        self.page_bytes, self.min_rest_bytes = page_bytes, min_rest_bytes
        # No two blocks begin at one address, so that sorting never comes to compare the blocks themselves.
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []

    def add(self, block: Block):
        if block.mapped:
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))

    def remove(self, block: Block):
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def absorb_neighbours(self, block: Block):
        """Merges the free neighbours into a block that is in neither list; mapped and unmapped do not merge."""
        before, after = block.prev, block.next
        if before is not None and not before.allocated and before.mapped is block.mapped:
            self.remove(before)
            block.address, block.size, block.prev = before.address, before.size + block.size, before.prev
            if block.prev is not None:
                block.prev.next = block
        if after is not None and not after.allocated and after.mapped is block.mapped:
            self.remove(after)
            block.size, block.next = block.size + after.size, after.next
            if block.next is not None:
                block.next.prev = block
