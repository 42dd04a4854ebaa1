"""The order in which a run takes its rows."""

import numpy as np
import torch
from torch.utils.data import Sampler

from vlmtune.compat.trainer import GET_LENGTH_GROUPED_INDICES
from vlmtune.data.batches.packs import largest_packs
from vlmtune.data.sources.takes import Takes


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

    def __len__(self) -> int:
        return len(self.lengths) if self.takes is None else len(self.takes)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        taken = range(len(self)) if self.takes is None else [*self.takes.of_epoch(self.epoch)]
        lengths = [self.lengths[number % len(self.lengths)] for number in taken]
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
