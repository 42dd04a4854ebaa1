"""Candidates for a config that fits, each simulated once: what is given up, what is taken back, what is spent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from vlmtune import levers
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, changed, not_yet, words_of
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import Lever, Saving

ROOM_TO_SPEND = 0.02
"""Share of the budget that must be left before anything is tried that takes more."""
FELT = 0.99
"""A share of the time above which no further simulations are made for the rest."""
A_PASS_TOKENS = 200
"""As many cost what unpacking the weights does, which each pass does anew; on most cards 90 to 260."""
COARSEST = 12
"""What is searched for between many levels is found to within so many parts of all."""

EstimateWith = Callable[[Values], MemoryReport]
"""Values on top of the config → its estimate, of which `fits` decides. A VlmtuneError: no candidate."""


@dataclass(frozen=True)
class Settled:
    """One saving or spending with the values that were settled on."""

    reason: str
    steps: tuple[Values, ...]
    step: int
    saving: Saving | None = None
    """None of a spending."""

    @property
    def values(self) -> Values:
        """The values of the step that was settled on."""
        return self.steps[self.step]


class Search:
    """Candidates by their values, each simulated once."""

    def __init__(self, config: TrainingConfig, model: ModelFacts | None, estimate: EstimateWith) -> None:
        self.config = config
        self.model = model
        self.estimate = estimate
        self.reports: dict[tuple[str, ...], MemoryReport | None] = {}
        """By the `--set` words of what differs from the config."""

    @cached_property
    def base(self) -> MemoryReport:
        """The estimate of the config as it is; where that is refused, so is the search."""
        self.reports[()] = report = self.estimate({})
        return report

    def report(self, values: Values) -> MemoryReport | None:
        """Return the estimate with these values; None where such a run is refused."""
        new = not_yet(self.config, values)
        words = words_of(new)
        if not words:
            return self.base
        if words not in self.reports:
            try:
                self.reports[words] = self.estimate(new)
            except VlmtuneError:  # such as a text that cannot be cut so far
                self.reports[words] = None
        return self.reports[words]

    def fits(self, values: Values) -> bool:
        """Return whether the run with these values fits."""
        report = self.report(values)
        return report is not None and report.fits

    def room(self, values: Values) -> float:
        """Return the share of the budget that a run leaves."""
        report = self.report(values)
        return 1 - report.peak_reserved_bytes / max(1, report.budget_bytes)

    def run(self) -> list[Settled]:
        """Return what is to be changed so that the run fits and uses the memory that is left."""
        if self.base.fits:
            return self.spend([])
        saved = self.save()
        return self.spend(saved) if self.fits(merged(saved)) else saved

    def savings(self) -> list[Settled]:
        """Return every saving that applies, each at its strongest, in order; a later one acts on the earlier ones.

        What applies only to what an earlier one makes, such as 4-bit layers, comes right after that.
        """
        found: list[Settled] = []
        waiting: list[Saving] = []
        for _, saving in levers.savings():
            waiting = [other for other in (*waiting, saving) if not self._added(other, found)]
        return found

    def _added(self, saving: Saving, found: list[Settled]) -> bool:
        steps = saving.steps(changed(self.config, merged(found)), self.model, self.base.tokens["text"])
        if steps:
            found.append(Settled(saving.reason, tuple(steps), len(steps) - 1, saving))
        return bool(steps)

    def save(self) -> list[Settled]:
        """Return the savings that make the run fit, as few and as weak as they can be; all where nothing does."""
        every = self.savings()
        if self.report(merged(every)) is None:
            every = [allowed for one in every if (allowed := self._allowed(one))]
        # Each step takes less than the one before it, and each saving comes on top of those before it: memory falls
        # along this list, so that bisection finds the first that fits in ten simulations in place of dozens.
        states = [(place, step) for place, one in enumerate(every) for step in range(len(one.steps))]

        def upto(number: int) -> list[Settled]:
            place, step = states[number]
            return [*every[:place], replace(every[place], step=step)]

        if not states:
            return []
        if not self.fits(merged(every)):
            return self._without_harm(every)
        return self._taken_back(
            upto(first_that_holds(range(len(states)), lambda number: self.fits(merged(upto(number)))))
        )

    def _allowed(self, one: Settled) -> Settled | None:
        """Return the saving up to its strongest step that is not refused, such as texts that cannot be cut further."""
        while one.step >= 0 and self.report(one.values) is None:
            one = replace(one, steps=one.steps[:-1], step=one.step - 1)
        return one if one.steps else None

    def _without_harm(self, chosen: list[Settled]) -> list[Settled]:
        """Leave out what makes a run larger that does not fit, such as a head that is unpacked at the peak."""
        for one in [one for one in chosen if one.saving.may_cost_memory]:
            fewer = [other for other in chosen if other is not one]
            if self._most(fewer) <= self._most(chosen):
                chosen = fewer
        return self._taken_back(chosen) if self.fits(merged(chosen)) else chosen

    def _most(self, chosen: list[Settled]) -> float:
        report = self.report(merged(chosen))
        return float("inf") if report is None else report.most_bytes

    def _taken_back(self, chosen: list[Settled]) -> list[Settled]:
        """Take back what is not needed, what the model learns first; then weaken what can be weaker."""
        # A saving that came too early may be made needless by the larger one after it. From the last one back: the
        # later ones cost more of what the model learns, and are worth more to be rid of.
        for one in reversed(list(chosen)):
            fewer = [other for other in chosen if other is not one]
            if self.fits(merged(fewer)):
                chosen = fewer
        for one in reversed(list(chosen)):
            if one.step > 0 and self.room(merged(chosen)) > ROOM_TO_SPEND:
                weaker = self.weakest(chosen, one)
                chosen = [weaker if other is one and weaker else other for other in chosen]
        return chosen

    def weakest(self, chosen: list[Settled], one: Settled) -> Settled | None:
        """Return the weakest step of a saving with which the run fits beside the others; None where none does."""

        def fits(step: int) -> bool:
            return self.fits(merged([replace(one, step=step) if other is one else other for other in chosen]))

        return replace(one, step=first_that_holds(range(one.step + 1), fits)) if fits(one.step) else None

    def spend(self, chosen: list[Settled]) -> list[Settled]:
        """Return the changes with those that use memory which is left for speed: the way that is predicted quickest."""
        if self.room(merged(chosen)) < ROOM_TO_SPEND:
            return chosen
        best = undivided = self._filled(chosen)
        saved = self._time(chosen) - self._time(undivided)
        for way in sorted(self._divisions(chosen), key=self._time):
            # More tokens at once leave memory for as many fewer layers that keep theirs.
            share = 1 if self._keeps_all(undivided) else self._at_once(chosen) / self._at_once(way)
            if self._time(way) - saved * share <= FELT * self._time(best):
                best = min(self._filled(way), best, key=self._time)
        return best

    def _keeps_all(self, chosen: list[Settled]) -> bool:
        """Return whether memory buys nothing more but another division of the rows."""
        config = changed(self.config, merged(chosen))
        return not any(
            lever.spending.levels(config, self.model, self.base.tokens["total"])
            for lever in levers.LEVERS
            if lever.spending and not lever.spending.is_division
        )

    def _at_once(self, chosen: list[Settled]) -> int:
        """Return the tokens that are computed at once."""
        training = changed(self.config, merged(chosen)).training
        if training.packing is True and training.pack_tokens:
            return training.pack_tokens
        return training.batch_size * self.base.tokens["total"]

    def _divisions(self, chosen: list[Settled]) -> Iterator[list[Settled]]:
        """Yield the changes with each other division of a step's rows that fits."""
        values = merged(chosen)
        config = changed(self.config, values)
        for lever in levers.LEVERS:
            if lever.spending and lever.spending.is_division:
                for level in lever.spending.levels(config, self.model, self.base.tokens["total"]):
                    if not self.fits(values | level):
                        break
                    yield [*chosen, Settled(lever.spending.reason(level), (level,), 0)]

    def _time(self, chosen: list[Settled]) -> float:
        """Return what a step takes; for a card whose rates nobody knows, its work."""
        report = self.report(merged(chosen))
        if report.time:
            return report.time.step_s
        return report.flops_per_row * (1 + A_PASS_TOKENS / self._at_once(chosen))

    def _filled(self, chosen: list[Settled]) -> list[Settled]:
        """Return the changes with those that use memory which is left, each lever's as far as it fits."""
        if self.room(merged(chosen)) < ROOM_TO_SPEND:
            return chosen
        for lever in levers.LEVERS:
            if lever.spending and not lever.spending.is_division and (level := self._bought(lever, merged(chosen))):
                chosen = [*chosen, Settled(lever.spending.reason(level), (level,), 0)]
        return chosen

    def _bought(self, lever: Lever, values: Values) -> Values | None:
        """Return the last level of a lever's spending that fits beside these values; None where none does."""
        config = changed(self.config, values)
        levels = lever.spending.levels(config, self.model, self.base.tokens["total"])
        if not levels:
            return None
        place = self._last_by_bisection(levels, values)
        return levels[place] if place >= 0 else None

    def _last_by_bisection(self, levels: list[Values], values: Values) -> int:
        """The place of the last level that fits, to within one part in COARSEST of all; -1: none of those tried."""

        def at(place: int) -> Values:
            return values | levels[place] if place >= 0 else values

        fitting, too_much = -1, len(levels) - 1
        if self.fits(at(too_much)):
            return too_much
        peaks: dict[int, int] = {}
        self._note_peak(peaks, fitting, at(fitting))
        self._note_peak(peaks, too_much, at(too_much))
        while too_much - fitting > max(1, len(levels) // COARSEST):
            guess = _between(fitting, too_much, peaks, self.base.budget_bytes)
            if self.fits(at(guess)):
                fitting = guess
            else:
                too_much = guess
            self._note_peak(peaks, guess, at(guess))
        return fitting

    def _note_peak(self, peaks: dict[int, int], place: int, values: Values) -> None:
        if (report := self.report(values)) is not None:
            peaks[place] = report.peak_reserved_bytes


def first_that_holds(numbers: range, holds: Callable[[int], bool]) -> int:
    """Return the first number that holds, by bisection; the last one does, as does all after the first that does."""
    low, high = numbers[0], numbers[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _between(fitting: int, too_much: int, peaks: dict[int, int], limit_bytes: int) -> int:
    """Return the place to try: where a line through the known peaks meets the limit, or the middle."""
    # Kept activations grow evenly with the layers that keep them, so the line is nearly right at the first try.
    if fitting in peaks and too_much in peaks and peaks[too_much] > peaks[fitting]:
        share = (limit_bytes - peaks[fitting]) / (peaks[too_much] - peaks[fitting])
        guess = fitting + int(share * (too_much - fitting))
        return min(too_much - 1, max(fitting + 1, guess))
    return (fitting + too_much) // 2


def merged(chosen: list[Settled]) -> Values:
    """Return the values of all changes, later ones over earlier ones."""
    values: Values = {}
    for one in chosen:
        values |= one.values
    return values
