"""One run that is to be done: its config, its rows, its plan for this machine, and the same with other values."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlmtune.errors import VlmtuneError
from vlmtune.printing import say

Resume = Literal["newest", "auto"]
"""How a run goes on: it must have begun, or it begins where it has not."""
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlmtune.config.load import LoadedConfig
    from vlmtune.config.values import Values
    from vlmtune.data.run_data import RunData
    from vlmtune.data.types import Sample
    from vlmtune.estimate.given_rows import GivenRows
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan
    from vlmtune.runs.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """A run as the user asked for it, and what was decided for it."""

    loaded: "LoadedConfig"
    plan: "RunPlan"
    source: "ModelSource"
    data: "RunData"
    run_dir: Path
    begun: "RunPlan | None" = None
    """Of the run that is to be continued, with its base model where it is now."""
    told: tuple[str, ...] = ()
    """What people are told before the run: how many steps there will be, how boxes are written, and warnings."""

    @property
    def num_rows(self) -> int:
        """Rows that an epoch takes."""
        return self.data.rows_per_epoch

    @property
    def is_longer(self) -> bool:
        """Whether it is to go on with more steps than it had."""
        from vlmtune.plan.resume import is_longer

        return self.begun is not None and is_longer(self.plan, self.begun, self.num_rows)

    def with_values(self, values: "Values") -> "Job":
        """Return the same run with other values; nothing is read again, so no edit made meanwhile enters it."""
        from vlmtune.engine.runtime import probe_device
        from vlmtune.plan.decide import make_plan

        loaded = self.loaded.with_values(values)
        plan = make_plan(loaded.config, self.source, probe_device(), self.plan.data_sha256, given_rows(self.data))
        return replace(self, loaded=loaded, plan=replace(_of_data(plan, self.data), model_name=self.plan.model_name))


def prepare(
    path: Path, words: tuple[str, ...], *, resume: Resume | None, err: bool, base_model: str | None = None
) -> Job:
    """Return the run of a config file and `--set` words, rows checked; with `resume` as the run has changed itself.

    `auto` is a new run where none has begun. `base_model` says where the base of a run that is to be continued is now.

    Raises:
        VlmtuneError: whatever can be wrong with config, rows or the model's small files.
    """
    from vlmtune.data.boxes.check import told_of_boxes
    from vlmtune.data.boxes.writing import writer_for
    from vlmtune.engine.ranks.single import refuse_several_processes
    from vlmtune.plan.length import begun_values, open_values, told_of_length
    from vlmtune.plan.resume import told_of_longer
    from vlmtune.runs.folder import RunFolder
    from vlmtune.workflow.fitting import fitting_data
    from vlmtune.workflow.rows import with_commits
    from vlmtune.workflow.start import start_on_gpu
    from vlmtune.workflow.started import refuse_other_model

    refuse_several_processes()
    loaded, run_dir, begun = _opened(path, words, resume, err, base_model)
    loaded, commits = with_commits(loaded, begun.data_commits if begun else {})
    data = replace(read_data(loaded, live=not err), commits=commits)
    notes, commit = start_on_gpu(), _pinned_commit(loaded, begun)
    data = fitting_data(data, *make_run_plan(loaded, commit=commit))
    chosen = begun_values(loaded.config, begun) if begun else open_values(loaded.config, data.rows_per_epoch)
    loaded = loaded.with_values(chosen, "the number of rows") if chosen else loaded
    plan, source = make_run_plan(loaded, data, commit)
    if begun and plan.model == begun.model:
        plan = replace(plan, model_name=begun.model_name)  # written otherwise, as from the run folder
    refuse_other_model(plan)
    boxes = told_of_boxes(data.train.samples, writer_for(plan, source))
    goes_on = begun and RunFolder(run_dir).latest_checkpoint()
    longer = told_of_longer(plan, begun, data.rows_per_epoch) if goes_on else None
    lines = (*told_of_length(loaded.config.training, data.rows_per_epoch, chosen), *boxes, *data.warnings)
    lines = (*lines, longer) if longer else lines
    return Job(loaded, plan, source, replace(data, notes=(*data.notes, *lines, *notes)), run_dir, begun, lines)


def _opened(
    path: Path, words: tuple[str, ...], resume: Resume | None, err: bool, base_model: str | None
) -> "tuple[LoadedConfig, Path, RunPlan | None]":
    """Return the config, the run folder, and the plan of the run that is to be continued."""
    from vlmtune.config.load import load_config
    from vlmtune.runs.folder import RunFolder

    loaded = load_config(path, words)
    run_dir = path.parent if resume and RunFolder(path.parent).is_config(path) else loaded.config.run_dir
    if resume is None or (resume == "auto" and not RunFolder(run_dir).has_begun()):
        if base_model:
            raise VlmtuneError(
                f"--model says where the base of a run that goes on was moved, and {run_dir} has not begun",
                "a new run's model is named by model.name",
            )
        return loaded, run_dir, None
    folder = RunFolder.open_existing(run_dir)
    begun = _begun(folder, base_model)
    if changes := _changes_of(folder, err):
        loaded = load_config(path, (*words, *changes))
    return loaded.with_values({"model.name": begun.model}) if base_model else loaded, run_dir, begun


def _changes_of(folder: "RunFolder", err: bool) -> tuple[str, ...]:
    """Say and return the changes that the run to be continued has made of itself, as `--set` words."""
    retries = folder.read_retries()
    for retry in retries:
        say(retry.note, err=err)
    return tuple(word for retry in retries for word in retry.words)


def _begun(folder: "RunFolder", base_model: str | None) -> "RunPlan":
    """Return the plan of the run that is to be continued, with its base model where it is."""
    from vlmtune.plan.file import load_plan
    from vlmtune.plan.moved import refuse_moved, with_base

    begun = load_plan(folder.plan)
    if base_model:
        return replace(with_base(begun, base_model), model_revision=None)
    refuse_moved(begun, folder.path)
    return begun


def _pinned_commit(loaded: "LoadedConfig", begun: "RunPlan | None") -> str | None:
    """Return the commit of the hub model that the run to be continued began with; None when the config wants another.

    A branch may have moved since: a run goes on with the files that it began with.
    """
    wanted = loaded.config.model
    is_same = begun and (begun.model, begun.model_revision) == (wanted.name, wanted.revision)
    return begun.revision if is_same else None


def given_rows(data: "RunData") -> "GivenRows":
    """Return a run's rows as plans and estimates ask of them."""
    from vlmtune.estimate.given_rows import GivenRows

    return GivenRows(data.train, data.val, data.files)


def make_run_plan(
    loaded: "LoadedConfig", data: "RunData | None" = None, commit: str | None = None
) -> "tuple[RunPlan, ModelSource]":
    """Return the plan for this machine and the model's source; imports torch to look at the device.

    With `commit` the hub is not asked which one a branch stands for.
    """
    from vlmtune.engine.runtime import probe_device
    from vlmtune.hub.source import open_model
    from vlmtune.plan.decide import make_plan
    from vlmtune.plan.prequantised import refuse_other_bits
    from vlmtune.workflow.started import with_adapter

    config = loaded.config
    source = with_adapter(loaded, open_model(config.model.name, commit or config.model.revision, loaded.base_dir))
    refuse_other_bits(loaded, source.facts(config.model.name))
    plan = make_plan(config, source, probe_device(), data.digest if data else "", data and given_rows(data))
    return _of_data(plan, data) if data else plan, source


def _of_data(plan: "RunPlan", data: "RunData") -> "RunPlan":
    """Return a plan with what is kept of the sources of a run's rows."""
    sources = tuple(source.digest for source in data.files.sources)
    return replace(plan, data_sources=sources, data_commits=dict(data.commits))


def read_data(loaded: "LoadedConfig", *, live: bool) -> "RunData":
    """Read and check the rows; raise one error that names every bad one. `live`: it may be shown on a terminal."""
    from vlmtune.data.run_data import MeasuredRows, RunData, digest_of, warning_of_shared_rows
    from vlmtune.data.samples import require_good
    from vlmtune.metrics.suit import refuse_metrics
    from vlmtune.workflow.rows import read_rows, read_training

    data = loaded.config.data
    read = read_training(loaded, live=live)
    train_rows = require_good(read.rows, data.on_bad_row)
    held_out = read_rows(loaded, data.val_path, live=live) if data.val_path else None
    val_rows: Sequence[Sample] = []
    if held_out or read.held_out:
        val_rows = require_good(held_out.rows if held_out else read.held_out, data.on_bad_row)
        evaluation = loaded.config.evaluation
        refuse_metrics(evaluation.metrics, val_rows, in_training=evaluation.generate_rows > 0)
    warning = warning_of_shared_rows(train_rows, val_rows, read.files, held_out and held_out.files)
    skipped = tuple(f"{bad.where}: {bad.problem}" for bad in read.rows.bad_rows)
    train, val = (MeasuredRows(samples, data.on_bad_row) for samples in (train_rows, val_rows))
    warnings, digest = (warning,) if warning else (), digest_of(read.files, data.max_samples, data.val_fraction)
    return RunData(train, val, skipped, read.rows.notes, warnings, read.files, digest)
