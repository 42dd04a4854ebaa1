"""Histograms of lengths and losses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmtune.runs.histogram import LOSS_EDGES, MOST_BINS, histogram_of_lengths, histogram_of_losses


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=50))
def test_every_length_lies_in_one_of_few_bins(lengths):
    found = histogram_of_lengths(lengths)
    assert sum(found.counts) == len(lengths) and len(found.edges) == len(found.counts) <= MOST_BINS
    assert found.counts[0] and found.counts[-1] and found.edges[0] <= min(lengths) and found.edges[-1] <= max(lengths)


@pytest.mark.parametrize(
    ("lengths", "edges", "counts"),
    [([7], [7], [1]), ([7, 9, 9], [7, 8, 9], [1, 0, 2]), ([0, 49, 99, 100], [0, 50, 100], None)],
)
def test_lengths_in_bins_of_a_round_width(lengths, edges, counts):
    found = histogram_of_lengths(lengths)
    assert counts is None or (found.edges, found.counts) == (edges, counts)
    assert all(edge in found.edges for edge in edges)


def test_losses_lie_in_the_same_bins_for_every_run():
    found = histogram_of_losses([0.0, -1e-7, 0.001, 0.0019, 3.0, 5.0, 10.0, 5000.0, math.nan, math.inf])
    assert dict(zip(found.edges, found.counts, strict=True)) == {
        **dict.fromkeys(LOSS_EDGES, 0), 0.0: 2, 0.001: 2, 2.0: 1, 5.0: 1, 10.0: 2
    }  # fmt: skip
