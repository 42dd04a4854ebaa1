"""The order in which a run takes its rows, and which of them each of its processes takes."""

from collections.abc import Iterator
from math import ceil

import numpy as np
import torch
from torch.utils.data import Sampler

from vlmtune.compat.trainer import GET_LENGTH_GROUPED_INDICES
from vlmtune.data.batches.packs import largest_packs, packs_of
from vlmtune.data.sources.takes import Takes
from vlmtune.plan.types import RunPlan

NO_ROW = -1
"""In place of a row where a process has fewer than others in a step."""


class LengthGroupedOrder(Sampler[int]):
    """Row numbers in batches of similar length, the longest row first, another order each epoch.

    Longest first, of packs the step with the largest: if anything runs out of memory, it does so in the first minute.
    The order depends on seed and epoch alone, so a resumed run sees the same one.
    """

    def __init__(self, lengths: list[int], rows_per_step: int, seed: int, pack_tokens: int = 0) -> None:
        self.lengths = lengths
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.pack_tokens = pack_tokens
        self.epoch = 0
        self.takes: Takes | None = None
        """The rows of an epoch, numbered as there, where they are not each one once."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def length_of(self, number: int) -> int:
        """Return the tokens of a row, whichever take of it this is."""
        return self.lengths[number % len(self.lengths)]

    def __len__(self) -> int:
        return len(self.lengths) if self.takes is None else len(self.takes)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        taken = range(len(self)) if self.takes is None else [*self.takes.of_epoch(self.epoch)]
        lengths = [self.length_of(number) for number in taken]
        places = GET_LENGTH_GROUPED_INDICES(lengths, self.rows_per_step, generator=generator)
        places = self._largest_pack_first(places, lengths) if self.pack_tokens else places
        return iter([taken[place] for place in places])

    def _largest_pack_first(self, rows: list[int], lengths: list[int]) -> list[int]:
        """Return the rows with the whole step that has the largest pack in the first one's place, and that in its."""
        size = self.rows_per_step
        steps_SR = np.array(rows[: len(rows) // size * size], int).reshape(-1, size)
        if not len(steps_SR):
            return rows
        largest = int(largest_packs(np.asarray(lengths)[steps_SR], self.pack_tokens).argmax())
        steps_SR[[0, largest]] = steps_SR[[largest, 0]]
        return [*steps_SR.ravel().tolist(), *rows[steps_SR.size :]]


class DealtRows(Sampler[int]):
    """The rows of one process, as many places in each step as any other has: gaps are `NO_ROW`.

    A step has the same rows however many processes there are. Its micro-batches, or packs, go round them; so the
    first process has the longest row first, and none has a longer one.
    """

    def __init__(self, order: LengthGroupedOrder, plan: RunPlan, number: int) -> None:
        """`number` is the process's, from 0 on."""
        self.order = order
        self.plan = plan
        self.number = number

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, left = divmod(len(self.order), self.plan.rows_per_step)
        return whole * self._places(self.plan.rows_per_step) + self._places(left)

    def __iter__(self) -> Iterator[int]:
        rows, size = list(self.order), self.plan.rows_per_step
        for start in range(0, len(rows), size):
            step = rows[start : start + size]
            mine = [row for batch in self._batches(step)[self.number :: self.plan.num_gpus] for row in batch]
            yield from mine
            yield from [NO_ROW] * (self._places(len(step)) - len(mine))

    def _places(self, num_rows: int) -> int:
        """Return the places that each process has for a step of so many rows."""
        plan = self.plan
        if plan.num_gpus == 1 or plan.pack_tokens:  # a process's packs are those of its rows
            return num_rows
        return ceil(ceil(num_rows / plan.batch_size) / plan.num_gpus) * plan.batch_size

    def _batches(self, rows: list[int]) -> list[list[int]]:
        """Return a step's micro-batches, or its packs."""
        if self.plan.pack_tokens and self.plan.num_gpus > 1:
            packs = packs_of([self.order.length_of(row) for row in rows], self.plan.pack_tokens)
            return [[rows[place] for place in pack] for pack in packs]
        size = self.plan.batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]
