"""A try of a run in this process, which may be one of several."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmtune.workflow.job import Job

if TYPE_CHECKING:
    from vlmtune.engine.monitor import RunConsole
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.plan.types import RunPlan
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import TrainReport


def try_here(job: Job, folder: "RunFolder", *, as_json: bool, resume: bool) -> "TrainReport | OutOfMemory":
    """Return the report of the run, or the error when memory did not suffice: without what holds the memory."""
    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.oom import OutOfMemory
    from vlmtune.engine.runtime import freeze_libraries, quiet_libraries
    from vlmtune.engine.train import train

    quiet_libraries()
    freeze_libraries()
    notes = (*job.data.notes, *(retry.note for retry in folder.read_retries()))
    data = replace(job.data, notes=notes)
    with LiveView(_title(job.plan), _console(as_json), slowdown_c=_slowdown_c(job.plan)) as view:
        try:
            return train(job.plan, job.source, data, folder, view, resume=resume)
        except OutOfMemory as error:
            return error.without_traceback()


def _console(as_json: bool) -> "RunConsole":
    """Return where the run is shown; of several processes the first one shows it."""
    from vlmtune.engine.monitor import RunConsole
    from vlmtune.engine.ranks import group

    if group.is_first():
        return RunConsole(stderr=as_json)
    return RunConsole(file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for as long as the process lives


def _title(plan: "RunPlan") -> str:
    on = f"{plan.num_gpus} × {plan.device}" if plan.num_gpus > 1 else plan.device
    return f"{plan.experiment_name}: {plan.method} of {Path(plan.model_name).name} on {on}"


def _slowdown_c(plan: "RunPlan") -> int | None:
    if plan.device != "cuda":
        return None
    from vlmtune.hardware.at_hand import reading_at_hand

    reading = reading_at_hand()
    return reading.slowdown_c if reading else None
