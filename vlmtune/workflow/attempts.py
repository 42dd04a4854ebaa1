"""Trying a run: estimate, train, and after running out of memory the next, smaller try from the newest checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vlmtune.workflow.job import Job, Words
from vlmtune.workflow.launch import Expected, expect, first_fitting, refuse_too_large, with_changes

if TYPE_CHECKING:
    from vlmtune.data.run_data import RunData
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.plan.types import RunPlan
    from vlmtune.runs.folder import RunFolder, TrainReport

MAX_RETRIES = 5
KEPT_BY_A_CHECKPOINT = frozenset(
    {
        "hardware.gradient_checkpointing",
        "hardware.checkpointed_layers",
        "training.batch_size",
        "training.gradient_accumulation_steps",
    }
)
"""Keys that a run can change on its way: adapters, rows of each step and optimizer states stay what they are."""
KEPT_AT_THE_START = frozenset({"training.optim", "data.image_size"})
"""Keys besides, before there is a checkpoint: it holds one optimizer's states, and a place in one order of the rows,
which follows their lengths and so the size of their images."""


@dataclass(frozen=True)
class Flags:
    """How the command was called."""

    resume: bool
    force: bool
    as_json: bool


def train_and_retry(job: Job, data: "RunData", folder: "RunFolder", flags: Flags) -> "TrainReport":
    """Estimate and train; after running out of memory, change the run and go on if the config says so."""
    from vlmtune.engine.oom import OutOfMemory, free_memory

    for num_retries in range(MAX_RETRIES + 1):
        expected = expect(job, data.train, err=flags.as_json)
        if expected and not flags.force and num_retries == 0:
            refuse_too_large(job, data.train, expected)
        folder.write_estimate(expected.as_json() if expected else None)
        outcome = _attempt(job, data, folder, flags, resume=flags.resume or num_retries > 0)
        if not isinstance(outcome, OutOfMemory):
            return outcome
        free_memory()
        words = None
        if job.loaded.config.hardware.on_oom == "retry" and num_retries < MAX_RETRIES:
            words = _next_change(outcome, job, data, expected, has_checkpoint=folder.latest_checkpoint() is not None)
        if words is None:
            break
        job = _changed(job, words, folder, outcome)
        typer.echo(folder.read_retries()[-1].note, err=flags.as_json)
    raise with_changes(outcome, job, data.train, expected)


def _attempt(
    job: Job, data: "RunData", folder: "RunFolder", flags: Flags, *, resume: bool
) -> "TrainReport | OutOfMemory":
    """Return the report of the run, or the error when memory did not suffice: without what holds the memory."""
    from rich.console import Console

    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.train import train as run
    from vlmtune.hub.download import checkpoint_folder

    quiet_libraries()
    checkpoint_folder(job.plan.model, job.plan.revision, live=not flags.as_json)
    console = Console(stderr=flags.as_json, highlight=False)
    data = replace(data, notes=(*data.notes, *(retry.note for retry in folder.read_retries())))
    with LiveView(_title(job.plan), console, slowdown_c=_slowdown_c(job.plan)) as view:
        try:
            return run(job.plan, job.source, data, folder, view, resume=resume)
        except OutOfMemory as error:
            return error.without_traceback()


def _next_change(
    error: "OutOfMemory", job: Job, data: "RunData", expected: Expected | None, has_checkpoint: bool
) -> Words | None:
    """Return the first saving, in the order in which savings are given up, that changes allowed keys and would fit.

    Where none would, or nobody can tell, it is the first at all; None when there is nothing left to save.
    """
    from vlmtune.levers.base import SAVINGS, model_facts, words_of

    allowed = KEPT_BY_A_CHECKPOINT if has_checkpoint else KEPT_BY_A_CHECKPOINT | KEPT_AT_THE_START
    config = job.loaded.config
    facts = model_facts(job.source, config.model.name)
    steps = (values for saving in SAVINGS for values in saving.steps(config, facts, 0))
    candidates = [words_of(values) for values in steps if set(values) <= allowed]
    fitting = first_fitting(candidates, error, job, data.train, expected) if expected and candidates else None
    return fitting or next(iter(candidates), None)


def _changed(job: Job, words: Words, folder: "RunFolder", error: "OutOfMemory") -> Job:
    """Return the run with a change, kept in its folder."""
    from vlmtune.runs.folder import Retry

    changed = job.changed(words)
    checkpoint = folder.latest_checkpoint()
    start = checkpoint.name if checkpoint else "the start"
    folder.add_retry(Retry(words, f"{error.headline}; from {start} on: {', '.join(words)}"))
    keep_job(changed, folder)
    return changed


def keep_job(job: Job, folder: "RunFolder") -> None:
    """Write config and plan into the run folder."""
    from vlmtune.config.dump import write_config

    write_config(job.loaded, folder.config)
    job.plan.save(folder.plan)


def _title(plan: "RunPlan") -> str:
    return f"{plan.experiment_name}: {plan.method} of {Path(plan.model_name).name} on {plan.device}"


def _slowdown_c(plan: "RunPlan") -> int | None:
    if plan.device != "cuda":
        return None
    from vlmtune.hardware.at_hand import reading_at_hand

    reading = reading_at_hand()
    return reading.slowdown_c if reading else None
