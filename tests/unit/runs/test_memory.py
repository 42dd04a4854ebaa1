"""Estimated beside measured memory: the rows of the comparison, and what the run folder keeps of both."""

import pytest

from vlmtune.runs.folder import Retry, RunFolder
from vlmtune.runs.memory import Compared, Memory, apart, compare, parts_of_peak
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
    said = apart(10 * GIB, int(measured_gib * GIB))
    assert said is None if words is None else words in said


def test_the_run_folder_keeps_the_estimate(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    assert folder.read_estimate() is None
    memory = {"peak_reserved_bytes": 10, "peak_allocated_bytes": 9, "parts": parts_of_peak(5, 6, 9)}
    folder.write_estimate(memory | {"gpu": "8gb"})
    assert folder.read_estimate() == Memory(**memory)
    folder.write_estimate(None)
    folder.write_estimate(None)
    assert folder.read_estimate() is None


def test_the_run_folder_keeps_its_retries_in_their_order(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    retries = [Retry(("a=1", "b=2"), "one"), Retry(("c=3",), "two")]
    assert folder.read_retries() == []
    for retry in retries:
        folder.add_retry(retry)
    assert folder.read_retries() == retries
