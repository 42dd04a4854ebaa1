"""Candidates for a config that fits, each simulated once: what is given up, what is taken back, what is spent."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from vlmtune.config.schema import TrainingConfig
from vlmtune.errors import VlmtuneError
from vlmtune.estimate.report import MemoryReport
from vlmtune.levers import base as levers
from vlmtune.levers.base import ModelFacts, Values

ENOUGH_TOKENS = 4096
"""Of one forward pass: with more, unpacking 4-bit weights is no longer felt on any card."""
ROOM_TO_SPEND = 0.02
"""Share of the budget that must be left before anything is tried that takes more."""
COARSEST = 12
"""The number of layers that recompute is found to within so many parts of all."""
MANY_LAYERS = (
    "memory is left: layer {first} and those after it keep their activations, which saves computing them twice"
)
NO_RECOMPUTING = "memory is left: every activation is kept, so that none is computed twice"
MORE_ROWS = "memory is left: more rows at a time, as many a step; the card works on more at once"

EstimateWith = Callable[[tuple[str, ...]], MemoryReport]
"""`--set` words on top of the config → its estimate, of which `fits` decides. A VlmtuneError: no candidate."""


@dataclass(frozen=True)
class Chosen:
    """One saving or spending with the values that were settled on."""

    reason: str
    steps: tuple[Values, ...]
    step: int

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

    @cached_property
    def base(self) -> MemoryReport:
        """The estimate of the config as it is; where that is refused, so is the search."""
        self.reports[()] = report = self.estimate(())
        return report

    def report(self, values: Values) -> MemoryReport | None:
        """Return the estimate with these values; None where such a run is refused."""
        words = levers.words_of(levers.different(self.config, values))
        if not words:
            return self.base
        if words not in self.reports:
            try:
                self.reports[words] = self.estimate(words)
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

    def run(self) -> list[Chosen]:
        """Return what is to be changed so that the run fits and uses the memory that is left."""
        if self.base.fits:
            return self.spend([])
        saved = self.save()
        return self.spend(saved) if self.fits(merged(saved)) else saved

    def savings(self) -> list[Chosen]:
        """Return every saving that applies, each at its strongest, in order; a later one acts on the earlier ones."""
        found: list[Chosen] = []
        for saving in levers.SAVINGS:
            config = levers.changed(self.config, merged(found))
            steps = saving.steps(config, self.model, self.base.tokens["text"])
            if steps:
                found.append(Chosen(saving.reason, tuple(steps), len(steps) - 1))
        return found

    def save(self) -> list[Chosen]:
        """Return the savings that make the run fit, as few and as weak as they can be; all where nothing does."""
        every = self.savings()
        if self.report(merged(every)) is None:
            every = [allowed for one in every if (allowed := self._allowed(one))]
        states = [(place, step) for place, one in enumerate(every) for step in range(len(one.steps))]

        def upto(number: int) -> list[Chosen]:
            place, step = states[number]
            return [*every[:place], replace(every[place], step=step)]

        if not states:
            return []
        if not self.fits(merged(every)):
            return self._without_harm(every)
        return self._taken_back(upto(_first(range(len(states)), lambda number: self.fits(merged(upto(number))))))

    def _allowed(self, one: Chosen) -> Chosen | None:
        """Return the saving up to its strongest step that is not refused, such as texts that cannot be cut further."""
        while one.step >= 0 and self.report(one.values) is None:
            one = replace(one, steps=one.steps[:-1], step=one.step - 1)
        return one if one.steps else None

    def _without_harm(self, chosen: list[Chosen]) -> list[Chosen]:
        """Leave out what makes a run larger that does not fit, such as a head that is unpacked at the peak."""
        fewer = [one for one in chosen if one.reason != levers.HEAD_REASON]
        if self._peak(fewer) <= self._peak(chosen):
            chosen = fewer
        return self._taken_back(chosen) if self.fits(merged(chosen)) else chosen

    def _peak(self, chosen: list[Chosen]) -> float:
        report = self.report(merged(chosen))
        return float("inf") if report is None else report.peak_reserved_bytes

    def _taken_back(self, chosen: list[Chosen]) -> list[Chosen]:
        """Take back what is not needed, what the model learns first; then weaken what can be weaker."""
        for one in reversed(list(chosen)):
            fewer = [other for other in chosen if other is not one]
            if self.fits(merged(fewer)):
                chosen = fewer
        for one in reversed(list(chosen)):
            if one.step > 0 and self.room(merged(chosen)) > ROOM_TO_SPEND:
                weaker = self.weakest(chosen, one)
                chosen = [weaker if other is one and weaker else other for other in chosen]
        return chosen

    def weakest(self, chosen: list[Chosen], one: Chosen) -> Chosen | None:
        """Return the weakest step of a saving with which the run fits beside the others; None where none does."""

        def fits(step: int) -> bool:
            return self.fits(merged([replace(one, step=step) if other is one else other for other in chosen]))

        return replace(one, step=_first(range(one.step + 1), fits)) if fits(one.step) else None

    def spend(self, chosen: list[Chosen]) -> list[Chosen]:
        """Return the changes with those that use memory which is left for speed."""
        values = merged(chosen)
        config = levers.changed(self.config, values)
        if self.room(values) < ROOM_TO_SPEND:
            return chosen
        if config.hardware.gradient_checkpointing:
            if not self.fits(values | levers.keep_all()):
                return [*chosen, *self._fewer_layers(config, values)]
            chosen = [*chosen, Chosen(NO_RECOMPUTING, (levers.keep_all(),), 0)]
        return [*chosen, *self._more_rows(config, merged(chosen))]

    def _fewer_layers(self, config: TrainingConfig, values: Values) -> list[Chosen]:
        """Return how many layers must recompute, none where that is all of them."""
        num_layers = self.model.num_layers
        kept, too_many = num_layers - (config.hardware.checkpointed_layers or num_layers), num_layers
        most = self.report(values | levers.keep_all())
        peaks = {kept: self.report(values).peak_reserved_bytes}
        if most is not None:
            peaks[too_many] = most.peak_reserved_bytes
        started = kept
        while too_many - kept > max(1, num_layers // COARSEST):
            guess = _between(kept, too_many, peaks, self.base.budget_bytes)
            candidate = values | levers.recompute_first(num_layers - guess)
            if self.fits(candidate):
                kept = guess
            else:
                too_many = guess
            if (report := self.report(candidate)) is not None:
                peaks[guess] = report.peak_reserved_bytes
        if kept == started:
            return []
        reason = MANY_LAYERS.format(first=num_layers - kept + 1)
        return [Chosen(reason, (levers.recompute_first(num_layers - kept),), 0)]

    def _more_rows(self, config: TrainingConfig, values: Values) -> list[Chosen]:
        """Return the largest batch of twice, four times ... as many rows, as long as they divide those of a step."""
        rows, batch_size = levers.rows_per_step(config), config.training.batch_size
        tokens, best = self.base.tokens["total"], None
        while rows % (2 * batch_size) == 0 and batch_size * tokens < ENOUGH_TOKENS:
            batch_size *= 2
            if not self.fits(values | levers.batch_of(batch_size, rows)):
                break
            best = levers.batch_of(batch_size, rows)
        return [Chosen(MORE_ROWS, (best,), 0)] if best else []


def _first(numbers: range, holds: Callable[[int], bool]) -> int:
    """Return the first number that holds, by bisection; the last one does, as does all after the first that does."""
    low, high = numbers[0], numbers[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _between(kept: int, too_many: int, peaks: dict[int, int], limit_bytes: int) -> int:
    """Return the number of layers to try: where a line through the known peaks meets the limit, or the middle."""
    if kept in peaks and too_many in peaks and peaks[too_many] > peaks[kept]:
        share = (limit_bytes - peaks[kept]) / (peaks[too_many] - peaks[kept])
        guess = kept + int(share * (too_many - kept))
        return min(too_many - 1, max(kept + 1, guess))
    return (kept + too_many) // 2


def merged(chosen: list[Chosen]) -> Values:
    """Return the values of all changes, later ones over earlier ones."""
    values: Values = {}
    for one in chosen:
        values |= one.values
    return values
