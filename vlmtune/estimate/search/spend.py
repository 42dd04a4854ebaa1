"""Memory that is left buys speed: the quickest division of a step's rows, with as many kept activations as fit.

A simulation takes seconds, and there are hundreds of such configs. Three are simulated to begin with: the run as it is,
with everything kept, and divided as coarsely as it can be; time and memory of the others are predicted from these.
Whichever is predicted to be the quickest is simulated, until none that is left is predicted to be quicker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import ceil, inf

from vlmtune import levers
from vlmtune.config.values import Values, changed
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport, StepTime
from vlmtune.estimate.search.candidates import ROOM_TO_SPEND, Search, Settled, merged
from vlmtune.levers.base import Lever, Spending

FELT = 0.99
"""A share of the time above which no further simulations are made for the rest."""
A_PASS_TOKENS = 200
"""As many cost what unpacking the weights does, which each pass does anew; on most cards 90 to 260."""
COARSEST = 12
"""What is searched for between many levels is found to within so many parts of all."""
SURELY_TOO_MUCH = 1.05
"""Of the budget, by predicted memory, which is rather too high: its line is straight, what it stands for is hollow."""

PaceWith = Callable[[Values, Sequence[MemoryReport]], StepTime | None]
"""Values on top of the config, and estimates that differ from it in how rows are divided → what a step takes."""


@dataclass(frozen=True)
class Way:
    """One division of a step's rows, with nothing else bought."""

    changes: tuple[Settled, ...]
    at_once: int
    """Tokens that are computed at once."""
    alone: bool = False
    """As its lever's spending."""

    @property
    def values(self) -> Values:
        """The values of all changes."""
        return merged(self.changes)


def spend(search: Search, chosen: list[Settled], pace: PaceWith) -> list[Settled]:
    """Return the changes with those that use memory which is left for speed: the way that is predicted quickest."""
    if search.room(merged(chosen)) < ROOM_TO_SPEND:
        return chosen
    return Ways(search, chosen, pace).quickest()


class Ways:
    """All divisions of a step's rows, and what each takes as far as it is known."""

    def __init__(self, search: Search, chosen: list[Settled], pace: PaceWith) -> None:
        self.search, self.pace = search, pace
        self.as_it_is = Way(tuple(chosen), _at_once(search, merged(chosen)))
        self.alike = self._divisions()
        """By lever: rows side by side, padded; rows behind each other."""
        self.every = [self.as_it_is, *chain.from_iterable(self.alike)]

    def quickest(self) -> list[Settled]:
        """Return the changes of the way that takes the least time, filled with what else memory buys."""
        left, best, best_s = list(self.every), list(self.as_it_is.changes), inf
        while left:
            way = min(left, key=self.predicted)
            if self.predicted(way) > FELT * best_s:
                break
            left.remove(way)
            filled = self._filled(way)
            if filled is None:
                left = [one for one in left if one.at_once < way.at_once or (way.alone and not one.alone)]
            elif (step_s := self._time(self.search.report(merged(filled)), way)) < best_s:
                best, best_s = filled, step_s
        return best

    def predicted(self, way: Way) -> float:
        """Return what a step takes with as much bought as fits; infinity where nothing of it fits."""
        if self._peak_bytes(way) > SURELY_TOO_MUCH * self.search.base.budget_bytes:
            return inf
        return self._undone(way) * (1 - self._bought[0] * self.share(way))

    def share(self, way: Way) -> float:
        """Return how much of all else that memory can buy should fit beside a way."""
        if way.alone:
            return 0.0
        left_bytes = max(0.0, self.search.base.budget_bytes - self._peak_bytes(way))
        whole_bytes = self._bought[1] * way.at_once
        return min(1.0, left_bytes / whole_bytes) if whole_bytes > 0 else 1.0

    def _divisions(self) -> list[list[Way]]:
        dividing = [lever.spending for lever in levers.LEVERS if lever.spending and lever.spending.is_division]
        config, row = changed(self.search.config, self.as_it_is.values), self.search.base.tokens["total"]
        found = [[self._divided(by, level) for level in by.levels(config, self.search.model, row)] for by in dividing]
        return [ways for ways in found if ways]

    def _divided(self, spending: Spending, level: Values) -> Way:
        settled = Settled(spending.reason(level), (level,), 0)
        at_once = _at_once(self.search, self.as_it_is.values | level)
        return Way((*self.as_it_is.changes, settled), at_once, spending.is_alone)

    @cached_property
    def _simulated(self) -> dict[int, MemoryReport]:
        """The estimates by which those of all divisions are predicted, by the tokens at once."""
        known = {self.as_it_is.at_once: self.search.report(self.as_it_is.values)}
        # Those of one lever: what is padded takes longer for each token than what is not.
        alike = self.alike[0] if self.alike else []
        left = sorted((way for way in alike if not way.alone), key=lambda way: way.at_once)
        while left:
            way = left.pop()
            report = self.search.report(way.values)
            if report is not None:
                known[way.at_once] = report
            if report is not None and report.fits:
                break
            # The line to what is too large lies above the memory of those between: what it lets in does fit.
            left = [one for one in left if _between(known, one.at_once) <= self.search.base.budget_bytes]
        return known

    @cached_property
    def _bought(self) -> tuple[float, float]:
        """What buying all else saves of the time, as a share, and takes of memory for each token at once."""
        way = self.as_it_is
        most = self.search.report(way.values | self._dearest(way.values))
        before = self.search.report(way.values)
        if most is None:
            return 0.0, 0.0
        taken_bytes = most.peak_reserved_bytes - before.peak_reserved_bytes
        return 1 - self._time(most, way) / self._time(before, way), taken_bytes / way.at_once

    def _dearest(self, values: Values) -> Values:
        """Return the values with which as much is bought as can be, besides a division of the rows."""
        config, dearest = changed(self.search.config, values), {}
        for lever in _buying():
            if levels := lever.spending.levels(config, self.search.model, self.search.base.tokens["total"]):
                dearest |= levels[-1]
        return dearest

    def _peak_bytes(self, way: Way) -> float:
        return _between(self._simulated, way.at_once)

    def _undone(self, way: Way) -> float:
        """Return what a step takes with nothing else bought; for a card whose rates nobody knows, its work."""
        try:
            time = self.pace(way.values, list(self._simulated.values()))
        except VlmtuneError:  # such a run is refused
            return inf
        return time.step_s if time else self._work(self.search.base, way)

    def _time(self, report: MemoryReport, way: Way) -> float:
        return report.time.step_s if report.time else self._work(report, way)

    def _work(self, report: MemoryReport, way: Way) -> float:
        return report.flops_per_row * (1 + A_PASS_TOKENS / way.at_once)

    def _filled(self, way: Way) -> list[Settled] | None:
        """Return the changes with those that use memory which is left, each lever's as far as it fits; None: none."""
        changes, peak_bytes = list(way.changes), self._peak_bytes(way)
        whole_bytes = self._bought[1] * way.at_once
        for lever in _buying():
            config = changed(self.search.config, merged(changes))
            row = self.search.base.tokens["total"]
            levels = [] if way.alone else lever.spending.levels(config, self.search.model, row)
            place = last_that_fits(self.search, merged(changes), levels, peak_bytes, whole_bytes)
            if place is None:
                return None
            if place >= 0:
                changes.append(Settled(lever.spending.reason(levels[place]), (levels[place],), 0))
        return changes


def _buying() -> list[Lever]:
    """Return the levers that memory buys, besides divisions of the rows."""
    return [lever for lever in levers.LEVERS if lever.spending and not lever.spending.is_division]


def _between(known: dict[int, MemoryReport], at_once: int) -> float:
    """Return the peak of so many tokens at once, in bytes, on the line through the next two that are known."""
    sizes = sorted(known)
    place = next((place for place, tokens in enumerate(sizes) if tokens >= at_once), len(sizes) - 1)
    low, high = sizes[max(0, place - 1)], sizes[max(place, min(1, len(sizes) - 1))]
    below, above = (known[tokens].peak_reserved_bytes for tokens in (low, high))
    return below + (above - below) * (at_once - low) / max(1, high - low)


def _at_once(search: Search, values: Values) -> int:
    """Return the tokens that are computed at once."""
    training, row = changed(search.config, values).training, search.base.tokens["total"]
    if training.packing is True and training.pack_tokens:
        return training.pack_tokens
    return training.batch_size * row


def last_that_fits(
    search: Search, values: Values, levels: Sequence[Values], peak_bytes: float, whole_bytes: float
) -> int | None:
    """Return the place of the last level that fits, to within one part in COARSEST of all; -1: none is needed for that.

    None where the values alone do not fit. Kept activations grow evenly with the layers that keep them, so that the
    first guess is nearly right.

    Args:
        peak_bytes: what the values alone are predicted to take; `whole_bytes` what the last level takes more.
    """
    budget_bytes, is_even = search.base.budget_bytes, len(levels) >= COARSEST
    level_bytes = max(1.0, whole_bytes / max(1, len(levels)))
    fitting, too_much, known = -2, len(levels), None
    place = int((budget_bytes - peak_bytes) / level_bytes) - 1
    while True:
        place = max(fitting + 1, min(too_much - 1, place))
        report = search.report(values | levels[place] if place >= 0 else values)
        peak = report.peak_reserved_bytes if report else inf
        if known and report:
            level_bytes = max(1.0, (peak - known[1]) / (place - known[0]))
        known = (place, peak) if report else known
        if report and report.fits:
            fitting, place = place, place + int((budget_bytes - peak) / level_bytes)
        else:
            too_much = place
            place = place - ceil((peak - budget_bytes) / level_bytes) if budget_bytes < peak < inf else place // 2
        if too_much == -1:
            return None
        promised = min(place, too_much - 1) - fitting
        if fitting > -2 and (too_much - fitting == 1 or (is_even and promised < max(1, len(levels) // COARSEST))):
            return fitting
