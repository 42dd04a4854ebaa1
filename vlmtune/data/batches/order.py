"""The order in which a run takes its rows."""

import numpy as np
import torch
from torch.utils.data import Sampler

from vlmtune.compat.trainer import GET_LENGTH_GROUPED_INDICES
from vlmtune.data.batches.packs import largest_packs


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

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = GET_LENGTH_GROUPED_INDICES(self.lengths, self.rows_per_step, generator=generator)
        return iter(self._largest_pack_first(rows) if self.pack_tokens else rows)

    def _largest_pack_first(self, rows: list[int]) -> list[int]:
        """Return the rows with the whole step that has the largest pack in the first one's place, and that in its."""
        size = self.rows_per_step
        steps_SR = np.array(rows[: len(rows) // size * size], int).reshape(-1, size)
        if not len(steps_SR):
            return rows
        largest = int(largest_packs(np.asarray(self.lengths)[steps_SR], self.pack_tokens).argmax())
        steps_SR[[0, largest]] = steps_SR[[largest, 0]]
        return [*steps_SR.ravel().tolist(), *rows[steps_SR.size :]]
