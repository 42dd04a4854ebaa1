"""`vlmtune predict`: answers to rows that have none, or to a folder of pictures, as JSON Lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.ask.load import refuse_blank
from vlmtune.cli.options import (
    BaseModelOption,
    BatchSizeOption,
    CheckpointOption,
    JsonOption,
    MaxNewTokensOption,
    RunArgument,
)
from vlmtune.errors import VlmtuneError
from vlmtune.printing import say, say_json

if TYPE_CHECKING:
    from vlmtune.data.types import BadRow

EXAMPLE = 'Example: [bold]vlmtune predict runs/my-run photos/ --prompt "What is this?" -o answers.jsonl[/bold]'
SHOWN_PROBLEMS = 50


def predict(
    run: RunArgument,
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="Rows, with answers or without, in whatever data.train_path takes, or a folder of pictures.",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", help="The question of pictures and rows that have none. Default: data.prompt of the run."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write there. Default: standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    max_new_tokens: MaxNewTokensOption = 256,
    batch_size: BatchSizeOption = None,
    checkpoint: CheckpointOption = None,
    base_model: BaseModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file, or every picture of a folder: one JSON object a line, in their order.

    With --out, --json prints what was done.
    """
    from vlmtune.config.load import load_config
    from vlmtune.engine.ranks.single import refuse_several_processes
    from vlmtune.runs.folder import RunFolder
    from vlmtune.workflow.asked.prediction import rows_asked

    refuse_several_processes()
    refuse_blank(prompt)
    folder = RunFolder.open_existing(run)
    asked = rows_asked(load_config(folder.config), rows, prompt)
    if asked.pictures and asked.prompt is None:
        raise typer.BadParameter("pictures alone ask nothing: say what to ask of each", param_hint="--prompt")
    _refuse_target(out, force, [rows, *(path for _, path in asked.pictures), *(file.path for file in asked.files)])
    learned = folder.learned(checkpoint)
    if next(iter(asked), None) is None:
        raise VlmtuneError(f"{rows} holds no rows")
    from vlmtune.workflow.start import start_on_gpu

    start_on_gpu()
    from vlmtune.engine.runtime import quiet_libraries
    from vlmtune.engine.tuned import load_tuned, plan_here
    from vlmtune.files import strict_json
    from vlmtune.workflow.asked.evaluation import tell_of_one_by_one
    from vlmtune.workflow.asked.prediction import Predictor

    quiet_libraries()
    plan = plan_here(folder, base_model)
    if learned.note:
        say(learned.note, err=True)
    tell_of_one_by_one(plan, 2, batch_size)
    problems, is_seen = Problems(), not as_json and (out is not None or not sys.stdout.isatty())
    with _target(out, force) as write:
        tuned = load_tuned(plan, learned)
        with _counted(is_seen) as on_answer:
            predictor = Predictor(tuned, max_new_tokens, batch_size, problems.add, on_answer)
            for answer in predictor.answers(iter(asked)):
                write(strict_json(answer))
    _tell(predictor.num_answered, problems, out, as_json)


class Problems:
    """Rows that cannot be asked: each is said when it comes, the first ones of very many."""

    def __init__(self) -> None:
        self.rows: list[BadRow] = []
        self.number = 0

    def add(self, bad: "BadRow") -> None:
        """Say one more."""
        self.number += 1
        if self.number <= SHOWN_PROBLEMS:
            self.rows.append(bad)
            say(f"left out: {bad.where}: {bad.problem}" + (f" ({bad.hint})" if bad.hint else ""), err=True)


def _refuse_target(out: Path | None, force: bool, read: list[Path]) -> None:
    """Raise where the file to write is there already and may not be overwritten: what is read never may."""
    if out is None or not out.exists():
        return
    if any(path.exists() and out.samefile(path) for path in read):
        raise VlmtuneError(f"{out} is what is to be answered: it would be overwritten", "give another name")
    if not force:
        raise VlmtuneError(f"{out} exists already", "give another name, or overwrite it with --force")


@contextmanager
def _target(out: Path | None, force: bool) -> Iterator[Callable[[str], None]]:
    """Yield what takes one line after the other; until the first, a file is left as it was, or not there."""
    if out is None:
        yield say_json
        return
    was_there, is_kept = out.exists(), out.is_file()
    try:
        file = out.open("a" if force else "x", encoding="utf-8", newline="\n")
    except FileExistsError:
        raise VlmtuneError(f"{out} exists already", "give another name, or overwrite it with --force") from None
    except OSError as error:
        raise _not_writable(out, error) from None

    def write(line: str) -> None:
        nonlocal is_kept
        try:
            if is_kept:
                file.truncate(0)
                is_kept = False
            file.write(line + "\n")
            file.flush()  # a kill leaves what was answered
        except OSError as error:
            raise _not_writable(out, error) from None

    try:
        yield write
    finally:
        is_empty = not was_there and file.tell() == 0
        file.close()
        if is_empty:
            out.unlink()


def _not_writable(out: Path, error: OSError) -> VlmtuneError:
    return VlmtuneError(f"{out} cannot be written: {error.strerror}", "check the folder and the disk")


@contextmanager
def _counted(live: bool) -> Iterator:
    """Show how many rows were answered, where somebody looks."""
    from rich import progress as rich

    from vlmtune.workflow.progress import standard_error

    console = standard_error(live=live)
    columns = (rich.SpinnerColumn(), rich.TextColumn("{task.completed:,.0f} answered"), rich.TimeElapsedColumn())
    with rich.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=None)
        yield lambda number: shown.advance(task, number)


def _tell(num_answered: int, problems: Problems, out: Path | None, as_json: bool) -> None:
    from vlmtune.data.types import count

    left_out = f", {problems.number:,} left out" if problems.number else ""
    if not num_answered:
        raise VlmtuneError(f"no row could be answered{left_out}")
    if as_json and out:
        from vlmtune.cli.show import render

        bad = [{"where": one.where, "problem": one.problem, "hint": one.hint} for one in problems.rows]
        done = {"answered": num_answered, "left_out": problems.number, "bad_rows": bad, "out": str(out)}
        render.print_json(done)
    elif out or problems.number:
        say(f"{count(num_answered, 'row')} answered{left_out}" + (f": {out}" if out else ""), err=out is None)
