"""Estimated beside measured memory: the rows of the comparison, and what is said."""

import pytest

from vlmtune.runs.memory import Compared, Memory, compare, difference_note, parts_of_peak
from vlmtune.units import GIB


def test_parts_sum_to_the_allocated_peak():
    parts = parts_of_peak(5 * GIB, 6 * GIB, 9 * GIB)
    assert parts == {"weights and adapters": 5 * GIB, "optimizer and workspaces": GIB, "step": 3 * GIB}
    assert sum(parts.values()) == 9 * GIB


def test_both_peaks_and_every_part_are_compared():
    estimated, measured = Memory(10, 9, parts_of_peak(5, 6, 9)), Memory(12, 11, parts_of_peak(5, 7, 11))
    assert compare(estimated, measured) == [
        Compared("peak reserved", 10, 12),
        Compared("peak allocated", 9, 11),
        Compared("weights and adapters", 5, 5),
        Compared("optimizer and workspaces", 1, 2),
        Compared("step", 3, 4),
    ]
    assert {row.estimated_bytes for row in compare(None, measured)} == {None}


@pytest.mark.parametrize(
    ("measured_gib", "words"), [(10.4, None), (9.6, None), (10.6, "is 6% above the estimate"), (9.0, "is 10% below")]
)
def test_what_is_said_when_peaks_part(measured_gib, words):
    said = difference_note(10 * GIB, int(measured_gib * GIB))
    assert said is None if words is None else words in said
