"""The `vlmtune` command. One file a command; a new one is imported and registered below, one line each.

Command modules import nothing heavy at their top: `vlmtune --help` loads all of them.
"""

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from vlmtune import __version__
from vlmtune.cli import (
    calibrate,
    doctor,
    estimate_vram,
    guide,
    merge,
    models,
    plan,
    presets,
    train,
    validate,
)
from vlmtune.cli.ask import chat, evaluate, generate, predict
from vlmtune.environment import check_environment
from vlmtune.errors import ExitCode, VlmtuneError
from vlmtune.files import is_disk_full
from vlmtune.printing import escape_libraries, say

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""All but tab and the ends of lines, which a prompt may hold."""
_NO_TMPDIR = "No usable temporary directory"
"""What Python says where no folder for temporary files takes one."""
_WITHOUT_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)

app = typer.Typer(
    name="vlmtune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=train.EXAMPLE)(train.train)
app.command("estimate-vram", epilog=estimate_vram.EXAMPLE)(estimate_vram.estimate_vram)
app.command(epilog=plan.EXAMPLE)(plan.plan)
app.command(epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=generate.EXAMPLE)(generate.generate)
app.command(epilog=chat.EXAMPLE)(chat.chat)
app.command(epilog=predict.EXAMPLE)(predict.predict)
app.command(epilog=merge.EXAMPLE)(merge.merge)
app.command(epilog=validate.EXAMPLE)(validate.validate)
app.command(epilog=doctor.EXAMPLE)(doctor.doctor)
app.command(epilog=calibrate.EXAMPLE)(calibrate.calibrate)
app.command(epilog=guide.EXAMPLE)(guide.guide)
app.add_typer(models.app, name="models")
app.add_typer(presets.app, name="presets")


def _print_version(asked: bool) -> None:
    if asked:
        say(f"vlmtune {__version__}")
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
    escape_libraries()
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output is gone; without this, Python complains about the rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.ERROR
    sys.exit(code)


def _refuse_control_characters(args: Sequence[str]) -> None:
    """Raise for an argument that Typer's own messages would write to the terminal as it is."""
    for arg in args:
        if _CONTROL_CHARACTERS.search(arg):
            raise VlmtuneError(
                f"an argument holds a control character: {arg}", "rename the file, or leave it out", code=ExitCode.USAGE
            )


def _run(args: Sequence[str] | None) -> int:
    """The exit code of a command line, its errors printed."""
    # pydantic would read the metadata of every installed package to look for plugins: 10 ms of each command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        check_environment()
        words = sys.argv[1:] if args is None else args
        _refuse_control_characters(words)
        app(train.with_what_to_resume(words), prog_name="vlmtune")
    except SystemExit as done:
        return done.code or ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except VlmtuneError as error:
        return _told(error)
    except OSError as error:
        return _told(_of_this_machine(error))
    raise AssertionError("Typer exits by itself in standalone mode")


def _told(error: VlmtuneError) -> ExitCode:
    """Print the error and return its exit code."""
    from vlmtune.cli.show.render import print_error

    sys.stdout.flush()
    print_error(error)
    return error.code


def _of_this_machine(error: OSError) -> VlmtuneError:
    """Return the error for a disk that is full, or a file without access, where nobody expected it; raise any other."""
    if is_disk_full(error) or _NO_TMPDIR in str(error):
        return _full(error)
    if error.errno in _WITHOUT_ACCESS and error.filename is not None:
        what = f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}"
        return VlmtuneError(what, "check its permissions, and those of the folders that it is in")
    raise error


def _full(error: OSError) -> VlmtuneError:
    """Return the error for a full disk: mostly that of temporary files."""
    what = "a temporary file" if _NO_TMPDIR in str(error) or not error.filename else str(error.filename)
    return VlmtuneError(
        f"the disk is full: {what} could not be written",
        "free some space; the environment variable TMPDIR names another folder for temporary files",
    )
