"""The simulated steps take rows in the trainer's own order."""

import dataclasses
import random
from itertools import count
from math import ceil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.rows import TinyModel

from vlmtune.data.batches.order import NO_ROW, DealtRows, LengthGroupedOrder
from vlmtune.data.batches.packs import packs_of
from vlmtune.data.collate import WHERE
from vlmtune.data.reading.data_files import DataFile, DataFiles, Source
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.sources.takes import Takes
from vlmtune.data.types import Sample
from vlmtune.estimate.simulate import steps as module
from vlmtune.estimate.simulate.steps import (
    FIRST_BATCHES,
    Learned,
    collated,
    fewest_steps,
    made_up_packs,
    sizes_of,
    sizes_of_run,
    steps_of_run,
    telling_steps,
)

LENGTHS = [3, 9, 5, 7, 4]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return TinyModel("llava", tmp_path_factory.mktemp("model")).plan


def changed(plan, **changes):
    return dataclasses.replace(plan, **{"batch_size": 1, "max_steps": None, "num_epochs": 3.0, **changes})


def epoch(plan, number: int, rows_per_step: int) -> list[int]:
    order = LengthGroupedOrder(LENGTHS, rows_per_step, plan.seed)
    order.set_epoch(number)
    return list(order)


def test_steps_end_with_the_epoch(plan):
    steps = steps_of_run(changed(plan, gradient_accumulation_steps=2), LENGTHS)[:4]
    assert [len(step) for step in steps] == [2, 2, 1, 2]
    assert sum(sum(steps, []), []) == epoch(plan, 0, 2) + epoch(plan, 1, 2)[:2]
    assert steps[0][0] == [LENGTHS.index(9)]


def test_a_batch_has_as_many_rows_as_the_plan_says(plan):
    steps = steps_of_run(changed(plan, batch_size=2, gradient_accumulation_steps=1), LENGTHS)[:2]
    order = epoch(plan, 0, 2)
    assert steps == [[order[:2]], [order[2:4]]]


@pytest.mark.parametrize(
    ("changes", "num_steps"),
    [({"max_steps": 2}, 2), ({"num_epochs": 0.5}, 2), ({"num_epochs": 2.0}, 6), ({"max_steps": 8}, 8)],
)
def test_no_more_steps_than_the_run_has(changes, num_steps, plan):
    assert len(steps_of_run(changed(plan, gradient_accumulation_steps=2, **changes), LENGTHS)) == num_steps


def test_the_steps_of_a_run_that_need_most_are_among_the_telling_ones(plan):
    lengths = [random.Random(0).randint(10, 99) for _ in range(60)] + [500, 400, 399]
    run = changed(plan, gradient_accumulation_steps=4)
    every = steps_of_run(run, lengths)
    told = telling_steps(run, lengths, True)
    sizes = [[lengths[row] for (row,) in step] for step in told]
    assert (sizes[0][0], told[0][0]) == (500, every[0][0])
    assert len(told) <= 4 and all(len(step) <= 3 for step in told)
    *told, together = told
    assert [together] == fewest_steps(run, lengths)
    *sizes, _ = sizes
    # The longest comes back in the second epoch, when the optimizer's states exist.
    assert max(step[0] for step in sizes[1:]) == 500
    accumulating = max(lengths[row] for step in every[1:] for (row,) in step[1:])
    assert max(length for step in sizes[1:] for length in step[1:]) == accumulating
    assert all(any(set(map(tuple, step)) <= set(map(tuple, one)) for one in every) for step in told)


def test_where_segments_do_not_grow_the_first_batches_of_the_run_come_first(plan):
    lengths = [random.Random(0).randint(10, 99) for _ in range(60)]
    run = changed(plan, gradient_accumulation_steps=5)
    every, few = steps_of_run(run, lengths), telling_steps(run, lengths, True)
    told = telling_steps(run, lengths, False)
    *whole, last = told[: -len(few)]
    assert (whole, last, told[-len(few) :]) == (every[:4], every[4][:4], few)
    assert sum(map(len, [*whole, last])) == FIRST_BATCHES == 24
    short = changed(plan, gradient_accumulation_steps=2, max_steps=12)
    assert telling_steps(short, lengths, False) == steps_of_run(short, lengths) != telling_steps(short, lengths, True)


def test_in_one_epoch_the_longest_does_not_come_back(plan):
    lengths = [*range(10, 40), 500]
    *told, _ = telling_steps(changed(plan, gradient_accumulation_steps=4, num_epochs=1.0), lengths, True)
    assert [lengths.index(500) in sum(step, []) for step in told] == [True] + [False] * (len(told) - 1)


def test_a_short_run_is_taken_whole(plan):
    run = changed(plan, gradient_accumulation_steps=3, num_epochs=2.0)
    assert telling_steps(run, LENGTHS, True) == steps_of_run(run, LENGTHS)


def test_a_run_of_one_step(plan):
    run = changed(plan, gradient_accumulation_steps=8)
    assert telling_steps(dataclasses.replace(run, max_steps=1), [5], True) == [[[0]]]
    assert fewest_steps(dataclasses.replace(run, max_steps=1), [5]) == [[[0]], [[0]], [[0]]]


def test_the_fewest_steps_hold_the_longest_batch_behind_another(plan):
    together = fewest_steps(changed(plan, gradient_accumulation_steps=5), LENGTHS)
    assert [[LENGTHS[row] for (row,) in step] for step in together] == [[9, 7, 3]]
    alone = fewest_steps(changed(plan, gradient_accumulation_steps=1), LENGTHS)
    assert [[LENGTHS[row] for (row,) in step] for step in alone] == [[9], [5], [3]]


@pytest.mark.parametrize("lengths", [LENGTHS, [(37 * number) % 61 + 5 for number in range(30)]])
def test_packs_are_those_of_the_trainer(plan, lengths):
    """The rows of a data loader's batch are those of a step; the collator divides them."""
    run = changed(plan, gradient_accumulation_steps=4, pack_tokens=70, num_epochs=2.0)
    order, steps = LengthGroupedOrder(lengths, 4, plan.seed, 70), []
    for number in (0, 1):
        order.set_epoch(number)
        for rows in pieces(list(order), 4):
            packs = packs_of([lengths[row] for row in rows], 70)
            steps.append([[rows[place] for place in pack] for pack in packs])
    assert steps_of_run(run, lengths) == steps
    sizes = [sum(lengths[row] for row in pack) for step in telling_steps(run, lengths, True) for pack in step]
    assert max(sizes) == max(sum(lengths[row] for row in pack) for step in steps for pack in step)


def test_made_up_packs_are_full_of_the_longest_and_of_the_shortest_rows(plan):
    run = changed(plan, gradient_accumulation_steps=16, pack_tokens=100)
    [[longest, shortest, one]] = made_up_packs(run, [40, 35, 25, 18], fast=True)
    assert (longest, shortest, one) == ([0, 0, 3], [3] * 5, [3])
    few = changed(plan, gradient_accumulation_steps=2, pack_tokens=100)
    assert made_up_packs(few, [40, 35, 25, 18], fast=False) == [[[0, 0]], [[3, 3]], [[3]], [[0, 0]]]


def pieces(values: list, size: int) -> list[list]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def listed(plan, lengths: list[int], rows_looked_at: int) -> list[list[list[int]]]:
    """Every step that is looked at, one after the other."""
    rows_per_step = plan.batch_size * plan.gradient_accumulation_steps
    order, steps = LengthGroupedOrder(lengths, rows_per_step, plan.seed), []
    for number in count():
        order.set_epoch(number)
        steps += pieces(pieces(list(order), plan.batch_size), plan.gradient_accumulation_steps)
        if number == 0:
            num_steps = plan.max_steps or ceil(plan.num_epochs * len(steps))
            num_steps = min(num_steps, max(2 * len(steps), rows_looked_at // rows_per_step))
        if len(steps) >= num_steps:
            return steps[:num_steps]


def chosen(steps: list[list[list[int]]], lengths: list[int], expandable: bool) -> tuple[list, list]:
    """The telling and the fewest of some steps; of equals the first."""

    def size(batch: list[int]) -> int:
        return max(lengths[row] for row in batch)

    def largest(batches: list[list[int]]) -> int:
        return max(map(size, batches), default=0)

    by_size = sorted(sum(steps, []), key=size)
    later = [batch for step in steps for batch in step[1:]]
    alone = [[by_size[-1]], [by_size[len(by_size) // 2]], [by_size[0]]]
    fewest = [[by_size[-1], max(later, key=size), by_size[0]]] if later else alone
    if len(by_size) <= (module.FEW_BATCHES if expandable else module.FIRST_BATCHES):
        return steps, fewest
    behind_first = range(1, len(steps))
    places = {
        0,
        max(behind_first, key=lambda place: largest(steps[place]), default=0),
        max(behind_first, key=lambda place: largest(steps[place][1:]), default=0),
    }
    told, num_left = [], 0 if expandable else module.FIRST_BATCHES
    for step in steps:
        told += [step[:num_left]] * (num_left > 0)
        num_left -= len(step)
    for step in (steps[place] for place in sorted(places)):
        middle = max(range(1, len(step)), key=lambda place: size(step[place]), default=0)
        told.append([step[place] for place in sorted({0, middle, len(step) - 1})])
    return told + fewest, fewest


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=80),
    changes=st.fixed_dictionaries(
        {
            "batch_size": st.integers(1, 5),
            "gradient_accumulation_steps": st.integers(1, 6),
            "num_epochs": st.sampled_from([0.3, 1.0, 1.5, 2.0, 4.0]),
            "max_steps": st.none() | st.integers(1, 40),
        }
    ),
    limits=st.fixed_dictionaries(
        {
            "ROWS_LOOKED_AT": st.sampled_from([0, 50, 200_000]),
            "FEW_BATCHES": st.sampled_from([2, 12]),
            "FIRST_BATCHES": st.sampled_from([5, 24]),
        }
    ),
)
@settings(max_examples=100, deadline=None)
def test_the_steps_are_those_of_plain_lists(lengths, changes, limits, plan):
    run = changed(plan, **changes)
    steps = listed(run, lengths, limits["ROWS_LOOKED_AT"])
    with patch.multiple(module, **limits):
        assert steps_of_run(run, lengths) == steps
        for expandable in (True, False):
            told = telling_steps(run, lengths, expandable)
            assert (told, fewest_steps(run, lengths)) == chosen(steps, lengths, expandable)


@pytest.mark.parametrize("pack_tokens", [0, 60])
def test_what_each_gpu_has_is_what_it_is_dealt(pack_tokens, plan):
    lengths = [random.Random(0).randint(5, 30) for _ in range(31)]
    several = {"num_gpus": 3, "gradient_accumulation_steps": 8, "pack_tokens": pack_tokens, "num_epochs": 2.0}
    run = changed(plan, **several)
    runs = module._runs(run, lengths, None)
    assert len(runs) == 3
    for number, found in enumerate(runs):
        dealt = DealtRows(LengthGroupedOrder(lengths, 8, plan.seed, pack_tokens), run, number)
        rows = []
        for of_epoch in (0, 1):
            dealt.set_epoch(of_epoch)
            rows += [row for row in dealt if row != NO_ROW]
        assert sum(sum(found.all_of_it(), []), []) == rows


@given(
    rows=st.lists(st.tuples(st.integers(20, 60), st.integers(1, 20)), min_size=12, max_size=60),
    num_gpus=st.integers(1, 3),
    max_steps=st.sampled_from([None, 1, 6]),
    expandable=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_batch_of_any_gpu_needs_more_than_those_looked_at(rows, num_gpus, max_steps, expandable, plan):
    """Need is that of tokens and of the logits of labels, which are never more than a chunk of them."""
    lengths, labels = map(list, zip(*rows, strict=True))
    learned = Learned(np.array(labels), 5.0)
    run = changed(plan, gradient_accumulation_steps=6, num_gpus=num_gpus, loss_chunk_tokens=12, max_steps=max_steps)

    def most(steps: list[list[list[int]]], need) -> int:
        return max((need(row) for step in steps for (row,) in step[1:]), default=0)

    def need(row: int) -> float:
        return lengths[row] + 5.0 * min(12, labels[row])

    gpus = [one.all_of_it() for one in module._runs(run, lengths, None)]
    for told in (fewest_steps(run, lengths, None, learned), telling_steps(run, lengths, expandable, None, learned)):
        for measure in (lengths.__getitem__, need):
            assert most(told, measure) >= max(most(steps, measure) for steps in gpus)


def test_where_a_step_has_one_batch_that_with_most_labels_is_looked_at_too(plan):
    run = changed(plan, gradient_accumulation_steps=1)
    learned = Learned(np.array([1, 1, 9, 1, 1]), 3.0)
    assert fewest_steps(run, LENGTHS, None, learned) == [[[1]], [[2]], [[2]], [[0]]]


@pytest.mark.parametrize("weight", [0.4, 2.5])
def test_rows_are_taken_as_often_as_their_source_says(weight, plan):
    rules = ImageRules("/data", allow_urls=False)
    files = DataFiles((DataFile(Path("a.jsonl"), rules),), (Source("a", weight),))
    takes = Takes([Sample((), f"a.jsonl:{row}", row) for row in range(1, 6)], files, plan.seed)
    run = changed(plan, gradient_accumulation_steps=2)
    order, expected = LengthGroupedOrder(LENGTHS, 2, plan.seed), []
    order.takes = takes
    for number in range(3):
        order.set_epoch(number)
        expected += pieces([[row % 5] for row in order], 2)
    steps = steps_of_run(run, LENGTHS, takes)
    assert steps == expected and len(sum(steps, [])) == 3 * round(5 * weight)
    short = changed(run, max_steps=2)
    assert telling_steps(short, LENGTHS, True, takes) == expected[:2]
    [[longest, *_]] = fewest_steps(short, LENGTHS, takes)
    assert LENGTHS[longest[0]] == max(LENGTHS[row] for step in expected[:2] for [row] in step)


def test_batches_hold_tensors_alone_and_a_row_is_asked_once():
    asked = []

    class Rows:
        def __getitem__(self, number: int) -> int:
            asked.append(number)
            return number * 10

    def collator(rows: list[int]) -> dict:
        return {"labels": torch.tensor(rows), WHERE: [str(row) for row in rows]}

    steps = collated([[[2, 1]], [[1], [2]]], Rows(), collator)
    assert [[batch["labels"].tolist() for batch in step] for step in steps] == [[[20, 10]], [[10], [20]]]
    assert all(set(batch) == {"labels"} for step in steps for batch in step)
    assert sorted(asked) == [1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"batch_size": 2, "gradient_accumulation_steps": 1},
        {"gradient_accumulation_steps": 3, "pack_tokens": 12},
    ],
    ids=str,
)
def test_the_sizes_of_a_run_are_those_of_its_steps(changes, plan):
    run, images = changed(plan, **changes), np.array([1, 0, 2, 0, 5])
    sizes = sizes_of_run(run, LENGTHS, images)
    steps = steps_of_run(run, LENGTHS)
    listed = sizes_of(steps, run, LENGTHS, images)
    assert sizes.sizes.tokens.tolist() == listed.tokens.tolist()
    assert sizes.sizes.image_tokens.tolist() == listed.image_tokens.tolist()
    assert (sizes.num_steps, sizes.all_steps) == (len(steps), 9 if run.rows_per_step == 2 else 6)
