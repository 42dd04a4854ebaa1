"""One run that is to be done: its config, its plan for this machine, and the same with some words changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vlmtune.files import file_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.run_data import RunData
    from vlmtune.data.types import Sample
    from vlmtune.hub.source import ModelSource
    from vlmtune.plan.types import RunPlan

Words = tuple[str, ...]
"""What to give to `--set`."""


@dataclass(frozen=True)
class Job:
    """A run as the user asked for it, and what was decided for it."""

    path: Path
    words: Words
    loaded: "LoadedConfig"
    plan: "RunPlan"
    source: "ModelSource"

    def changed(self, words: Words) -> "Job":
        """Return the same run with more `--set` words."""
        from vlmtune.config.load import load_config

        more = (*self.words, *words)
        loaded = load_config(self.path, more)
        return Job(self.path, more, loaded, *make_run_plan(loaded, self.plan.revision))


def pinned_commit(loaded: "LoadedConfig") -> str | None:
    """Return the commit of the hub model that the run to be continued began with; None when the config wants another.

    A branch may have moved since: a run goes on with the files that it began with.
    """
    from vlmtune.plan.types import RunPlan
    from vlmtune.runs.folder import RunFolder

    plan = RunPlan.load(RunFolder.open_existing(loaded.config.run_dir).plan)
    wanted = loaded.config.model
    return plan.revision if (plan.model, plan.model_revision) == (wanted.name, wanted.revision) else None


def make_run_plan(loaded: "LoadedConfig", commit: str | None = None) -> "tuple[RunPlan, ModelSource]":
    """Return the plan for this machine and the model's source; imports torch to look at the device.

    With `commit` the hub is not asked which one a branch stands for.
    """
    from vlmtune.engine.runtime import prepare_environment
    from vlmtune.families import find_family
    from vlmtune.hub.source import open_model
    from vlmtune.plan.decide import make_plan

    prepare_environment()
    config = loaded.config
    source = open_model(config.model.name, commit or config.model.revision, loaded.base_dir)
    find_family(source.config, config.model.name)
    digest = file_sha256(loaded.resolve_path(config.data.train_path))
    from vlmtune.engine.runtime import probe_device

    return make_plan(config, source, probe_device(), digest), source


def read_data(loaded: "LoadedConfig", *, live: bool) -> "RunData":
    """Read and check the rows; raise one error that names every bad one. `live`: it may be shown on a terminal."""
    from vlmtune.data.run_data import RunData
    from vlmtune.data.samples import require_good
    from vlmtune.workflow.rows import read_rows

    data = loaded.config.data
    rows = read_rows(loaded, loaded.resolve_path(data.train_path), live=live)
    train_rows = require_good(rows, data.on_bad_row)
    val_rows: Sequence[Sample] = []
    if data.val_path:
        val_rows = require_good(read_rows(loaded, loaded.resolve_path(data.val_path), live=live), data.on_bad_row)
    skipped = tuple(f"{bad.where}: {bad.problem}" for bad in rows.bad_rows)
    if skipped:
        typer.echo(f"{len(skipped)} rows are skipped (data.on_bad_row: skip); report.json names them", err=True)
    return RunData(train_rows, val_rows, skipped, rows.notes)
