"""A run in its folder: opened, tried, and left so that it can be continued, whatever ends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.printing import say
from vlmtune.runs.lock import locked
from vlmtune.signals import all_as_ctrl_c, heed
from vlmtune.workflow.attempts import Flags, keep_job, train_and_retry
from vlmtune.workflow.job import Job

if TYPE_CHECKING:
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import TrainReport


def open_folder(job: Job) -> "RunFolder":
    """Return the run folder: a new one, or the one to go on with."""
    from vlmtune.runs.folder import RunFolder

    if job.begun is None:
        return RunFolder.create(job.run_dir)
    folder = RunFolder.open_existing(job.run_dir)
    _refuse_changed(job, folder)
    if is_finished(folder) and job.is_longer and folder.latest_checkpoint() is None:
        raise VlmtuneError(
            f"{folder.path} is finished and its checkpoints are gone, so it cannot take more steps",
            f"start a new run from what it has learned: --set model.adapter={folder.path}",
        )
    return folder


def is_finished(folder: "RunFolder") -> bool:
    """Return whether the run has learned all that it was to learn when it was last started."""
    outcome = folder.read_outcome()
    return outcome is not None and outcome.is_finished


def _refuse_changed(job: Job, folder: "RunFolder") -> None:
    """Raise when the run in the folder was started in another way that decides its result."""
    from vlmtune.plan.resume import differences

    has_checkpoint = folder.latest_checkpoint() is not None
    changed = differences(job.plan, job.begun, num_rows=job.num_rows, has_checkpoint=has_checkpoint)
    if changed:
        has_other_rows = any(one.startswith("data_sha256: ") for one in changed)
        if sources := _changed_sources(job):
            changed = [one for one in changed if not one.startswith("data_sha256: ")]
            changed += [f"{name} does not hold the rows that the run began with" for name in sources]
        raise VlmtuneError(
            f"{folder.path} was started differently and cannot be continued: {'; '.join(changed)}",
            _way_on(folder) if has_other_rows else "undo the change, or start a new run under another experiment_name",
        )


def _changed_sources(job: Job) -> list[str]:
    """Return the sources that are not what they were, where there are as many as there were."""
    then, now = job.begun.data_sources, job.data.files.sources
    if len(then) != len(now):
        return []
    return [source.name for digest, source in zip(then, now, strict=True) if digest != source.digest]


def _way_on(folder: "RunFolder") -> str:
    """Return how to go on where the data file has changed: rows are met in an order that follows from all of them."""
    return (
        "put the data file back as it was: a row that cannot be used is left out with --set data.on_bad_row=skip, "
        "without changing the file. Or start a new run under another experiment_name; it goes on from what "
        f"this one has learned when `vlmtune merge {folder.path} -o DIR` made its model.name: DIR"
    )


def train_in(folder: "RunFolder", job: Job, flags: Flags) -> "TrainReport":
    """Train and return the report; plan, config, log, adapter and report are in `folder` afterwards.

    Raises:
        VlmtuneError: what the user can change; a new folder in which nothing was learned is gone then.
    """
    with locked(folder), _interruptible(folder), _unless_trained_removed(folder, is_new=job.begun is None):
        heed()
        if job.is_longer:  # a kill before the new end is one of a run that has not finished
            folder.report_json.unlink(missing_ok=True)
        keep_job(job, folder)
        return train_and_retry(job, folder, flags)


@contextmanager
def _interruptible(folder: "RunFolder") -> Iterator[None]:
    """Say what is left after Ctrl-C or its like outside of the steps, or a second one, and after a full disk."""
    try:
        with all_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        kept = folder.latest_checkpoint()
        left = f"{kept.name} is the newest; continue with --resume" if kept else "there is no checkpoint yet"
        say(f"stopped: {left}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except OSError as error:
        from vlmtune.engine.checkpoints import disk_full
        from vlmtune.files import is_disk_full

        if not is_disk_full(error):
            folder.refuse_removed()
            raise
        raise disk_full(folder, f"a file of {folder.path}") from None


@contextmanager
def _unless_trained_removed(folder: "RunFolder", is_new: bool) -> Iterator[None]:
    """Remove a new run folder if the run ends before anything was learned: its name is free for the next try."""
    try:
        yield
    except BaseException:
        if is_new and not folder.read_log() and folder.latest_checkpoint() is None:
            import shutil

            shutil.rmtree(folder.path, ignore_errors=True)
        raise
