"""`vlmtune train`: everything that can be wrong is found before a model loads."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlmtune.cli.options import BaseModelOption, ConfigArgument, JsonOption, SetOption
from vlmtune.cli.show.share import upload_line
from vlmtune.errors import ExitCode
from vlmtune.files import file_sha256
from vlmtune.printing import say, say_json
from vlmtune.reading import JSON_BYTES, read_regular
from vlmtune.signals import as_ctrl_c

if TYPE_CHECKING:
    from vlmtune.runs.folder import RunFolder
    from vlmtune.runs.records import Outcome, TrainReport
    from vlmtune.workflow.job import Job

RESUME, NEWEST, AUTO = "--resume", "newest", "auto"
SHOWN_DIGITS = 8
"""Of a digest."""
EXAMPLE = "Example: [bold]vlmtune train configs/8gb.yaml --set training.learning_rate=1e-4[/bold]"


def with_what_to_resume(args: Sequence[str]) -> list[str]:
    """Return the words of a command line with `newest` for a --resume that stands alone, as it always could."""
    stands_alone = (word == RESUME and after not in (NEWEST, AUTO) for word, after in zip_longest(args, args[1:]))
    return [f"{RESUME}={NEWEST}" if alone else word for word, alone in zip(args, stands_alone, strict=False)]


@as_ctrl_c()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would use and take, and stop.")] = False,
    resume: Annotated[
        Literal["newest", "auto"] | None,
        typer.Option(
            RESUME,
            metavar="[auto]",
            help="Continue from the newest checkpoint of this run; `auto` starts it where there is none yet.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train even if the estimate does not fit the GPU.")] = False,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train as the config says; the run folder holds adapter, log and report afterwards."""
    from vlmtune.workflow.attempts import Flags
    from vlmtune.workflow.job import prepare
    from vlmtune.workflow.ranks import follow_launcher
    from vlmtune.workflow.train import open_folder, train_in

    if base_model and not resume:
        raise typer.BadParameter("it is for --resume; a new run's model is named by model.name", param_hint="--model")
    if follow_launcher(lambda: _asked(config, overrides or (), resume)):
        return
    job = prepare(config, tuple(overrides or ()), resume=resume, err=as_json, base_model=base_model)
    if dry_run:
        _dry_run(job, as_json)
        return
    folder = open_folder(job)
    outcome = folder.read_outcome()
    if job.begun and outcome and outcome.is_finished and not job.is_longer:
        folder.learned()  # a result that is damaged is none
        _print_finished(folder, outcome, as_json)
        return
    _print_told(job, err=as_json)
    report = train_in(folder, job, Flags(force, as_json))
    _print_report(report, folder, as_json)
    if report.status == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)


def _asked(config: Path, overrides: Sequence[str], resume: str | None) -> dict[str, str]:
    """Return what a command line asks for, to be compared with those of other machines."""
    try:
        content = file_sha256(config)[:SHOWN_DIGITS] if config.is_file() else "none"
    except OSError:
        content = "unreadable"
    words = [*(f"--set {word}" for word in overrides), *([f"{RESUME}={resume}"] if resume else [])]
    return {"config": content, "options": " ".join(words) or "none"}


def _dry_run(job: "Job", as_json: bool) -> None:
    """Print the plan and the estimate; raise what the run would be refused for."""
    from vlmtune.workflow.launch import refuse_too_large, settle

    if not as_json:
        _print_plan(job)
    _print_told(job, err=as_json)
    job, expected = settle(job, err=as_json)
    if as_json:
        from dataclasses import asdict

        from vlmtune.cli.show import render

        render.print_json(asdict(job.plan) | {"estimate": expected.as_json() if expected else None})
    refuse_too_large(job, expected)


def _print_told(job: "Job", err: bool) -> None:
    for line in job.told:
        say(line, err=err)


def _print_plan(job: "Job") -> None:
    """Print what the run will use: keys that somebody has set, and those that were decided here."""
    from rich.text import Text

    from vlmtune.cli.show import render
    from vlmtune.cli.validate import shown

    decided = {choice.key: (choice.value, choice.reason) for choice in job.plan.choices}
    values, sources = job.loaded.values(), job.loaded.sources
    written = {key: (shown(value), sources[key]) for key, value in values.items() if sources[key] != "default"}
    table = render.table("key", "value", "from, or why")
    table.columns[0].no_wrap = True
    for key in [*(key for key in values if key in written or key in decided), *(decided.keys() - values.keys())]:
        table.add_row(*map(Text, (key, *decided.get(key, written.get(key)))))
    out = render.console()
    out.print(table)
    out.print("every other key has its default: vlmtune validate CONFIG shows all of them", soft_wrap=True)
    out.print(f"the run would go into {job.run_dir}", soft_wrap=True)


def _print_finished(folder: "RunFolder", outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        say_json(read_regular(folder.report_json, JSON_BYTES, own=True).decode().removesuffix("\n"))
    else:
        from vlmtune.data.types import count

        say(f"{folder.path} is finished: {count(outcome.steps, 'step')}; nothing to do")


def _print_report(report: "TrainReport", folder: "RunFolder", as_json: bool) -> None:
    if as_json:
        say_json(report.to_json().removesuffix("\n"))
        return
    from vlmtune.data.types import count

    loss = "-" if report.train_loss_last is None else f"{report.train_loss_last:.4f}"
    evaluated = "" if report.eval_loss is None else f", evaluation loss {report.eval_loss:.4f}"
    evaluated += "".join(f", {name} {value:.1%}" for name, value in (report.eval_metrics or {}).items())
    say(f"{report.status}: {count(report.steps, 'step')} in {report.seconds:.0f} s, loss {loss}{evaluated}")
    _print_memory(report)
    if report.num_cut_rows:
        cut_rows, cut_tokens = count(report.num_cut_rows, "row"), count(report.num_cut_tokens, "token")
        say(f"{cut_rows} cut by {cut_tokens} in all (data.truncation: cut)")
    if report.status == "interrupted":
        say(f"{folder.latest_checkpoint()} is written; continue with --resume")
    else:
        say(f"adapter, log and report.html in {folder.path}")
        result = folder.model if report.method == "full" else folder.adapter
        say(f"share it: {upload_line(report.experiment_name, result)} (its README.md says what it is: read it first)")


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
