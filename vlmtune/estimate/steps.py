"""The first optimizer steps of a run, with the rows and the order in which training takes them."""

from collections.abc import Callable, Sequence
from itertools import count, islice

from vlmtune.data.collate import WHERE, Collator
from vlmtune.engine.trainer import LengthGroupedOrder
from vlmtune.estimate.simulate import Batch, Steps
from vlmtune.plan import RunPlan

NUM_STEPS = 3
"""The longest row comes first; optimizer states exist from the second step on; the third has another order of rows."""


def first_steps(
    plan: RunPlan, rows: Sequence, lengths: list[int], collator: Collator, num_steps: int = NUM_STEPS
) -> Steps:
    """Return the micro-batches of the first optimizer steps.

    Args:
        rows: the data set; it gives an encoded row by its number.
        lengths: tokens of each row.
    """
    num_steps = min(num_steps, plan.max_steps or num_steps)
    batch_of = _once(rows, collator)
    return [[batch_of(batch) for batch in step] for step in islice(_order(plan, lengths), num_steps)]


def sampled_steps(plan: RunPlan, rows: Sequence, lengths: list[int], collator: Collator) -> Steps:
    """Return the first steps with the first and the last of each one's batches: those between differ less."""
    batch_of = _once(rows, collator)
    steps = islice(_order(plan, lengths), min(NUM_STEPS, plan.max_steps or NUM_STEPS))
    return [[batch_of(batch) for batch in (step if len(step) <= 2 else (step[0], step[-1]))] for step in steps]


def two_lengths(plan: RunPlan, longest: Batch, other: Batch) -> Steps:
    """Return the fewest steps that show what batches of different lengths do to each other's memory."""
    return [[longest, other]] if plan.gradient_accumulation_steps > 1 else [[longest], [other]]


def _order(plan: RunPlan, lengths: list[int]):
    """Yield the row numbers of one optimizer step after the other, epoch after epoch."""
    size, accumulation = plan.batch_size, plan.gradient_accumulation_steps
    order = LengthGroupedOrder(lengths, size * accumulation, plan.seed)
    for epoch in count():
        order.set_epoch(epoch)
        batches = _pieces(list(order), size)
        yield from _pieces(batches, accumulation)


def _pieces(values: list, size: int) -> list[list]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _once(rows: Sequence, collator: Collator) -> Callable[[list[int]], dict]:
    """Return the maker of a batch from row numbers; a row is encoded once."""
    encoded: dict[int, object] = {}

    def batch_of(numbers: list[int]) -> dict:
        for number in numbers:
            if number not in encoded:
                encoded[number] = rows[number]
        batch = collator([encoded[number] for number in numbers])
        return {key: value for key, value in batch.items() if key != WHERE}

    return batch_of
