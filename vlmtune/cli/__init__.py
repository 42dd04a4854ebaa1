"""The `vlmtune` command. One file a command; a new one is imported and registered below, one line each.

Command modules import nothing heavy at their top: `vlmtune --help` loads all of them.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from vlmtune import __version__
from vlmtune.cli import doctor, presets, validate
from vlmtune.errors import ExitCode, VlmtuneError

app = typer.Typer(
    name="vlmtune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=validate.EXAMPLE)(validate.validate)
app.command(epilog=doctor.EXAMPLE)(doctor.doctor)
app.add_typer(presets.app, name="presets")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vlmtune {__version__}")
        raise typer.Exit


@app.callback(epilog="Start: [bold]vlmtune presets copy 8gb my-run.yaml[/bold]")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune vision-language models on the GPU you own."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; the one place where a VlmtuneError becomes text and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(args, prog_name="vlmtune", standalone_mode=True)
    except VlmtuneError as error:
        from vlmtune.cli.render import print_error

        sys.stdout.flush()
        print_error(error)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        _leave_quietly()
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _leave_quietly()
        raise
    raise AssertionError("Typer exits by itself in standalone mode")


def _leave_quietly() -> NoReturn:
    """Exit after the reader of our output is gone, without Python's complaint about the unflushed rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(ExitCode.ERROR)
