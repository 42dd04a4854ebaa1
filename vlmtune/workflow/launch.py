"""The estimate inside `train`: said before the model loads, refused when it cannot fit, asked again after an OOM."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.estimate.report import would_swap
from vlmtune.printing import say
from vlmtune.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vlmtune.config.values import Values
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.estimate.report import MainMemoryNeed, MemoryReport
    from vlmtune.estimate.scenario import Scenario
    from vlmtune.estimate.search.candidates import Search
    from vlmtune.hardware.cards import Target
    from vlmtune.levers.base import Saving
    from vlmtune.plan.types import RunPlan
    from vlmtune.workflow.job import Job

LESS_SHARE = 0.95
PARTS_SHOWN = 3


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
        card = f"{needed / GIB:.2f} of {budget / GIB:.2f} GiB{share}"
        need, available = self.report.main_memory.peak_bytes, self.report.main_memory_available_bytes
        main = "" if available is None else f", {need / GIB:.1f} of {available / GIB:.1f} GiB of main memory"
        time = f"; predicted {self.report.time.pace}" if self.report.time else ""
        return f"estimate: {card}, longest row {self.report.worst_row}{main}{time}"

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
        say(f"estimate: none, the run goes on without it: {error.message}", err=err)
        return None
    say(expected.line, err=err)
    return expected


def settle(job: "Job", *, err: bool) -> "tuple[Job, Expected | None]":
    """Return the run as it will be tried, its layers shared where one GPU does not hold it, and what it will take.

    Raises:
        VlmtuneError: as in `expect`.
    """
    from vlmtune.levers.gpus.shard import ALWAYS, may_share

    expected = expect(job, err=err)
    if expected is None or expected.report.fits or not may_share(job.loaded.config, job.plan.num_gpus):
        return job, expected
    say("one GPU does not hold this: the GPUs share the language model's layers (hardware.shard)", err=err)
    shared = job.with_values(ALWAYS)
    return shared, expect(shared, err=err)


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
    """Return the card that the plan runs on, with the room of the fullest of several; None on a CPU."""
    if plan.device != "cuda":
        return None
    from vlmtune.engine.ranks import group
    from vlmtune.engine.ranks.single import gpus_there
    from vlmtune.hardware.at_hand import target_at_hand

    target = target_at_hand()
    if plan.num_gpus == 1 or group.size() > 1:  # a launcher's other processes hold contexts by now
        return target
    return with_room_of(target, gpus_there()[1 : plan.num_gpus])


def with_room_of(target: "Target", others: Sequence[str]) -> "Target":
    """Return a card with what every other one of a run has room for too, and name the one that has least."""
    from vlmtune.hardware.sensors import read_gpus

    for name, gpu in zip(others, read_gpus(others), strict=False):
        budget_bytes = max(0, gpu.total_bytes - gpu.used_bytes - target.card.context_bytes)
        if budget_bytes < target.budget_bytes:
            users = f", used by {', '.join(f'{one.name} (pid {one.pid})' for one in gpu.processes)}" * bool(
                gpu.processes
            )
            say(f"GPU {name} has less room: {budget_bytes / GIB:.2f} GiB of {gpu.name}{users}", err=True)
            target = replace(target, budget_bytes=budget_bytes)
    return target


def refuse_too_large(job: "Job", expected: Expected | None) -> None:
    """Raise when the run cannot fit, with the changes that would make it fit: main memory on a CPU too."""
    if job.plan.device == "cpu":
        _refuse_swapping(*_main_memory_on_cpu(job.plan))
    if expected is None or expected.report.fits:
        return
    _refuse_swapping(expected.report.main_memory, expected.report.main_memory_available_bytes)
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


def _refuse_swapping(need: "MainMemoryNeed", available_bytes: int | None) -> None:
    """Raise when main memory does not hold the run."""
    if not would_swap(need, available_bytes):
        return
    parts = ", ".join(f"{part.name} {part.bytes / GIB:.2f}" for part in need.parts[:PARTS_SHOWN])
    raise VlmtuneError(
        f"it does not fit: {need.peak_bytes / GIB:.2f} GiB of main memory are needed, "
        f"{available_bytes / GIB:.2f} GiB are available (the most takes: {parts} GiB)",
        "close other programs, or raise the container's limit; --force tries it all the same",
        code=ExitCode.DOES_NOT_FIT,
    )


def _main_memory_on_cpu(plan: "RunPlan") -> "tuple[MainMemoryNeed, int | None]":
    """Return what a run on a CPU takes at least, activations not counted, and what is available."""
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.estimate.main_memory import need_at_least
    from vlmtune.hardware.main_memory import available_to_this_process
    from vlmtune.models.build import base_of, build_model, family_of

    quiet_libraries()
    model = base_of(build_model(plan, weights="none"))
    return need_at_least(model, plan, family_of(plan)), available_to_this_process()


def with_changes(error: "OutOfMemory", expected: Expected | None) -> VlmtuneError:
    """Return the error of a failed run with the changes that would have fitted; its own hint where nobody can tell."""
    if expected is None:
        return error
    changes = _changes_in_words(expected, budget_left(error, expected))
    return VlmtuneError(error.message, f"would have fitted: {changes}" if changes else error.hint)


def first_fitting(
    savings: "Sequence[tuple[Saving, list[Values]]]", error: "OutOfMemory", expected: Expected
) -> "Values | None":
    """Return the weakest fitting step of the first saving that would have fitted; None where none would.

    Or where nobody can tell.
    """
    from vlmtune.estimate.search.candidates import Settled

    with _search(expected, budget_left(error, expected)) as search:
        for saving, steps in savings:
            strongest = Settled(saving.reason, tuple(steps), len(steps) - 1, saving)
            if weakest := search.weakest([strongest], strongest):
                return weakest.values
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
        with _search(expected, budget_bytes) as search:
            changes = cheapest_changes(search)
    except VlmtuneError:
        return None
    return "; or ".join(" ".join(f"--set {word}" for word in change.words) for change in changes) or None


@contextmanager
def _search(expected: Expected, budget_bytes: int) -> "Iterator[Search]":
    """Give the search for values with which the run fits a budget; say that it takes a while, and where it is."""
    from vlmtune.engine.runtime import collector_paused
    from vlmtune.estimate.search.candidates import Search
    from vlmtune.workflow.progress import simulating

    say("looking for changes that fit ...", err=True)
    with simulating("as it is", live=True) as tell, collector_paused():
        held = replace(expected.scenario, tell=tell).with_budget(budget_bytes)
        too_large = replace(expected.report, budget_bytes=budget_bytes)
        yield Search(held.config, held.facts, lambda values: held.with_values(values).estimate(fast=True), too_large)
