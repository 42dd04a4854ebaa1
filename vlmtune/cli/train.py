"""`vlmtune train`: everything that can be wrong is found before a model loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption
from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.workflow.attempts import Flags, keep_job, train_and_retry
from vlmtune.workflow.job import Job, make_run_plan, pinned_commit, read_data

if TYPE_CHECKING:
    from vlmtune.config.load import LoadedConfig
    from vlmtune.data.run_data import RunData
    from vlmtune.plan.types import RunPlan
    from vlmtune.runs.folder import RunFolder, TrainReport

EXAMPLE = "Example: [bold]vlmtune train configs/8gb.yaml --set training.learning_rate=1e-4[/bold]"


def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and estimate and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of this run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even if the estimate does not fit the GPU.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train as the config says; the run folder holds adapter, log and report afterwards."""
    from vlmtune.config.load import load_config

    words = tuple(overrides or ())
    loaded = load_config(config, words)
    if resume and (changes := _changes_of(loaded, err=as_json)):
        words += changes
        loaded = load_config(config, words)
    data = read_data(loaded, live=not as_json)
    job = Job(config, words, loaded, *make_run_plan(loaded, pinned_commit(loaded) if resume else None))
    if dry_run:
        _dry_run(job, data, as_json)
        return
    folder = _open_folder(job, resume)
    if resume and _is_finished(folder):
        _print_finished(folder, as_json)
        return
    with _interruptible(folder), _unless_trained_removed(folder, is_new=not resume):
        report = train_and_retry(job, data, folder, Flags(resume, force, as_json))
    _print_report(report, folder, as_json)
    if report.status == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)


def _changes_of(loaded: "LoadedConfig", err: bool) -> tuple[str, ...]:
    """Say and return the changes that the run to be continued has made of itself, as `--set` words."""
    from vlmtune.runs.folder import RunFolder

    retries = RunFolder(loaded.config.run_dir).read_retries()
    for retry in retries:
        typer.echo(retry.note, err=err)
    return tuple(word for retry in retries for word in retry.words)


def _dry_run(job: Job, data: "RunData", as_json: bool) -> None:
    """Print the plan and the estimate; raise what the run would be refused for."""
    from vlmtune.workflow.launch import expect, refuse_too_large

    if not as_json:
        _print_plan(job.plan)
    expected = expect(job, data.train, err=as_json)
    if as_json:
        from dataclasses import asdict

        from vlmtune.cli.show import render

        render.print_json(asdict(job.plan) | {"estimate": expected.as_json() if expected else None})
    if expected:
        refuse_too_large(job, data.train, expected)


def _open_folder(job: Job, resume: bool) -> "RunFolder":
    """Return the run folder: a new one with config and plan in it, or the one to go on with."""
    from vlmtune.plan.types import RunPlan
    from vlmtune.runs.folder import RunFolder, library_versions, strict_json

    path = job.loaded.config.run_dir
    if resume:
        folder = RunFolder.open_existing(path)
        begun = RunPlan.load(folder.plan)
        differences = job.plan.differences(begun)
        if differences:
            raise VlmtuneError(
                f"{path} was started differently and cannot be continued: {'; '.join(differences)}",
                "undo the change, or start a new run under another experiment_name",
            )
        if job.plan != begun and not _is_finished(folder):
            keep_job(job, folder)
        return folder
    folder = RunFolder.create(path)
    keep_job(job, folder)
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


def _print_plan(plan: "RunPlan") -> None:
    import dataclasses

    from vlmtune.cli.show import render

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
    _print_memory(report)
    if report.num_cut_rows:
        cut_rows, cut_tokens = count(report.num_cut_rows, "row"), count(report.num_cut_tokens, "token")
        typer.echo(f"{cut_rows} cut by {cut_tokens} in all (data.truncation: cut)")
    if report.status == "interrupted":
        typer.echo(f"{folder.latest_checkpoint()} is written; continue with --resume")
    else:
        typer.echo(f"adapter, log and report.html in {folder.path}")


def _print_memory(report: "TrainReport") -> None:
    """Print what the run took of the GPU beside what it was estimated to take."""
    if report.memory_measured is None:
        return
    from vlmtune.cli.show import render
    from vlmtune.runs.memory import compare
    from vlmtune.units import GIB

    table = render.table("memory, GiB", "estimated", "measured", right=("estimated", "measured"))
    for row in compare(report.memory_estimated, report.memory_measured):
        estimated = "-" if row.estimated_bytes is None else f"{row.estimated_bytes / GIB:.2f}"
        table.add_row(row.name, estimated, f"{row.measured_bytes / GIB:.2f}")
    render.console().print(table)
