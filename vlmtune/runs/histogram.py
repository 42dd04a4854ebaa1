"""How values spread: of row lengths and of losses."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_BINS = 24
LOSS_EDGES = (0.0, *(factor * 10.0**exponent for exponent in (-3, -2, -1, 0) for factor in (1, 2, 5)), 10.0)
"""The same for every run, so that losses of one lie beside those of another."""


@dataclass(frozen=True)
class Histogram:
    """How many values lie from each edge to the next; the last bin is open, where values know no bound."""

    edges: list[float]
    counts: list[int]
    """One an edge."""


def histogram_of_lengths(lengths: Sequence[int]) -> Histogram:
    """Return a histogram with at most MOST_BINS bins of one round width."""
    low, high = min(lengths), max(lengths)
    width = max(1, round(round_step((high - low + 1) / (MOST_BINS - 1))))
    first = low // width
    edges = [float(number * width) for number in range(first, high // width + 1)]
    return _counted([length // width - first for length in lengths], edges)


def histogram_of_losses(losses: Iterable[float]) -> Histogram:
    """Return a histogram with the bins of LOSS_EDGES; what is no number lies in none."""
    edges = [round(edge, 3) for edge in LOSS_EDGES]
    return _counted([bisect_right(edges, max(0.0, loss)) - 1 for loss in losses if math.isfinite(loss)], edges)


def round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`, which is above zero."""
    magnitude = 10 ** math.floor(math.log10(least))
    return next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= least * 0.999)


def _counted(bins: Iterable[int], edges: list[float]) -> Histogram:
    counts = [0] * len(edges)
    for number in bins:
        counts[number] += 1
    return Histogram(edges, counts)
