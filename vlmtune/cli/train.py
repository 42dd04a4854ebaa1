"""`vlmtune train`: everything that can be wrong is found before a model loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption
from vlmtune.errors import ExitCode, VlmtuneError

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.run_data import RunData
    from vlmtune.models.source import ModelSource
    from vlmtune.plan import RunPlan
    from vlmtune.report import RunFolder, TrainReport

EXAMPLE = "Example: [bold]vlmtune train configs/8gb.yaml --set training.learning_rate=1e-4[/bold]"


def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of this run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train as the config says; the run folder holds adapter, log and report afterwards."""
    from vlmtune.config.load import load_config

    loaded = load_config(config, overrides or ())
    data = _read_data(loaded)
    plan, source = make_run_plan(loaded)
    if dry_run:
        _print_plan(plan, as_json)
        return
    folder = _open_folder(loaded, plan, resume)
    if resume and _is_finished(folder):
        _print_finished(folder, as_json)
        return
    from rich.console import Console

    from vlmtune.engine.monitor import LiveView
    from vlmtune.engine.run import train as run
    from vlmtune.engine.runtime import quiet_libraries

    quiet_libraries()
    console = Console(stderr=as_json, highlight=False)
    view = LiveView(_title(plan), console, slowdown_c=_slowdown_c(plan))
    with _interruptible(folder), _unless_trained_removed(folder, is_new=not resume), view:
        report = run(plan, source, data, folder, view, resume=resume)
    _print_report(report, folder, as_json)
    if report.status == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)


def _read_data(loaded: "LoadedConfig") -> "RunData":
    """Read and check the rows; raise one error that names every bad one."""
    from vlmtune.cli.rows import read_rows
    from vlmtune.data.run_data import RunData
    from vlmtune.data.samples import require_good

    data = loaded.config.data
    rows = read_rows(loaded, loaded.resolve_path(data.train_path))
    train_rows = require_good(rows, data.on_bad_row)
    val_rows = []
    if data.val_path:
        val_rows = require_good(read_rows(loaded, loaded.resolve_path(data.val_path)), data.on_bad_row)
    skipped = tuple(f"{bad.where}: {bad.problem}" for bad in rows.bad_rows)
    if skipped:
        typer.echo(f"{len(skipped)} rows are skipped (data.on_bad_row: skip); report.json names them", err=True)
    return RunData(train_rows, val_rows, skipped, rows.notes)


def make_run_plan(loaded: "LoadedConfig") -> "tuple[RunPlan, ModelSource]":
    """Return the plan for this machine and the model's source; imports torch to look at the device."""
    import hashlib

    from vlmtune.engine.runtime import prepare_environment
    from vlmtune.models.families import find_family
    from vlmtune.models.source import open_model
    from vlmtune.plan import make_plan

    prepare_environment()
    config = loaded.config
    source = open_model(config.model.name, config.model.revision, loaded.base_dir)
    find_family(source.config, config.model.name)
    with loaded.resolve_path(config.data.train_path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    from vlmtune.engine.runtime import probe_device

    return make_plan(config, source, probe_device(), digest), source


def _open_folder(loaded: "LoadedConfig", plan: "RunPlan", resume: bool) -> "RunFolder":
    """Return the run folder: a new one with config and plan in it, or the one to go on with."""
    from vlmtune.config.dump import write_config
    from vlmtune.plan import RunPlan
    from vlmtune.report import RunFolder, library_versions, strict_json

    path = loaded.config.run_dir
    if resume:
        folder = RunFolder.open_existing(path)
        differences = plan.differences(RunPlan.load(folder.plan))
        if differences:
            raise VlmtuneError(
                f"{path} was started differently and cannot be continued: {'; '.join(differences)}",
                "undo the change, or start a new run under another experiment_name",
            )
        return folder
    folder = RunFolder.create(path)
    write_config(loaded, folder.config)
    plan.save(folder.plan)
    folder.versions.write_text(strict_json(library_versions(), indent=2) + "\n", encoding="utf-8")
    return folder


def _is_finished(folder: "RunFolder") -> bool:
    import json

    try:
        return json.loads(folder.report_json.read_text(encoding="utf-8"))["status"] == "finished"
    except (FileNotFoundError, ValueError):  # a full disk or a kill can leave half a report
        return False


@contextmanager
def _interruptible(folder: "RunFolder") -> Iterator[None]:
    """Say what is left after Ctrl-C outside of the steps, or a second one."""
    try:
        yield
    except KeyboardInterrupt:
        kept = folder.latest_checkpoint()
        left = f"{kept.name} is the newest; continue with --resume" if kept else "there is no checkpoint yet"
        typer.echo(f"stopped: {left}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


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


def _title(plan: "RunPlan") -> str:
    return f"{plan.experiment_name}: {plan.method} of {Path(plan.model_name).name} on {plan.device}"


def _slowdown_c(plan: "RunPlan") -> int | None:
    from vlmtune.engine.sensors import read_gpu

    reading = read_gpu() if plan.device == "cuda" else None
    return reading.slowdown_c if reading else None


def _print_plan(plan: "RunPlan", as_json: bool) -> None:
    import dataclasses

    from vlmtune.cli import render

    if as_json:
        render.print_json(dataclasses.asdict(plan))
        return
    table = render.table("plan", "value")
    for name, value in dataclasses.asdict(plan).items():
        if name != "choices":
            table.add_row(name, "-" if value is None else str(value))
    out = render.console()
    out.print(table)
    for choice in plan.choices:
        out.print(f"{choice.key}: {choice.value} ({choice.reason})", soft_wrap=True)


def _print_finished(folder: "RunFolder", as_json: bool) -> None:
    import json

    text = folder.report_json.read_text(encoding="utf-8")
    steps = json.loads(text)["steps"]
    done = f"{folder.path} is finished: {steps} step{'s' * (steps != 1)}; nothing to do"
    typer.echo(text if as_json else done + "\n", nl=False)


def _print_report(report: "TrainReport", folder: "RunFolder", as_json: bool) -> None:
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    from vlmtune.data.types import count

    loss = "-" if report.train_loss_last is None else f"{report.train_loss_last:.4f}"
    held_out = "" if report.eval_loss is None else f", held-out loss {report.eval_loss:.4f}"
    typer.echo(f"{report.status}: {report.steps} steps in {report.seconds:.0f} s, loss {loss}{held_out}")
    if report.num_cut_rows:
        cut_rows, cut_tokens = count(report.num_cut_rows, "row"), count(report.num_cut_tokens, "token")
        typer.echo(f"{cut_rows} cut by {cut_tokens} in all (data.truncation: cut)")
    if report.status == "interrupted":
        typer.echo(f"{folder.latest_checkpoint()} is written; continue with --resume")
    else:
        typer.echo(f"adapter, log and report.html in {folder.path}")
