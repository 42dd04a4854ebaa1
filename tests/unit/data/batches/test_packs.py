"""Which rows make a pack, and what a pack is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtune.data.batches.order import LengthGroupedOrder
from vlmtune.data.batches.packs import PackCollator, best_fit, largest_packs, packed, packs_of, tell_of_long_rows
from vlmtune.data.collate import WHERE
from vlmtune.data.encode import IGNORED, Encoded
from vlmtune.errors import VlmtuneError
from vlmtune.models.attention.packs import PACKED, num_rows

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=12)


def sizes(lengths, packs):
    return [sum(lengths[row] for row in pack) for pack in packs]


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_every_row_once_in_packs_that_hold_it_the_largest_first(lengths):
    packs = packs_of(lengths, 100)
    assert sorted(sum(packs, [])) == list(range(len(lengths)))
    assert all(size <= 100 or len(pack) == 1 for size, pack in zip(sizes(lengths, packs), packs, strict=True))
    assert sizes(lengths, packs) == sorted(sizes(lengths, packs), reverse=True)
    # Two packs that are half empty would be one.
    assert sum(size <= 50 for size in sizes(lengths, packs)) <= 1


def test_a_row_goes_where_it_leaves_the_least_room():
    assert packs_of([60, 50, 45, 5], 100) == [[1, 2, 3], [0]]


@given(st.lists(st.lists(st.integers(1, 120), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_many_steps_at_once_are_each_on_its_own(steps):
    together = best_fit(np.array(steps), 100)
    for lengths, numbers, largest in zip(steps, together, largest_packs(np.array(steps), 100), strict=True):
        packs = packs_of(lengths, 100)
        assert [np.flatnonzero(numbers == number).tolist() for number in range(len(packs))] == packs
        assert largest == sizes(lengths, packs)[0]


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_step_with_the_largest_pack_comes_first_and_no_step_has_other_rows(epoch):
    lengths = [(37 * index) % 101 + 5 for index in range(101)]

    def steps(pack_tokens):
        order = LengthGroupedOrder(lengths, 4, 42, pack_tokens)
        order.set_epoch(epoch)
        rows = list(order)
        return [rows[start : start + 4] for start in range(0, 101, 4)]

    plain, in_packs = steps(0), steps(150)
    assert sorted(map(tuple, plain)) == sorted(map(tuple, in_packs)) and plain != in_packs
    assert plain[-1] == in_packs[-1], "the short step at the end stays there"
    largest = [
        sizes([lengths[row] for row in step], packs_of([lengths[row] for row in step], 150))[0] for step in in_packs
    ]
    assert largest[0] == max(largest[:-1])


def test_fewer_rows_than_a_step_stay_as_they_are():
    assert sorted(LengthGroupedOrder([5, 9], 4, 42, 64)) == [0, 1]


def row(ids: list[int], labels: list[int], pixels: int = 0) -> Encoded:
    tensors = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if pixels:
        tensors |= {"pixel_values": torch.full((pixels, 3, 2, 2), float(ids[0])), "token_type_ids": torch.tensor([ids])}
    return Encoded(tensors, torch.tensor([labels]), torch.zeros(len(ids), dtype=torch.bool), f"row {ids[0]}")


def test_a_pack_has_its_rows_behind_each_other():
    pack = packed([row([7, 8, 9], [7, 8, 9], pixels=2), row([5, 6], [IGNORED, 6])])
    assert pack["input_ids"].tolist() == [[7, 8, 9, 5, 6]]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert pack[PACKED].tolist() == [[0, 0, 0, 1, 1]] and num_rows(pack) == 2
    assert pack["attention_mask"].tolist() == [[1] * 5]
    assert pack["labels"].tolist() == [[IGNORED, 8, 9, IGNORED, 6]], "the first of a row follows nothing"
    assert pack["token_type_ids"].tolist() == [[7, 8, 9, 0, 0]], "a row without images has no marks"
    assert pack["pixel_values"].shape == (2, 3, 2, 2)
    assert pack[WHERE] == ["row 7", "row 5"]


def test_the_rows_of_a_step_become_packs():
    rows = [row([1] * 3, [1] * 3), row([2] * 4, [2] * 4), row([3] * 2, [3] * 2)]
    assert [pack[WHERE] for pack in PackCollator(5)(rows)] == [["row 1", "row 3"], ["row 2"]]
    error = VlmtuneError("row 2: is gone")
    assert PackCollator(5)([rows[0], error]) is error


def test_rows_longer_than_a_pack_are_told():
    def told(lengths, pack_tokens):
        lines = []
        tell_of_long_rows(np.array(lengths), SimpleNamespace(pack_tokens=pack_tokens), lines.append)
        return lines

    assert told([90, 130, 101], 100) == [
        "longer than training.pack_tokens: 100: 2 rows of 3; each is a pack of its own"
    ]
    assert told([90, 100], 100) == told([130], 0) == []


def test_a_pack_is_filled_up_behind_its_last_row_with_tokens_that_mean_nothing():
    rows = [row([7, 8, 9], [7, 8, 9], pixels=2), row([5, 6], [IGNORED, 6])]
    pack, filled = packed(rows), packed(rows, step=4)
    assert filled["labels"].tolist() == [[*pack["labels"][0].tolist(), IGNORED, IGNORED, IGNORED]]
    assert filled["input_ids"].tolist() == [[7, 8, 9, 5, 6, 0, 0, 0]]
    assert filled["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert filled[PACKED].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]] and filled[WHERE] == pack[WHERE]
    assert num_rows(filled) == num_rows(pack) == 2
    assert torch.equal(filled["pixel_values"], pack["pixel_values"])
    [collated, *_] = PackCollator(5, step=4)(rows)
    assert collated["labels"].shape == (1, 8)
    assert packed(rows, step=5)["labels"].shape == (1, 5), "a pack that fits is left as it is"
