"""Which optimizer steps of a run are simulated: rows in the order in which the trainer takes them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

from vlmtune.data.collate import WHERE, Collator
from vlmtune.engine.trainer import LengthGroupedOrder
from vlmtune.estimate.simulate.simulation import Batch, Steps
from vlmtune.plan.length import num_steps, steps_per_epoch
from vlmtune.plan.types import RunPlan

ROWS_LOOKED_AT = 200_000
"""In long runs the steps after that many rows are not looked at: the longest rows have met each other by then."""
FEW_BATCHES = 12
"""A run of no more is simulated whole."""
FIRST_BATCHES = 24
"""So many are simulated in the order of the run where segments do not grow: what batches of other lengths leave cut up
adds up, in measured runs until the 8th to 20th batch."""
RowBatches = list[list[list[int]]]
"""Optimizer steps in their order, each with its micro-batches, each with the numbers of its rows."""


def steps_of_run(plan: RunPlan, lengths: list[int]) -> RowBatches:
    """Return the optimizer steps of a run over rows of these lengths in tokens; of long runs those looked at."""
    size, accumulation = plan.batch_size, plan.gradient_accumulation_steps
    per_epoch = steps_per_epoch(len(lengths), size, accumulation)
    order = LengthGroupedOrder(lengths, size * accumulation, plan.seed)

    def endless() -> Iterator[list[list[int]]]:
        for epoch in count():
            order.set_epoch(epoch)
            yield from _pieces(_pieces(list(order), size), accumulation)

    # Two epochs at least: each begins with the longest row, and at the second the optimizer's states exist.
    return list(
        islice(
            endless(), min(num_steps(plan, len(lengths)), max(2 * per_epoch, ROWS_LOOKED_AT // (size * accumulation)))
        )
    )


def telling_steps(plan: RunPlan, lengths: list[int], expandable_segments: bool) -> RowBatches:
    """Return the steps by which the memory of a whole run is known: a short run's own, else those that need most.

    The first; then, once the optimizer's states exist, the one with the longest batch, and the one with the longest
    batch behind another, which finds gradients there. Of each the first batch, the longest behind it and the last.
    What the other steps leave unused is taken from `fewest_steps`. Without expandable segments the run's first batches
    come before all that.
    """
    steps = steps_of_run(plan, lengths)
    if sum(map(len, steps)) <= (FEW_BATCHES if expandable_segments else FIRST_BATCHES):
        return steps
    most = _steps_that_need_most(plan, lengths, steps)
    return most if expandable_segments else [*_first_batches(steps), *most]


def _steps_that_need_most(plan: RunPlan, lengths: list[int], steps: RowBatches) -> RowBatches:
    size, later = _sizes_of(lengths), range(1, len(steps))
    longest = max(later, key=lambda place: max(map(size, steps[place])), default=0)
    accumulating = max(later, key=lambda place: max(map(size, steps[place][1:]), default=0), default=0)
    return [_thinned(steps[place], size) for place in sorted({0, longest, accumulating})] + fewest_steps(plan, lengths)


def fewest_steps(plan: RunPlan, lengths: list[int]) -> RowBatches:
    """Return one step, to be repeated once the optimizer's states exist, that needs what a whole run does.

    Its batches need not meet in the run: the longest, the longest that ever finds gradients there, and the shortest,
    which leaves the most unused of what the others took. Where a step has one batch, as many steps.
    """
    size, steps = _sizes_of(lengths), steps_of_run(plan, lengths)
    batches = sorted((batch for step in steps for batch in step), key=size)
    accumulating = max((batch for step in steps for batch in step[1:]), key=size, default=None)
    if accumulating is None:
        # No batch finds gradients: what one leaves to the next is unused memory, by its length.
        return [[batches[-1]], [batches[len(batches) // 2]], [batches[0]]]
    return [[batches[-1], accumulating, batches[0]]]


def collated(steps: RowBatches, rows: Sequence, collator: Collator) -> Steps:
    """Return the batches of tensors; `rows` gives an encoded row by its number and is asked once for each."""
    encoded = {number: rows[number] for number in {row for step in steps for batch in step for row in batch}}

    def tensors(batch: list[int]) -> Batch:
        made = collator([encoded[number] for number in batch])
        return {name: tensor for name, tensor in made.items() if name != WHERE}

    return [[tensors(batch) for batch in step] for step in steps]


def _pieces(values: list, size: int) -> list[list]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _sizes_of(lengths: list[int]) -> Callable[[list[int]], int]:
    """Return what gives the length to which the rows of a batch are padded."""
    return lambda batch: max(lengths[row] for row in batch)


def _first_batches(steps: RowBatches) -> RowBatches:
    """Return the first steps, the last of them cut short."""
    first: RowBatches = []
    for step in steps:
        left = FIRST_BATCHES - sum(map(len, first))
        if left <= 0:
            break
        first.append(step[:left])
    return first


def _thinned(step: list[list[int]], size: Callable[[list[int]], int]) -> list[list[int]]:
    # Once gradients are there they do not grow: of the batches that find them the longest needs most.
    accumulating = max(range(1, len(step)), key=lambda place: size(step[place]), default=0)
    return [step[place] for place in sorted({0, accumulating, len(step) - 1})]
