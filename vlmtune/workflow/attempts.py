"""Trying a run: estimate, train, and after running out of memory the next, smaller try from the newest checkpoint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmtune.printing import say
from vlmtune.workflow.here import try_here
from vlmtune.workflow.job import Job
from vlmtune.workflow.launch import Expected, first_fitting, refuse_too_large, settle, with_changes
from vlmtune.workflow.ranks import Try, try_launched, try_on_several

if TYPE_CHECKING:
    from vlmtune.config.values import Values
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import TrainReport

MAX_RETRIES = 5


@dataclass(frozen=True)
class Flags:
    """How the command was called."""

    force: bool
    as_json: bool


def train_and_retry(job: Job, folder: "RunFolder", flags: Flags) -> "TrainReport":
    """Estimate and train; after running out of memory, change the run and go on if the config says so."""
    from vlmtune.engine.oom import OutOfMemory, free_memory
    from vlmtune.engine.ranks import group
    from vlmtune.plan.file import save_plan

    for num_retries in range(MAX_RETRIES + 1):
        settled, expected = settle(job, err=flags.as_json)
        if settled is not job:
            save_plan(settled.plan, folder.plan)  # the config stays open: a run may go on with one GPU
            job = settled
        if not flags.force and num_retries == 0:
            refuse_too_large(job, expected)
        folder.write_estimate(expected.as_json() if expected else None)
        outcome = _attempt(job, folder, flags, resume=job.begun is not None or num_retries > 0)
        if not isinstance(outcome, OutOfMemory):
            return outcome
        # The failed run must be gone before the next is estimated: what is free on the card is what it may take.
        free_memory()
        values = None
        may_retry = group.size() == 1  # torchrun starts its processes anew
        if may_retry and job.loaded.config.hardware.on_oom == "retry" and num_retries < MAX_RETRIES:
            values = _next_change(outcome, job, expected, has_checkpoint=folder.latest_checkpoint() is not None)
        if values is None:
            break
        job = _changed(job, values, folder, outcome)
        say(folder.read_retries()[-1].note, err=flags.as_json)
    raise with_changes(outcome, expected)


def _attempt(job: Job, folder: "RunFolder", flags: Flags, *, resume: bool) -> "TrainReport | OutOfMemory":
    """Return the report of the run, or the error when memory did not suffice: without what holds the memory."""
    from vlmtune.engine.ranks import group
    from vlmtune.hub.download import checkpoint_folder

    checkpoint_folder(job.plan.model, job.plan.revision, live=not flags.as_json)
    one = Try(job, folder, flags.as_json, resume)
    if group.size() > 1:
        return try_launched(one)
    return try_on_several(one) if job.plan.num_gpus > 1 else try_here(*one[:2], as_json=flags.as_json, resume=resume)


def _next_change(error: "OutOfMemory", job: Job, expected: Expected | None, has_checkpoint: bool) -> "Values | None":
    """Return the first saving, in the order in which savings are given up, that the run may still make and would fit.

    Where none would, or nobody can tell, it is the first at all, as price lists have it; None when there is nothing
    left to save.
    """
    from vlmtune import levers
    from vlmtune.levers.base import OnResume

    allowed = {OnResume.FREE} if has_checkpoint else {OnResume.FREE, OnResume.UNTIL_CHECKPOINT}
    config = job.loaded.config
    facts = job.source.facts(config.model.name)
    savings = [saving for lever, saving in levers.savings() if lever.on_resume in allowed]
    candidates = [(saving, steps) for saving in savings if (steps := saving.steps(config, facts, 0))]
    if not candidates:
        return None
    fitting = first_fitting(candidates, error, expected) if expected else None
    first, steps = candidates[0]
    return fitting or first.priced(steps)[0]


def _changed(job: Job, values: "Values", folder: "RunFolder", error: "OutOfMemory") -> Job:
    """Return the run with a change, kept in its folder."""
    from vlmtune.config.values import words_of
    from vlmtune.runs.records import Retry

    changed, words = job.with_values(values), words_of(values)
    checkpoint = folder.latest_checkpoint()
    start = checkpoint.name if checkpoint else "the start"
    folder.add_retry(Retry(words, f"{error.headline}; from {start} on: {', '.join(words)}"))
    keep_job(changed, folder)
    return changed


def keep_job(job: Job, folder: "RunFolder") -> None:
    """Write plan, config and versions into the run folder.

    The plan goes first: it makes the folder one that --resume takes, and resuming writes what a kill has left out.
    """
    from vlmtune.config.dump import write_config
    from vlmtune.files import write_json
    from vlmtune.plan.file import save_plan
    from vlmtune.runs.versions import library_versions

    save_plan(job.plan, folder.plan)
    write_config(job.loaded, folder.config)
    if not folder.versions.exists():
        write_json(folder.versions, library_versions())
