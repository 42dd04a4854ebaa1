"""The simulated steps take rows in the trainer's own order."""

import dataclasses

import pytest
import torch
from tiny.rows import TinyModel

from vlmtune.data.collate import WHERE
from vlmtune.engine.trainer import LengthGroupedOrder
from vlmtune.estimate.steps import first_steps

LENGTHS = [3, 9, 5, 7, 4]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return TinyModel("llava", tmp_path_factory.mktemp("model")).plan


def collated(rows: list[int]) -> dict:
    return {"labels": torch.tensor(rows), WHERE: [str(row) for row in rows]}


def rows_of(plan, num_steps: int, **changes) -> list[list[list[int]]]:
    changed = dataclasses.replace(plan, **changes)
    steps = first_steps(changed, range(5), LENGTHS, collated, num_steps)
    return [[batch["labels"].tolist() for batch in step] for step in steps]


def epoch(plan, number: int, rows_per_step: int) -> list[int]:
    order = LengthGroupedOrder(LENGTHS, rows_per_step, plan.seed)
    order.set_epoch(number)
    return list(order)


def test_steps_end_with_the_epoch(plan):
    steps = rows_of(plan, 4, batch_size=1, gradient_accumulation_steps=2, max_steps=None)
    assert [len(step) for step in steps] == [2, 2, 1, 2]
    flat = [row for step in steps for batch in step for row in batch]
    assert flat == epoch(plan, 0, 2) + epoch(plan, 1, 2)[:2]
    assert flat[0] == LENGTHS.index(9)


def test_a_batch_has_as_many_rows_as_the_plan_says(plan):
    steps = rows_of(plan, 2, batch_size=2, gradient_accumulation_steps=1, max_steps=None)
    order = epoch(plan, 0, 2)
    assert steps == [[order[:2]], [order[2:4]]]


def test_no_more_steps_than_the_plan_has(plan):
    assert len(rows_of(plan, 3, batch_size=1, gradient_accumulation_steps=1, max_steps=2)) == 2


def test_names_of_rows_are_no_tensors(plan):
    steps = first_steps(plan, range(5), LENGTHS, collated, 1)
    assert all(set(batch) == {"labels"} for batch in steps[0])
