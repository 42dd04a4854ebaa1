"""Candidates for a config that fits, each simulated once: what is given up, and what is taken back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from vlmtune import levers
from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, changed, not_yet, words_of
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.families.facts import ModelFacts
from vlmtune.levers.base import PARTS, Saving

SURELY = 0.75
"""Of what a step was seen to save: less is counted on where the step before it is not simulated."""
ROOM_TO_SPEND = 0.02
"""Share of the budget that must be left before anything is tried that takes more."""

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

    def __init__(
        self,
        config: TrainingConfig,
        model: ModelFacts | None,
        estimate: EstimateWith,
        too_large: MemoryReport | None = None,
    ) -> None:
        """`too_large` is the estimate of the config as it is, where that is known; it counts as one that does not fit.

        Its budget must be the one that `estimate` counts against.
        """
        self.config = config
        self.model = model
        self.estimate = estimate
        self.reports: dict[tuple[str, ...], MemoryReport | None] = {}
        """By the `--set` words of what differs from the config."""
        if too_large:
            self.base = self.reports[()] = replace(too_large, fits=False)

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

    def fits(self, chosen: Sequence[Settled]) -> bool:
        """Return whether the run with these changes fits; what cannot is not simulated."""
        before = self.reports.get(())  # None in a search that only confirms
        if before and left_bytes(before, chosen) > before.budget_bytes:
            return False
        report = self.report(merged(chosen))
        return report is not None and report.fits

    def room(self, values: Values) -> float:
        """Return the share of the budget that a run leaves."""
        report = self.report(values)
        return 1 - report.peak_reserved_bytes / max(1, report.budget_bytes)

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
        if not every:
            return []
        if not self.fits(every):
            return self._without_harm(every)

        # Each saving comes on top of those before it: memory falls along them, and then along the steps of the last.
        def upto(place: int) -> list[Settled]:
            return every[: place + 1]

        enough = upto(first_that_holds(range(len(every)), lambda place: self.fits(upto(place))))
        return self._taken_back([*enough[:-1], self.weakest(enough, enough[-1])])

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
        return self._taken_back(chosen) if self.fits(chosen) else chosen

    def _most(self, chosen: list[Settled]) -> float:
        report = self.report(merged(chosen))
        return float("inf") if report is None else report.most_bytes

    def _taken_back(self, chosen: list[Settled]) -> list[Settled]:
        """Take back what is not needed, what the model learns first; then weaken what can be weaker."""
        # A saving that came too early may be made needless by the larger one after it. From the last one back: the
        # later ones cost more of what the model learns, and are worth more to be rid of.
        for one in reversed(list(chosen)):
            fewer = [other for other in chosen if other is not one]
            if self.fits(fewer):
                chosen = fewer
        for one in reversed(list(chosen)):
            if one.step > 0 and self.room(merged(chosen)) > ROOM_TO_SPEND:
                weaker = self.weakest(chosen, one)
                chosen = [weaker if other is one and weaker else other for other in chosen]
        return chosen

    def weakest(self, chosen: list[Settled], one: Settled) -> Settled | None:
        """Return the weakest step of a saving with which the run fits beside the others; None where none does."""

        def at(step: int) -> list[Settled]:
            """Return the changes with this step; -1: without the saving."""
            settled = [replace(one, step=step)] if step >= 0 else []
            return [changed for other in chosen for changed in (settled if other is one else [other])]

        if not self.fits(chosen):
            return None
        # Mostly each step saves less than the one before: a line from what is too much to what fits leads to steps that
        # fit, and one through two that fit to those that do not. In turn they meet; where savings are even, at once.
        too_much, fitting, line = -1, one.step, (-1, one.step)
        while fitting - too_much > 1:
            if one.saving.is_even and line[0] == fitting and self._surely_weakest(at, *line):
                break
            step = max(too_much + 1, min(fitting - 1, self._at_budget(at, *line)))
            if self.fits(at(step)):
                fitting, line = step, (step, fitting)
            else:
                too_much, line = step, (step, fitting)
        return replace(one, step=fitting)

    def _surely_weakest(self, at: Callable[[int], list[Settled]], fitting: int, stronger: int) -> bool:
        """Return whether the step before one that fits takes too much, by what each step between two saves."""
        saved_bytes = (self._most(at(fitting)) - self._most(at(stronger))) / (stronger - fitting)
        return self._most(at(fitting)) + SURELY * saved_bytes > self.base.budget_bytes

    def _at_budget(self, at: Callable[[int], list[Settled]], weak: int, strong: int) -> int:
        """Return the first step at which the line through two steps has come down to the budget.

        Where nothing is known of the weaker one, it is the middle between them.
        """
        report = self.reports.get(words_of(not_yet(self.config, merged(at(weak)))))
        if report is None:
            return (weak + strong) // 2
        saved_bytes = report.most_bytes - self._most(at(strong))
        over_bytes = report.most_bytes - self.base.budget_bytes
        return weak + ceil(over_bytes * (strong - weak) / max(1, saved_bytes))


def left_bytes(before: MemoryReport, chosen: Sequence[Settled]) -> int:
    """Return what a run holds at its peak besides all that changes can lower: with them it takes no less."""
    spared = {part for one in chosen for part in (one.saving.spares if one.saving else PARTS)}
    left = tuple(part for part in PARTS if part not in spared)
    held = sum(share.bytes for share in before.breakdown if share.name.startswith(left))
    return held + before.beside_bytes


def first_that_holds(numbers: range, holds: Callable[[int], bool]) -> int:
    """Return the first number that holds, by bisection; the last one does, as does all after the first that does."""
    low, high = numbers[0], numbers[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def merged(chosen: Sequence[Settled]) -> Values:
    """Return the values of all changes, later ones over earlier ones."""
    values: Values = {}
    for one in chosen:
        values |= one.values
    return values
