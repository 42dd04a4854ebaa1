"""The best config that fits a card, by simulating candidates: as little as possible is given up, the rest buys speed.

Savings are given up in the order of `levers.savings`, as many as it takes; then every one of them is taken back that
turns out not to be needed. What memory is left then buys speed: more rows at a time or in packs, as many a step as
before, and fewer layers that recompute. No torch here: what simulates is given as a function.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmtune.config.schema import TrainingConfig
from vlmtune.config.values import Values, as_yaml, not_yet, value_at, words_of
from vlmtune.estimate.report import MemoryReport, StepTime
from vlmtune.estimate.scenario import Scenario
from vlmtune.estimate.search.candidates import EstimateWith, Search, Settled, merged
from vlmtune.estimate.search.spend import PaceWith, spend
from vlmtune.families.facts import ModelFacts

MARGIN = 0.03
"""Share of the budget that stays free: the estimate's bound on the low side."""
FAST_MARGIN = 0.01
"""Kept free beside it while candidates are simulated fast."""
MOST_CHANGES = 3


@dataclass(frozen=True)
class Change:
    """What is changed of a config, and why."""

    values: Values
    before: tuple[str, ...]
    """The values that these keys had, as YAML writes them."""
    reason: str

    @property
    def words(self) -> tuple[str, ...]:
        """What to give to `--set`."""
        return words_of(self.values)


@dataclass(frozen=True)
class Fit:
    """The config that a search ended with; where none fits, the nearest miss."""

    words: tuple[str, ...]
    """What to give to `--set` on top of the config that the search began with."""
    changes: tuple[Change, ...]
    report: MemoryReport
    fits: bool
    """With MARGIN of the budget kept free."""
    unchanged: MemoryReport
    """What the config that the search began with would take."""
    tried: int
    """Configs that were simulated."""


def fit_card(scenario: Scenario) -> Fit:
    """Return the config that fits the card with MARGIN of its budget to spare; the report counts against all of it."""
    budget_bytes = scenario.target.budget_bytes

    def with_free(share: float, fast: bool) -> EstimateWith:
        held = scenario.with_budget(int(budget_bytes * (1 - share)))
        return lambda values: held.with_values(values).estimate(fast=fast)

    def pace(values: Values, known: Sequence[MemoryReport]) -> StepTime | None:
        return scenario.with_values(values).pace(known)

    full, quick = with_free(MARGIN, fast=False), with_free(MARGIN + FAST_MARGIN, fast=True)
    fit = find_fit(scenario.config, scenario.facts, full, quick, pace)
    return replace(fit, report=replace(fit.report, budget_bytes=budget_bytes))


def find_fit(
    config: TrainingConfig, model: ModelFacts, estimate: EstimateWith, fast: EstimateWith, pace: PaceWith
) -> Fit:
    """Return the config that fits: searched with `fast`, confirmed with `estimate`; with it alone where they differ.

    They differ also where something would be given up of a config that fits.

    Args:
        estimate: must take MARGIN of the budget for used; `fast` MARGIN and FAST_MARGIN.
        pace: predicts time without simulating, from estimates whose rows are divided otherwise.
    """
    # A full estimate takes twice as long, and a search makes up to forty: one confirms what the fast ones found.
    quick, full = Search(config, model, fast), Search(config, model, estimate)
    found = _found(quick, pace)
    over = quick.base.peak_reserved_bytes / max(1, quick.base.budget_bytes) - 1
    gives_up_too_much = 0 < over < 2 * FAST_MARGIN and full.base.fits
    if gives_up_too_much or (quick.fits(found) and not full.fits(found)):
        found = _found(full, pace)
    changes = _as_changes(config, found)
    report = full.report(merged(found)) or full.base
    tried = len(quick.reports) + len(full.reports)
    return Fit(_all_words(changes), changes, report, report.fits, quick.base, tried)


def _found(search: Search, pace: PaceWith) -> list[Settled]:
    """Return what is to be changed so that the run fits and uses the memory that is left."""
    saved = [] if search.base.fits else search.save()
    return spend(search, saved, pace) if search.fits(saved) else saved


def cheapest_changes(search: Search) -> list[Change]:
    """Return up to three changes that make a run fit which does not, the cheapest first; empty where none does.

    First single changes, in the order of `levers.savings`, each as strong as it must be; where there is none, the
    shortest combination in that order. Each has been simulated.
    """
    config, single = search.config, list[Settled]()
    for saving in search.savings():
        is_new = not any(saving.values.keys() & other.values.keys() for other in single)
        if is_new and len(single) < MOST_CHANGES and (weakest := search.weakest([saving], saving)):
            single.append(weakest)
    if single:
        return [change for one in single for change in _as_changes(config, [one])]
    together = search.save()
    if not search.fits(together):
        return []
    changes = _as_changes(config, together)
    before = tuple(value for change in changes for value in change.before)
    values = {key: value for change in changes for key, value in change.values.items()}
    return [Change(values, before, "; ".join(change.reason for change in changes))]


def _all_words(changes: Sequence[Change]) -> tuple[str, ...]:
    return tuple(word for change in changes for word in change.words)


def _as_changes(config: TrainingConfig, chosen: list[Settled]) -> tuple[Change, ...]:
    """Return what differs from the config, each key with the change that settled it."""
    final, changes = merged(chosen), []
    for place, one in enumerate(chosen):
        later = {key for other in chosen[place + 1 :] for key in other.values}
        own = not_yet(config, {key: final[key] for key in one.values if key not in later})
        if own:
            before = tuple(as_yaml(value_at(config, key)) for key in own)
            changes.append(Change(own, before, one.reason))
    return tuple(changes)
