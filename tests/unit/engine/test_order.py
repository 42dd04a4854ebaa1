"""The order of the rows: longest first, similar lengths together, the same after a resume, every row once."""

from dataclasses import replace

import pytest

from vlmtune.data.batches.order import NO_ROW, DealtRows, LengthGroupedOrder

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


@pytest.fixture
def dealt(models):
    """A function that returns the rows of each process, in places of a step."""

    def deal(num_gpus, batch_size=1, accumulation=8, pack_tokens=0, epoch=1):
        sized = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        plan = replace(models("llava").plan, num_gpus=num_gpus, pack_tokens=pack_tokens, **sized)
        rows = LengthGroupedOrder(LENGTHS, plan.rows_per_step, plan.seed, pack_tokens)
        samplers = [DealtRows(rows, plan, number) for number in range(num_gpus)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        places = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(one) for one in places]
        size = plan.rows_per_step if pack_tokens else plan.passes_per_step * batch_size
        return [_steps(one, size) for one in places], _steps(list(rows), plan.rows_per_step)

    return deal


@pytest.mark.parametrize("how", [{}, {"batch_size": 2, "accumulation": 4}, {"pack_tokens": 200}])
@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4])
def test_processes_share_the_rows_of_each_step(dealt, num_gpus, how):
    shares, steps = dealt(num_gpus, **how)
    assert {len(share) for share in shares} == {len(steps)}, "or one waits for the others"
    for step, *of_processes in zip(steps, *shares, strict=True):
        assert {len(one) for one in of_processes} == {len(of_processes[0])}
        given = [row for one in of_processes for row in one if row != NO_ROW]
        assert sorted(given) == sorted(step)
        if "pack_tokens" not in how and len(step) == 8:  # of packs there may be fewer than processes
            assert all(any(row != NO_ROW for row in one) for one in of_processes)
    assert shares[0][0][0] == LONGEST


def test_alone_a_process_takes_the_rows_in_their_order(dealt):
    [share], steps = dealt(1, batch_size=2, accumulation=4)
    assert share == steps


def test_gaps_are_whole_micro_batches_but_for_the_last_rows(dealt):
    shares, _ = dealt(3, batch_size=2, accumulation=4)
    assert [[row == NO_ROW for row in share[0]] for share in shares] == [
        [False] * 4,
        [False, False, True, True],
        [False, False, True, True],
    ]
    assert [sum(row != NO_ROW for row in share[-1]) for share in shares] == [2, 2, 1]
