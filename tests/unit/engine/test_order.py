"""The order of the rows: longest first, similar lengths together, the same after a resume, every row once."""

import pytest

from vlmtune.data.batches.order import LengthGroupedOrder

LENGTHS = [(37 * index) % 101 + 5 for index in range(101)]
LONGEST = LENGTHS.index(max(LENGTHS))


def order(rows_per_step=8, seed=42, epoch=0, lengths=LENGTHS):
    sampler = LengthGroupedOrder(lengths, rows_per_step, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("rows_per_step", [1, 4, 8, 32, 500])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_row_once_and_the_longest_first(rows_per_step, epoch):
    rows = order(rows_per_step, epoch=epoch)
    assert sorted(rows) == list(range(len(LENGTHS)))
    assert rows[0] == LONGEST


def test_one_row():
    assert order(lengths=[7]) == [0]


def test_the_order_depends_on_seed_and_epoch_alone():
    assert order() == order()
    assert order(epoch=1) == order(epoch=1)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (1, 50) for epoch in (0, 1, 2)}) == 6


def test_steps_hold_rows_of_similar_length():
    rows = order()
    spread = [max(step) - min(step) for step in _steps([LENGTHS[row] for row in rows], 8)]
    assert sum(spread) / len(spread) < 40 < 80 < max(LENGTHS) - min(LENGTHS)


def _steps(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]
