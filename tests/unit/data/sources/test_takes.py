"""How often an epoch takes the rows of a source, by its weight."""

from collections import Counter
from pathlib import Path

import pytest
from tiny.rows import sample

from vlmtune.data.batches.order import LengthGroupedOrder
from vlmtune.data.reading.data_files import ROWS_OF_FILE, DataFile, DataFiles, Source
from vlmtune.data.reading.image_refs import ImageRules
from vlmtune.data.sources.takes import Takes, rows_per_epoch
from vlmtune.data.types import Sample

RULES = ImageRules("/data", allow_urls=False)


def sources(*weights: float) -> DataFiles:
    files = tuple(DataFile(Path(f"{index}.jsonl"), RULES, source=index) for index in range(len(weights)))
    return DataFiles(files, tuple(Source("rows", weight) for weight in weights))


def rows(*sizes: int) -> list[Sample]:
    numbers = [index * ROWS_OF_FILE + row for index, size in enumerate(sizes) for row in range(1, size + 1)]
    return [Sample(sample("q", "a").turns, "rows", number) for number in numbers]


@pytest.mark.parametrize(
    ("weight", "by_epoch"),
    [(1, {1: 10}), (2, {2: 10}), (0.5, {1: 5}), (2.3, {2: 7, 3: 3}), (0.01, {1: 1})],
)
def test_a_weight_is_how_often_an_epoch_takes_the_rows(weight, by_epoch):
    takes = Takes(rows(10, 4), sources(weight, 1), seed=1)
    for epoch in range(3):
        taken = Counter(number % 14 for number in takes.of_epoch(epoch))
        assert Counter(times for row, times in taken.items() if row < 10) == by_epoch
        assert {row: times for row, times in taken.items() if row >= 10} == {10: 1, 11: 1, 12: 1, 13: 1}
        assert taken.total() == len(takes) == rows_per_epoch(rows(10, 4), sources(weight, 1))


def test_over_the_epochs_every_row_is_met_as_often_and_no_take_is_met_twice():
    takes = Takes(rows(10), sources(0.3), seed=1)
    met = [number for epoch in range(10) for number in takes.of_epoch(epoch)]
    assert Counter(number % 10 for number in met) == dict.fromkeys(range(10), 3)
    assert sorted(met) == list(range(30)), "take 0 to 2 of each row, so that each is augmented otherwise"


def test_another_seed_takes_other_rows_first():
    first = [set(Takes(rows(100), sources(0.1), seed).of_epoch(0)) for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]


def test_the_order_of_an_epoch_has_its_takes_longest_first():
    lengths = [5, 9, 7, 1]
    order = LengthGroupedOrder(lengths, rows_per_step=2, seed=0)
    order.takes = Takes(rows(4), sources(2), seed=0)
    order.set_epoch(3)
    numbers = [*order]
    assert len(order) == len(numbers) == len(set(numbers)) == 8
    assert Counter(number % 4 for number in numbers) == dict.fromkeys(range(4), 2)
    assert numbers[0] % 4 == 1 and {number // 4 for number in numbers} == {6, 7}
