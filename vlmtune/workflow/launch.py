"""The estimate inside `train`: said before the model loads, refused when it cannot fit, asked again after an OOM."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.units import GIB

if TYPE_CHECKING:
    from vlmtune.config.values import Values
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.estimate.report import MemoryReport
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.estimate.search.candidates import EstimateWith
    from vlmtune.hardware.cards import Target
    from vlmtune.plan.types import RunPlan
    from vlmtune.workflow.job import Job

LESS_SHARE = 0.95


@dataclass(frozen=True)
class Expected:
    """What a run was estimated to take of the card at hand."""

    report: "MemoryReport"
    scenario: "Scenario"

    @property
    def line(self) -> str:
        """The estimate in one line."""
        needed, budget = self.report.peak_reserved_bytes, self.scenario.target.budget_bytes
        share = f" ({needed / budget:.0%})" if budget else ""
        return f"estimate: {needed / GIB:.2f} of {budget / GIB:.2f} GiB{share}, longest row {self.report.worst_row}"

    def as_json(self) -> dict:
        """Return the estimate for programs and for the run folder."""
        return asdict(self.report)


def expect(job: "Job", *, err: bool) -> Expected | None:
    """Say in one line what the run will take of the GPU, and return it; None on a CPU, or where nobody can tell.

    Raises:
        VlmtuneError: a row is refused, as in training.
    """
    try:
        scenario = scenario_of(job)
        if scenario is None:
            return None
        expected = Expected(scenario.estimate(fast=True), scenario)
    except VlmtuneError as error:
        if error.code != ExitCode.CANNOT_TELL:
            raise
        typer.echo(f"estimate: none, the run goes on without it: {error.message}", err=err)
        return None
    typer.echo(expected.line, err=err)
    return expected


def scenario_of(job: "Job") -> "Scenario | None":
    """Return the run as it is about to begin on the card at hand; None on a CPU."""
    from vlmtune.engine.runtime import probe_device, quiet_libraries
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.workflow.job import given_rows

    target = target_of(job.plan)
    if target is None:
        return None
    quiet_libraries()
    rows, sha256 = given_rows(job.data), job.plan.data_sha256
    return Scenario(job.loaded, job.source, target, rows, probe_device(), sha256)


def target_of(plan: "RunPlan") -> "Target | None":
    """Return the card that the plan runs on; None on a CPU."""
    if plan.device != "cuda":
        return None
    from vlmtune.hardware.at_hand import target_at_hand

    return target_at_hand()


def refuse_too_large(expected: Expected) -> None:
    """Raise when the run cannot fit, with the changes that would make it fit."""
    if expected.report.fits:
        return
    target = expected.scenario.target
    needed, budget = expected.report.peak_reserved_bytes / GIB, target.budget_bytes / GIB
    changes = _changes_in_words(expected, target.budget_bytes)
    raise VlmtuneError(
        f"it does not fit: {needed:.2f} GiB are needed, {budget:.2f} GiB can be reserved on "
        f"{target.card.name} (longest row {expected.report.worst_row})",
        f"{f'would fit: {changes}' if changes else 'no change of the config is known to make it fit'}; "
        "--force tries it all the same",
        code=ExitCode.DOES_NOT_FIT,
    )


def with_changes(error: "OutOfMemory", expected: Expected | None) -> VlmtuneError:
    """Return the error of a failed run with the changes that would have fitted; its own hint where nobody can tell."""
    if expected is None:
        return error
    changes = _changes_in_words(expected, budget_left(error, expected))
    return VlmtuneError(error.message, f"would have fitted: {changes}" if changes else error.hint)


def first_fitting(candidates: "Sequence[Values]", error: "OutOfMemory", expected: Expected) -> "Values | None":
    """Return the first of some changes that would have fitted; None where none would, or nobody can tell."""
    estimate_with = _estimator(expected, budget_left(error, expected))
    for values in candidates:
        try:
            if estimate_with(values).fits:
                return values
        except VlmtuneError:  # such as texts that cannot be cut further
            continue
    return None


def budget_left(error: "OutOfMemory", expected: Expected) -> int:
    """Return what a smaller run must fit into: what the card really had to give.

    Where the estimate said that this was enough, it was too low: then the smaller run must be estimated at clearly
    less than the one that failed.
    """
    estimated = int(expected.report.peak_reserved_bytes * LESS_SHARE)
    return min(expected.scenario.target.budget_bytes, error.available_bytes, estimated)


def _changes_in_words(expected: Expected, budget_bytes: int) -> str | None:
    """Return the cheapest changes that fit into a budget as a hint, None when there are none or nobody can tell."""
    from vlmtune.estimate.search.fit import cheapest_changes

    try:
        changes = cheapest_changes(expected.scenario.config, expected.report, _estimator(expected, budget_bytes))
    except VlmtuneError:
        return None
    return "; or ".join(" ".join(f"--set {word}" for word in change.words) for change in changes) or None


def _estimator(expected: Expected, budget_bytes: int) -> "EstimateWith":
    """Say that it takes a while, and return what estimates the run with other values against a budget."""
    typer.echo("looking for changes that fit ...", err=True)
    held = expected.scenario.with_budget(budget_bytes)
    return lambda values: held.with_values(values).estimate(fast=True)
